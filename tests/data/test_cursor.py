"""A restored loader gives exactly the batches that were still to come, or says why it cannot."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from dlm_jax.data import tasks
from dlm_jax.data.loader import Loader
from dlm_jax.data.packing import Batch
from dlm_jax.data.table import Truncation
from dlm_jax.data.tasks import register_task
from dlm_jax.data.vocabularies import ByteVocabulary, CharacterVocabulary
from dlm_jax.errors import UserError

VOCABULARY = ByteVocabulary()
RATES = {"c_v1.a": 0.7, "c_v1.b": 0.3}
STEPS = 9


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_REGISTRY", {})
    lengths = np.random.default_rng(5).integers(1, 12, 41)
    for name, size in (("c_v1.a", 41), ("c_v1.b", 7)):
        records = [{"t": f"{n}" + "z" * lengths[n]} for n in range(size)]
        register_task(
            name, splits={"train": lambda records=records: records}, inputs="in", targets="{t}"
        )


def loader(task: str | Mapping[str, float] = "c_v1.a", **changes: Any) -> Loader:
    settings: dict[str, Any] = {"batch_size": 2, "length": 40, "seed": 3, "prefetch": 0}
    return Loader(task, VOCABULARY, **{**settings, **changes})


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other):
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


CASES = {
    "packed": {},
    "unpacked": {"pack": False},
    "in order": {"shuffle": False},
    "prefetched": {"prefetch": 3},
    "mixture": {"task": RATES},
    "prefetched mixture": {"task": RATES, "prefetch": 2},
    "second of two hosts": {"task": RATES, "process_index": 1, "process_count": 2},
    "prefetched first host": {"prefetch": 2, "process_index": 0, "process_count": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_restore_gives_the_remaining_batches_at_any_point(case: str) -> None:
    source = loader(**CASES[case])
    cursors, batches = [source.cursor()], []
    for _ in range(STEPS):
        batches.append(next(source))
        cursors.append(source.cursor())
    source.close()
    # Several epochs of the smallest table have passed, so restoring crosses them.
    assert cursors[-1]["examples"] > 41 or not CASES[case].get("pack", True)
    for k in range(STEPS):
        resumed = loader(**CASES[case])
        resumed.restore(json.loads(json.dumps(cursors[k])))
        assert resumed.cursor() == cursors[k]
        assert_equal([next(resumed) for _ in range(STEPS - k)], batches[k:])
        assert resumed.cursor() == cursors[-1]
        resumed.close()


def test_a_used_loader_can_go_back() -> None:
    used = loader(prefetch=2)
    start = used.cursor()
    first = [next(used) for _ in range(4)]
    used.restore(start)
    assert_equal([next(used) for _ in range(4)], first)
    used.close()


def test_prefetched_batches_do_not_count_before_they_are_handed_out() -> None:
    eager, lazy = loader(prefetch=4), loader()
    for _ in range(5):
        next(eager), next(lazy)
        assert eager.cursor() == lazy.cursor()
        assert eager.counts == lazy.counts
    eager.close()


def test_end_of_the_last_epoch_is_kept() -> None:
    source = loader(num_epochs=1)
    count = len(list(source))
    resumed = loader(num_epochs=1)
    resumed.restore(source.cursor())
    assert list(resumed) == [] and resumed.counts.batches == count


def test_cursor_fits_any_number_of_hosts_of_one_global_batch() -> None:
    alone = loader(RATES, batch_size=4)
    for _ in range(3):
        next(alone)
    team = [loader(RATES, batch_size=2, process_index=index, process_count=2) for index in (0, 1)]
    for one in team:
        one.restore(alone.cursor())
    parts = [next(one) for one in team]
    whole = next(alone)
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))


def test_cursor_is_small_json() -> None:
    source = loader(RATES)
    for _ in range(50):
        next(source)
    text = json.dumps(source.cursor())
    assert len(text) < 600
    cursor = json.loads(text)
    assert cursor["batches"] == 50
    assert sum(cursor["drawn"].values()) == cursor["examples"] == source.counts.examples


def changed_records() -> None:
    splits = {"train": lambda: [{"t": "other"}] * 41}
    tasks._REGISTRY.pop("c_v1.a")
    register_task("c_v1.a", splits=splits, inputs="in", targets="{t}")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 4}, "seed=3"),
        ({"batch_size": 3}, "global_batch_size=2"),
        ({"process_count": 2}, "global_batch_size=2"),
        ({"length": 41}, "length=40"),
        ({"pack": False}, "pack=True"),
        ({"shuffle": False}, "shuffle=True"),
        ({"num_epochs": 3}, "num_epochs=None"),
        ({"task": RATES}, "tasks="),
        ({"task": "c_v1.b"}, "tasks="),
        ({"truncation": Truncation(max_response=2)}, "data="),
        ({"limit": 40}, "data="),
    ],
)
def test_changed_settings_are_refused_in_one_sentence(changes: dict[str, Any], key: str) -> None:
    source = loader()
    next(source)
    other = loader(**changes)
    before = other.cursor()
    with pytest.raises(UserError, match="was saved with") as caught:
        other.restore(source.cursor())
    assert key in str(caught.value) and "\n" not in str(caught.value)
    assert other.cursor() == before
    next(other)


def test_changed_data_or_vocabulary_are_refused() -> None:
    cursor = loader().cursor()
    other = Loader(
        "c_v1.a", CharacterVocabulary.from_text("inz0123456789"), batch_size=2, length=40, seed=3
    )
    with pytest.raises(UserError, match="was saved with data="):
        other.restore(cursor)
    changed_records()
    with pytest.raises(UserError, match="was saved with data="):
        loader().restore(cursor)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda cursor: cursor.update(format=2), "not of format 1"),
        (lambda cursor: cursor.pop("format"), "not of format 1"),
        (lambda cursor: cursor["settings"].pop("seed"), "lacks the setting 'seed'"),
        (lambda cursor: cursor.pop("settings"), "lacks the setting"),
        (lambda cursor: cursor.pop("drawn"), "damaged"),
        (lambda cursor: cursor.update(examples="many"), "damaged"),
        (lambda cursor: cursor.update(examples=cursor["examples"] + 1), "do not add up"),
        (lambda cursor: cursor.update(batches=-1), "do not add up"),
    ],
)
def test_damaged_cursors_are_refused(damage: Any, message: str) -> None:
    source = loader()
    next(source)
    cursor = copy.deepcopy(source.cursor())
    damage(cursor)
    with pytest.raises(UserError, match=message):
        source.restore(cursor)
