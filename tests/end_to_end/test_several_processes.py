"""A run of two processes is the run of one: the same losses, stopped and resumed bit for bit.

The processes are real ones, of four virtual devices each, that meet on a port of this host.
"""

from __future__ import annotations

import json
import signal
import socket
import time

import jax
import numpy as np
import pytest

from dlm_jax.checkpoints.loading import load_model
from dlm_jax.errors import EXIT_RETRY, EXIT_USER_ERROR

ENDLESS = "TOTAL_STEPS=2000"
BINDINGS = (
    "BATCH_SIZE=8",
    "SAVE_EVERY=1000",
    "LENGTH=32",
    "EncoderConfig.num_layers=1",
    "LOG_EVERY=1",
    "AdamW.warmup_steps=2",  # a number of steps, so that all lengths of a run are one program
    "MeshConfig.data=1",
    "MeshConfig.fsdp=-1",
    "train.mesh=@MeshConfig()",
)
EVALUATED = (
    "train.evaluators=(@LikelihoodEvaluator(),)",
    "LikelihoodEvaluator.task='toy_v1.echo'",
    "LikelihoodEvaluator.max_examples=8",
    "LikelihoodEvaluator.batch_size=8",
    "LikelihoodEvaluator.draws=2",
)


def _lines(run, split="train"):
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    # What stands after the last newline is still being written.
    entries = [json.loads(line) for line in text.split("\n")[:-1]]
    return [entry for entry in entries if entry["split"] == split]


def _same_figures(ours, theirs, names=("loss", "grad_norm", "learning_rate")):
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
    for name in names:
        np.testing.assert_allclose(
            [entry[name] for entry in ours], [entry[name] for entry in theirs], rtol=2e-4
        )


def _close(ours, theirs):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4),
        ours.parameters,
        theirs.parameters,
    )


@pytest.fixture(scope="module")
def train(dlm, train_arguments):
    """Starts a run in so many processes."""

    def start(run, *bindings, devices=1, processes=1, extra=lambda index: ()):
        arguments = train_arguments(run, *BINDINGS, *bindings)
        if processes == 1:
            return [dlm(*arguments, devices=devices)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        return [
            dlm(
                *arguments,
                f"--coordinator_address={address}",
                f"--num_processes={processes}",
                f"--process_id={index}",
                *extra(index),
                devices=devices,
            )
            for index in range(processes)
        ]

    return start


def _outcomes(processes):
    """Exit code and stderr of each."""
    return [
        (process.returncode, error)
        for process, (_, error) in [(p, p.communicate(timeout=300)) for p in processes]
    ]


def _finish(processes):
    outcomes = _outcomes(processes)
    for code, error in outcomes:
        assert code == 0, error[-3000:]
    return [error for _, error in outcomes]


def _wait_for_step(run, processes, step):
    while not any(entry["step"] >= step for entry in _lines(run)):
        for process in processes:
            assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def interrupted(train, tmp_path_factory):
    """A run of two processes that was told to stop, then killed; its folder, and its last step."""
    run = tmp_path_factory.mktemp("interrupted") / "run"
    settings = {"devices": 4, "processes": 2}
    # One process is told to stop: both save the same step and ask to be started again.
    processes = train(run, ENDLESS, **settings)
    _wait_for_step(run, processes, 2)
    processes[1].send_signal(signal.SIGTERM)
    outcomes = _outcomes(processes)
    assert [code for code, _ in outcomes] == [EXIT_RETRY, EXIT_RETRY], outcomes
    [step] = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert all(f"step {step} is saved" in error for _, error in outcomes)

    # One process is killed: the other is gone within seconds, and asks for the same.
    processes = train(run, ENDLESS, **settings)
    _wait_for_step(run, processes, step + 2)
    processes[1].kill()
    began = time.monotonic()
    assert processes[0].wait(timeout=60) == EXIT_RETRY
    assert time.monotonic() - began < 5
    _outcomes(processes)

    _finish(train(run, f"TOTAL_STEPS={step + 4}", **settings))
    return run, step + 4


@pytest.fixture(scope="module")
def alone(train, interrupted, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    _finish(train(run, f"TOTAL_STEPS={interrupted[1]}", *EVALUATED))
    return run


@pytest.fixture(scope="module")
def pair(train, interrupted, tmp_path_factory):
    """The same run of two processes, left in peace; its folder, and what they printed."""
    run = tmp_path_factory.mktemp("pair") / "run"
    total = f"TOTAL_STEPS={interrupted[1]}"
    return run, _finish(train(run, total, *EVALUATED, devices=4, processes=2))


def test_told_to_stop_then_killed_and_still_the_same(interrupted, pair):
    theirs, ours = load_model(interrupted[0]), load_model(pair[0])
    jax.tree.map(np.testing.assert_array_equal, theirs.parameters, ours.parameters)
    figures = ("step", "loss", "grad_norm", "learning_rate")
    assert [[e[f] for f in figures] for e in _lines(interrupted[0])] == [
        [e[f] for f in figures] for e in _lines(pair[0])
    ]
    assert any(entry["restart_seconds"] > 0 for entry in _lines(interrupted[0], "goodput"))


def test_two_processes_of_four_devices_are_one_of_one(pair, alone):
    run, _ = pair
    _same_figures(_lines(run), _lines(alone))
    _same_figures(_lines(run, "eval/toy_v1.echo"), _lines(alone, "eval/toy_v1.echo"), ("nelbo",))
    _close(load_model(run), load_model(alone))


def test_one_process_writes_and_the_step_is_compiled_once(pair):
    run, (first, second) = pair
    assert "resume" in first and "goodput" in first
    assert "step" not in second
    assert "compiled" not in first
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_a_run_moves_from_8_devices_to_2_to_1(train, interrupted, alone, tmp_path):
    run, last = tmp_path / "run", interrupted[1]
    for devices, steps in ((8, 2), (2, 4), (1, last)):
        _finish(train(run, f"TOTAL_STEPS={steps}", devices=devices))
        assert load_model(run).step == steps
    _same_figures(_lines(run), _lines(alone))
    _close(load_model(run), load_model(alone))


def test_processes_with_other_settings_refuse_to_start(train, tmp_path):
    def faster(index):
        return ("--gin.LEARNING_RATE=1.0",) if index else ()

    for code, error in _outcomes(train(tmp_path / "run", devices=1, processes=2, extra=faster)):
        assert code == EXIT_USER_ERROR, error
        assert "process 1 has 1.0 for LEARNING_RATE, and process 0 has 0.003" in error
    assert not (tmp_path / "run").exists()
