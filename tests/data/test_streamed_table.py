"""Tasks that are read as they are needed: the same examples, each once an epoch, and resumable."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dlm_jax.data import tasks
from dlm_jax.data.loader import Loader
from dlm_jax.data.packing import Batch
from dlm_jax.data.streamed_table import StreamedTable
from dlm_jax.data.table import CUT_LEFT, Truncation, build_table
from dlm_jax.data.tasks import TextTask, register_task
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.errors import UserError

VOCABULARY = ByteVocabulary()
LENGTHS = np.random.default_rng(11).integers(1, 14, 43).tolist()


def records(size: int = 43) -> list[dict[str, str]]:
    return [{"i": f"{n:02d}", "t": "z" * LENGTHS[n]} for n in range(size)]


def task_of(size: int = 43, *, plain: bool = False) -> TextTask:
    inputs = None if plain else "{i}"
    return TextTask("s_v1.x", {"train": lambda: records(size)}, "{i}{t}", inputs)


def streamed(task: TextTask, length: int = 40, **changes: Any) -> StreamedTable:
    settings: dict[str, Any] = {"block_records": 8, "seed": 5, "truncation": CUT_LEFT, **changes}
    return StreamedTable(task, "train", VOCABULARY, length, settings.pop("truncation"), **settings)


def contents(table: Any, places: Iterator[int] | range) -> list[tuple[tuple[int, ...], int]]:
    return [(tuple(tokens.tolist()), prompt) for tokens, prompt in map(table.example, places)]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("size", [43, 8, 3])
def test_every_epoch_holds_every_example_once_shuffled_within_blocks(
    size: int, plain: bool
) -> None:
    task = task_of(size, plain=plain)
    # Plain texts become several examples here, which stay in the block of their record.
    length = 9 if plain else 40
    whole = build_table(task, "train", VOCABULARY, length)
    table, n = streamed(task, length), len(whole)
    epochs = [contents(table, range(e * n, (e + 1) * n)) for e in range(3)]
    for epoch in epochs:
        assert collections.Counter(epoch) == collections.Counter(contents(whole, range(n)))
        for begin in range(0, size, 8):
            inside = np.flatnonzero((whole.records >= begin) & (whole.records < begin + 8))
            block = range(inside[0], inside[-1] + 1)
            assert sorted(epoch[block.start : block.stop]) == sorted(contents(whole, block))
    assert size < 8 or epochs[0] != epochs[1] != epochs[2]
    assert contents(streamed(task, length), range(n)) == epochs[0]
    assert size < 8 or contents(streamed(task, length, seed=6), range(n)) != epochs[0]


def test_without_shuffling_batches_are_those_of_a_table() -> None:
    settings: dict[str, Any] = {
        "batch_size": 3, "length": 40, "shuffle": False, "prefetch": 0,
    }  # fmt: skip
    ours = Loader(task_of(), VOCABULARY, stream_records=8, **settings)
    theirs = Loader(task_of(), VOCABULARY, **settings)
    for _ in range(25):
        assert_equal(next(ours), next(theirs))
    assert ours.counts.examples == theirs.counts.examples > 2 * 43


def assert_equal(one: Batch, other: Batch) -> None:
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_no_more_is_read_than_needed() -> None:
    read: list[int] = []

    def watched() -> Iterator[dict[str, str]]:
        for n in range(10**9):
            read.append(n)
            yield {"i": str(n), "t": "zz"}

    task = TextTask("s_v1.endless", {"train": watched}, "{t}", "{i}")
    table = streamed(task, block_records=2048)
    assert len(read) == 2048
    table.example(2047)
    assert len(read) == 2048
    table.example(2048)
    assert len(read) == 4096
    with pytest.raises(ValueError, match="place 5 is before the block at 2048"):
        table.example(5)


RATES = {"s_v1.a": 0.7, "s_v1.b": 0.3}


@pytest.fixture
def mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_REGISTRY", {})
    for name, size in (("s_v1.a", 43), ("s_v1.b", 7)):
        register_task(
            name,
            splits={"train": lambda size=size: records(size)},
            inputs="{i}",
            targets="{t}",
        )


def loader(**changes: Any) -> Loader:
    settings: dict[str, Any] = {
        "batch_size": 2, "length": 40, "seed": 3, "prefetch": 0, "stream_records": 8,
    }  # fmt: skip
    return Loader(RATES, VOCABULARY, **{**settings, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"prefetch": 3}, {"process_index": 1, "process_count": 2}, {"pack": False}]
)
def test_restore_gives_the_remaining_batches_at_any_point(
    changes: dict[str, Any], mixture: None
) -> None:
    source = loader(**changes)
    cursors, batches, counts = [source.cursor()], [], []
    for _ in range(14):
        batches.append(next(source))
        cursors.append(source.cursor())
        counts.append(source.counts)
    source.close()
    assert cursors[-1]["positions"]["s_v1.b"]["epoch"] >= 1
    for k in range(14):
        resumed = loader(**changes)
        resumed.restore(json.loads(json.dumps(cursors[k])))
        assert resumed.cursor() == cursors[k]
        for number in range(k, 14):
            assert_equal(next(resumed), batches[number])
        assert resumed.cursor() == cursors[-1]
        if not changes.get("prefetch"):
            assert resumed.counts == counts[-1]
        resumed.close()


def test_hosts_together_see_what_one_host_sees(mixture: None) -> None:
    alone = loader(batch_size=4)
    team = [loader(process_index=index, process_count=2) for index in (0, 1)]
    for _ in range(12):
        whole, parts = next(alone), [next(one) for one in team]
        for name in whole:
            np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))
        assert all(one.cursor() == alone.cursor() for one in team)


def test_cursor_is_small_and_refuses_other_data_and_settings(
    mixture: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = loader()
    for _ in range(9):
        next(source)
    cursor = source.cursor()
    assert len(json.dumps(cursor)) < 1200
    for changes in ({"stream_records": 9}, {"stream_records": None}, {"seed": 4}):
        with pytest.raises(UserError, match="was saved with"):
            loader(**changes).restore(cursor)
    damaged = json.loads(json.dumps(cursor))
    del damaged["positions"]["s_v1.a"]["record"]
    other = loader()
    before = other.cursor()
    with pytest.raises(UserError, match="damaged"):
        other.restore(damaged)
    monkeypatch.setattr(tasks, "_REGISTRY", {})
    for name in RATES:
        register_task(
            name, splits={"train": lambda: records(43)[::-1]}, inputs="{i}", targets="{t}"
        )
    with pytest.raises(UserError, match=r"from number \d+ on have changed"):
        loader().restore(cursor)
    assert other.cursor() == before
    next(other)


def test_truncation_is_counted_as_far_as_it_was_read() -> None:
    drop = Truncation(overlong="drop")
    whole = build_table(task_of(), "train", VOCABULARY, 16, drop)
    table = streamed(task_of(), 16, truncation=drop)
    assert table.counts.records == 8
    table.example(len(whole) - 1)
    assert table.counts == whole.counts and whole.counts.dropped > 0
    again = streamed(task_of(), 16, truncation=drop)
    again.seek(json.loads(json.dumps(table.position)))
    assert again.counts == whole.counts


def test_unusable_tasks() -> None:
    with pytest.raises(UserError, match="it is empty"):
        streamed(task_of(0))
    with pytest.raises(UserError, match="all 43 were dropped"):
        streamed(task_of(), 4, truncation=Truncation(overlong="drop"))
    with pytest.raises(UserError, match="no split 'train'"):
        streamed(TextTask("s_v1.y", {"test": lambda: records(3)}, "{t}"))
    with pytest.raises(UserError, match="length=2"):
        streamed(task_of(), 2)
    with pytest.raises(UserError, match="stream_records=0"):
        Loader(task_of(), VOCABULARY, batch_size=2, length=40, stream_records=0)
    with pytest.raises(UserError, match="num_epochs=1 needs the size"):
        Loader(task_of(), VOCABULARY, batch_size=2, length=40, stream_records=4, num_epochs=1)


def test_a_bad_record_is_named_when_it_is_reached() -> None:
    texts = [*({"t": "ok"} for _ in range(2000)), {"t": ""}]
    task = TextTask("s_v1.bad", {"train": lambda: texts}, "{t}", None)
    table = streamed(task, block_records=500)
    table.example(900)
    with pytest.raises(UserError, match="record 2000: targets is empty"):
        table.example(1999)
