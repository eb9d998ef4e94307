"""`dlm sweep` over real models: killed midway, started again, and as an array job."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from flax import nnx

from dlm_jax.checkpoints.loading import LoadedModel, save_model
from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import Encoder, parameters

TASKS = Path(__file__).with_name("toy_tasks.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("models"), []
    for width in (8, 16, 32):
        config = EncoderConfig(261, width, 1, 1, width, max_positions=66)
        weights = parameters(Encoder(config, rngs=nnx.Rngs(0)))
        model = LoadedModel(ModelDescription(config=config), ByteVocabulary(), weights)
        save_model(model, folder / f"width_{width}")
        found.append(str(folder / f"width_{width}"))
    return found


def arguments(run_dir, models, *flags):
    return [
        "sweep",
        "--gin_file=runs/sweep.gin",
        f"--import={TASKS}",
        f"--gin.MODELS={models!r}",
        "--gin.TASKS=['toy_v1.echo']",
        "--gin.GRID={'steps': [1, 3]}",
        "--gin.MAX_EXAMPLES=3",
        "--gin.GenerationEvaluator.response_lengths=[3]",
        f"--run_dir={run_dir}",
        *flags,
    ]


def results(run_dir: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in run_dir.glob("cells/*/result.json")}


def test_a_killed_sweep_goes_on_without_repeating_a_cell(tmp_path, models, dlm):
    run_dir = tmp_path / "sweep"
    process = dlm(*arguments(run_dir, models))
    while len(results(run_dir)) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = results(run_dir)
    assert 2 <= len(before) < 6
    again = dlm(*arguments(run_dir, models))
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    after = results(run_dir)
    assert len(after) == 6 and before.items() <= after.items()
    with (run_dir / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["n"] for row in rows} == {"3.0"}
    assert len({row["parameters"] for row in rows}) == 3
    assert out.splitlines()[-1] == f"report: {run_dir / 'report.html'}"
    assert len(list(run_dir.glob("cells/*/eval/*/0.jsonl"))) == 6


def test_an_array_job_computes_the_cells_of_its_numbers(tmp_path, models, dlm):
    run_dir = tmp_path / "sweep"
    process = dlm(*arguments(run_dir, models[:1], "--engine=slurm"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    submit, gather = out.splitlines()
    script = submit.removeprefix("sbatch ")
    assert "#SBATCH --array=0-1%1\n" in Path(script).read_text()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [finished] = results(run_dir)
    listed = (run_dir / "cells.txt").read_text().splitlines()
    assert finished.parent.name == listed[1]
    report = dlm(*gather.split()[3:])
    out, err = report.communicate(timeout=120)
    assert report.returncode == 0, err
    assert "1 of 2 cells are finished." in (run_dir / "report.html").read_text()
