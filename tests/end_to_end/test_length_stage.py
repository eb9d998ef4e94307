"""A run, the length predictor of its model, killed on the way, and answers of predicted length."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import dlm_jax
from dlm_jax.checkpoints.manager import CheckpointManager
from dlm_jax.errors import UserError
from dlm_jax.evaluation.sweep import Sweep
from dlm_jax.models import length_predictor as predictors

TASKS = f"--import={Path(__file__).parent / 'toy_tasks.py'}"
TASK, STEPS = "toy_v1.counted", 100
STAGE = {"TOTAL_STEPS": STEPS, "BATCH_SIZE": 16, "LEARNING_RATE": 3e-3, "SAVE_EVERY": 50}


def finish(process, code=0):
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err[-2000:]
    return out, err


@pytest.fixture(scope="module")
def run(dlm, train_arguments, tmp_path_factory):
    """A finished run with checkpoints of two steps."""
    folder = tmp_path_factory.mktemp("length") / "run"
    finish(dlm(*train_arguments(folder, f"TASK='{TASK}'", "TOTAL_STEPS=10", "SAVE_EVERY=5")))
    return folder


@pytest.fixture(scope="module")
def length_arguments():
    def arguments(folder, **bindings):
        values = {**STAGE, "LOG_EVERY": 5, **bindings}
        flags = [f"--gin.{name}={value}" for name, value in values.items()]
        return ["length", f"--run_dir={folder}", "--gin_file=runs/length.gin", TASKS, *flags]

    return arguments


@pytest.fixture(scope="module")
def trained(dlm, run, length_arguments):
    """The run with its length predictor, and what its training printed."""
    return run, "".join(finish(dlm(*length_arguments(run))))


def parameters(run):
    """Of the run's predictor at its last step."""
    manager = CheckpointManager(run / "length_predictor" / "checkpoints")
    config = dlm_jax.load(run).description.config
    found = manager.restore_parameters(STEPS, predictors.abstract_parameters(config))
    manager.close()
    return found


def lines(run, split="train"):
    file = run / "length_predictor" / "metrics.jsonl"
    entries = []
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):  # the line that a killed process was writing
            entries.append(json.loads(line))
    return [entry for entry in entries if entry["split"] == split]


def test_lengths_that_follow_from_the_prompt_are_learned(dlm, trained) -> None:
    run, printed = trained
    [figures] = lines(run, f"eval/{TASK}")
    assert figures["length_exact"] >= 0.9 and figures["length_in_beam"] == 1.0, printed
    assert figures["length_correlation"] > 0.95
    assert lines(run)[-1]["loss"] < lines(run)[0]["loss"] / 4
    inspected, _ = finish(dlm("inspect", run))
    assert "length predictor  of step 10, for toy_v1.counted\n" in inspected
    # The model's own parameters are not copied.
    [step] = (run / "length_predictor" / "checkpoints").glob(str(STEPS))
    config = dlm_jax.load(run).description.config
    bytes_ = sum(file.stat().st_size for file in (step / "parameters").rglob("*") if file.is_file())
    assert bytes_ < 2 * 4 * predictors.num_parameters(config)


def test_kill_9_changes_no_bit(dlm, trained, length_arguments, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run, ignore=shutil.ignore_patterns("length_predictor"))
    for reached in (5, 70):  # before the first checkpoint, and between two
        process = dlm(*length_arguments(run))
        while not any(entry["step"] >= reached for entry in lines(run)):
            assert process.poll() is None, process.stderr.read()[-2000:]
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # Without its file the stage goes on as it was recorded.
    out, _ = finish(dlm("length", f"--run_dir={run}", TASKS))
    assert f"is at step {STEPS}" in out
    jax.tree.map(np.testing.assert_array_equal, parameters(run), parameters(trained[0]))
    for name in ("step", "loss", "accuracy", "grad_norm"):
        ours, theirs = ([entry[name] for entry in lines(of)] for of in (run, trained[0]))
        assert ours == theirs


def test_an_evaluation_decodes_on_predicted_canvases_and_reports_their_calibration(
    dlm, trained
) -> None:
    run, _ = trained
    bindings = {"CANVAS": "'predicted'", "LENGTH_BEAM": 2, "DECODE_STEPS": 2, "MAX_EXAMPLES": 12}
    flags = [f"--gin.{name}={value}" for name, value in bindings.items()]
    out, _ = finish(dlm("eval", f"--run_dir={run}", TASKS, *flags))
    assert "length_mae" in out and "oracle" not in out
    [file] = (run / "eval" / "toy_v1.counted").glob("*.jsonl")
    assert file.name == "10.predicted.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(record["canvas"] == "predicted" for record in records)
    assert all(record["true_length"] == len(record["target"]) for record in records)
    right = [record["predicted_length"] == record["true_length"] for record in records]
    assert sum(right) >= 10
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "predicted length" in page and (run / "figures" / "lengths.png").stat().st_size > 5000


def test_a_sweep_tells_the_figures_of_a_longer_trained_predictor_apart(trained, tmp_path) -> None:
    run, _ = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    sweep = Sweep(
        tmp_path / "sweep", [str(copy)], tasks=[TASK], grid={"canvas": ["search", "predicted"]}
    )
    search, predicted = sweep.cells()
    assert (search.predictor_step, predicted.predictor_step) == (None, STEPS)
    checkpoints = copy / "length_predictor" / "checkpoints"
    shutil.rmtree(checkpoints / str(STEPS))
    same, other = sweep.cells()
    assert other.predictor_step == STEPS // 2
    assert same.identity == search.identity and other.identity != predicted.identity


def test_a_sample_takes_predicted_lengths(dlm, trained) -> None:
    run, _ = trained
    arguments = ["--prompt", "xxx : ", "--prompt", "x : ", "--length", "predicted", "--steps", "2"]
    out, _ = finish(dlm("sample", f"--run_dir={run}", *arguments, "--no_special_tokens"))
    model = dlm_jax.load(run)
    answers = model.generate(["xxx : ", "x : "], length="predicted", steps=2, special_tokens=False)
    assert [answer.length for answer in answers] == [6, 2]
    assert out == "".join(f"{answer.text}\n" for answer in answers)


def test_a_predictor_of_another_model_is_refused(dlm, trained, length_arguments, tmp_path) -> None:
    run, _ = trained
    _, err = finish(dlm(*length_arguments(run, STEP=5)), code=2)
    assert "was trained on step 10 of its run, and not on 5" in err
    # Other weights of the same shape, and another shape.
    earlier = dlm_jax.load(run, step=5)
    with pytest.raises(UserError, match="features of step 10 and not on these weights"):
        earlier.generate(["x : "], length="predicted")
    assert earlier.generate(["x : "], length=2, steps=1)
    other = tmp_path / "run"
    shutil.copytree(run, other)
    record = other / "length_predictor" / "length_predictor.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "shape": {**values["shape"], "embed_dim": 64}}))
    with pytest.raises(UserError, match="embed_dim=64, and this one has embed_dim=32") as caught:
        dlm_jax.load(other).generate(["x : "], length="predicted")
    assert "\n" not in str(caught.value)
    _, err = finish(dlm(*length_arguments(other)), code=2)
    assert "embed_dim=64" in err
