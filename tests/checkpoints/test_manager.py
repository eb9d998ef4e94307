"""Checkpoints come back bit for bit, damage is named, and nothing that is needed is deleted."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.path import step as step_metadata

from dlm_jax.checkpoints import manifest
from dlm_jax.checkpoints.manager import FORMAT, CheckpointConfig, CheckpointManager
from dlm_jax.errors import UserError


def _parameters(scale: float = 1.0):
    return {
        "embeddings": {"token": {"embedding": scale * jnp.arange(12.0).reshape(4, 3)}},
        "head": {"bias": jnp.full((4,), 0.1 * scale)},
    }


def _training(step: int):
    return {"step": jnp.int32(step), "moments": {"m": jnp.ones((4, 3)) / 3}, "time_state": None}


def _abstract(tree):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _restore(manager, step):
    return manager.restore(step, _abstract(_parameters()), _abstract(_training(0)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    manager = CheckpointManager(folder, CheckpointConfig(save_every=1, keep_latest=2))
    for step in (1, 2):
        manager.save(step, _parameters(step), _training(step), {"examples": 10 * step})
    manager.close()
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def _array_file(folder, step=2):
    files = [p for p in (folder / str(step) / "parameters").rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def test_what_was_saved_comes_back_exactly(saved):
    manager = CheckpointManager(saved)
    assert manager.steps() == [1, 2]
    parameters, training, cursor = _restore(manager, 2)
    jax.tree.map(np.testing.assert_array_equal, parameters, _parameters(2))
    np.testing.assert_array_equal(training["moments"]["m"], np.ones((4, 3), np.float32) / 3)
    assert int(training["step"]) == 2
    assert training["time_state"] is None
    assert cursor == {"examples": 20}


def test_parameters_alone(saved):
    manager = CheckpointManager(saved)
    parameters = manager.restore_parameters(1, _abstract(_parameters()))
    jax.tree.map(np.testing.assert_array_equal, parameters, _parameters(1))


@pytest.mark.parametrize("damage", ["truncate", "delete", "flip"])
def test_damage_is_named_and_the_earlier_step_offered(copy, damage):
    file = _array_file(copy)
    data = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "delete":
        file.unlink()
    else:
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    manager = CheckpointManager(copy)
    with pytest.raises(UserError, match=r"is damaged.*delete it to resume from step 1"):
        _restore(manager, 2)
    assert int(_restore(manager, 1)[1]["step"]) == 1


def test_damage_without_a_seal_is_still_one_sentence(copy):
    (copy / "2" / manifest.MANIFEST).unlink()
    for file in (copy / "2" / "parameters").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        _restore(CheckpointManager(copy), 2)


def test_a_newer_format_asks_for_an_upgrade(copy):
    file = copy / "2" / "cursor" / "metadata"
    file.write_text(json.dumps({"format": FORMAT + 1, "cursor": {}}))
    (copy / "2" / manifest.MANIFEST).unlink()
    with pytest.raises(UserError, match=f"format {FORMAT + 1}.*upgrade dlm_jax"):
        _restore(CheckpointManager(copy), 2)


def test_another_model_is_named_by_its_first_difference(saved):
    manager = CheckpointManager(saved)
    wider = _parameters()
    wider["head"]["bias"] = jnp.zeros((5,))
    with pytest.raises(UserError, match=r"head/bias has shape \[4\] there and \[5\] here"):
        manager.restore_parameters(2, _abstract(wider))
    deeper = {**_parameters(), "final_norm": {"scale": jnp.zeros((3,))}}
    with pytest.raises(UserError, match="no parameter final_norm/scale"):
        manager.restore_parameters(2, _abstract(deeper))


def test_missing_step_and_missing_folder(saved, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint of step 7.*there are: 1, 2"):
        _restore(CheckpointManager(saved), 7)
    with pytest.raises(UserError, match="does not exist"):
        CheckpointManager(tmp_path / "nowhere")


def test_latest_best_and_every_nth_are_kept_together(tmp_path):
    config = CheckpointConfig(
        save_every=1,
        keep_latest=1,
        keep_best=1,
        best_metric="nelbo",
        keep_every=4,
        asynchronous=False,
    )
    manager = CheckpointManager(tmp_path / "checkpoints", config)
    for step, nelbo in enumerate([5.0, 2.0, 3.0, 4.0, 4.5, 4.6], start=1):
        manager.save(step, _parameters(), _training(step), {}, {"nelbo": nelbo})
        assert manager.latest_step() == step  # the newest is never the one that is deleted
    assert manager.steps() == [2, 4, 6]
    assert manager.unranked({"nelbo": 1.0}) == ""
    assert "which the evaluation did not give (did you mean a@test/nelbo?)" in manager.unranked(
        {"bleu": 1.0, "a@test/nelbo": 1.0}
    )
    manager.close()


def _keeping_the_best(folder):
    return CheckpointManager(
        folder, CheckpointConfig(save_every=1, keep_latest=1, keep_best=1, asynchronous=False)
    )


def test_a_figure_that_is_not_a_number_ranks_nothing_and_says_so(tmp_path):
    manager = _keeping_the_best(tmp_path / "checkpoints")
    for step, nelbo in enumerate([5.0, 2.0, float("nan"), 4.0, float("-inf"), 6.0], start=1):
        manager.save(step, _parameters(), _training(step), {}, {"nelbo": nelbo})
    assert manager.steps() == [2, 6]
    assert "nelbo, CheckpointConfig.best_metric, is nan" in manager.unranked({"nelbo": np.nan})
    manager.close()


def test_a_step_that_was_evaluated_after_a_restart_can_be_the_best(tmp_path):
    folder = tmp_path / "checkpoints"
    manager = _keeping_the_best(folder)
    manager.save(1, _parameters(), _training(1), {}, {"nelbo": 5.0})
    manager.save(2, _parameters(), _training(2), {}, None)  # preempted
    manager.close()
    manager = _keeping_the_best(folder)
    for _ in range(2):  # killed after the first, and evaluated again
        manager.rank(2, {"nelbo": 0.1, "bleu": 30.0})
    for step in (3, 4):
        manager.save(step, _parameters(), _training(step), {}, {"nelbo": float(step)})
    manager.close()
    manager = _keeping_the_best(folder)
    manager.save(5, _parameters(), _training(5), {}, {"nelbo": 0.2})
    assert manager.steps() == [2, 5]
    jax.tree.map(np.testing.assert_array_equal, _restore(manager, 2)[0], _parameters())
    manager.close()


def test_the_best_are_chosen_among_what_is_saved_and_evaluated():
    config = CheckpointConfig(save_every=4, keep_best=1)
    for evaluate_every in (0, 1, 2, 4, 8):
        config.check_ranking(evaluate_every)
    with pytest.raises(UserError, match=r"save_every=4 or evaluate_every=6 must be a multiple"):
        config.check_ranking(6)
    CheckpointConfig(save_every=4).check_ranking(6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"save_every": 0}, "save_every must be at least 1, not 0"),
        ({"keep_latest": 0}, "keep_latest must be at least 1, not 0"),
        ({"keep_best": -1}, "keep_best must not be negative"),
        ({"best_mode": "smallest"}, "best_mode must be 'min' or 'max', not 'smallest'"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(UserError, match=message):
        CheckpointConfig(**values)


def test_a_step_that_is_removed_while_the_steps_are_listed_is_no_failure(
    saved, tmp_path, monkeypatch
):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    listing, removed = step_metadata.Metadata.commit_timestamp.fget, []

    def removed_before(metadata):
        if metadata.step == 1 and not removed:
            removed.append(metadata.step)
            shutil.rmtree(metadata.path)
        return listing(metadata)

    monkeypatch.setattr(step_metadata.Metadata, "commit_timestamp", property(removed_before))
    assert CheckpointManager(folder).steps() == [2]
    assert removed == [1]
