"""A killed run, started again, ends with the parameters of the run that was not killed."""

from __future__ import annotations

import contextlib
import json
import signal
import time

import jax
import numpy as np
import pytest

from dlm_jax.checkpoints.loading import load_model

TOTAL_STEPS = 30
SETTINGS = (
    # So narrow that some of the steps are left out, on either side of a restart.
    "train.skip_spikes=@SkipSpikes()",
    "SkipSpikes.window=4",
    "SkipSpikes.factor=1.5",
    # So few that blocks end, and epochs too, on either side of a restart.
    "train.stream_records=7",
)


def _finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return out + err


def _kill_when(process, condition):
    """kill -9 as soon as `condition()` holds; fails if the run ends first."""
    while not condition():
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _lines(run, split="train"):
    file = run / "metrics.jsonl"
    if not file.exists():
        return []
    entries = []
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError):  # the line that a killed process was writing
            entries.append(json.loads(line))
    return [entry for entry in entries if entry["split"] == split]


@pytest.fixture(scope="module")
def undisturbed(dlm, train_arguments, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    _finish(dlm(*train_arguments(run, *SETTINGS)))
    return run


def test_a_refused_command_leaves_the_record_of_a_run_as_it_was(dlm, train_arguments, undisturbed):
    record = (undisturbed / "config.gin").read_text()
    refused = dlm(*train_arguments(undisturbed, "TOTAL_STEPS=-5"))
    _, err = refused.communicate(timeout=120)
    assert (refused.returncode, err.count("train.total_steps must be at least 1")) == (2, 1)
    assert (undisturbed / "config.gin").read_text() == record
    assert not list(undisturbed.glob("config.*.gin"))


def test_kill_9_at_three_moments_changes_no_bit(dlm, train_arguments, undisturbed, tmp_path):
    run = tmp_path / "run"
    arguments = train_arguments(run, *SETTINGS)
    checkpoints = run / "checkpoints"

    def unfinished_save():
        return checkpoints.is_dir() and any("tmp" in path.name for path in checkpoints.iterdir())

    moments = [
        lambda: len(_lines(run)) >= 1,  # before anything was saved
        unfinished_save,  # while a checkpoint is being written
        lambda: any(entry["step"] >= 18 for entry in _lines(run)),  # between two checkpoints
    ]
    for moment in moments:
        _kill_when(dlm(*arguments), moment)
    _finish(dlm(*arguments))

    theirs, ours = load_model(run), load_model(undisturbed)
    assert theirs.step == ours.step == TOTAL_STEPS
    jax.tree.map(np.testing.assert_array_equal, theirs.parameters, ours.parameters)
    figures = ("step", "loss", "grad_norm", "learning_rate", "spike_steps")
    assert [[e[f] for f in figures] for e in _lines(run)] == [
        [e[f] for f in figures] for e in _lines(undisturbed)
    ]
    assert 0 < sum(entry["spike_steps"] for entry in _lines(run)) < TOTAL_STEPS / 2


def test_a_finished_run_is_left_alone(dlm, train_arguments, undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    _finish(dlm(*train_arguments(undisturbed, *SETTINGS)))
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_a_resumed_run_refuses_other_data(dlm, train_arguments, undisturbed):
    process = dlm(*train_arguments(undisturbed, *SETTINGS, "TOTAL_STEPS=40", "LENGTH=40"))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "length=48" in err and "length=40" in err
    assert load_model(undisturbed).step == TOTAL_STEPS
