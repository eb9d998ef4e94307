"""kill -9 at random moments of a training run, saves among them: what is lost, and what changes?

    python benchmarks/kill_and_restart.py --kills 30

A toy run is killed again and again, started again each time, and compared with the same run left
alone: parameters bit for bit, and the lines of its metrics. `lost` counts finished checkpoints that
a restart did not resume from, and lines of metrics that are missing, double or different.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOY = ROOT / "tests" / "end_to_end"
MOMENTS = ("start", "step", "save")
SAVE_EVERY = 10


def _start(run: Path, vocabulary: Path, compiled: Path, steps: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    arguments = [
        f"--gin_file={TOY / 'toy.gin'}",
        f"--import={TOY / 'toy_tasks.py'}",
        f"--gin.VOCABULARY='{vocabulary}'",
        f"--gin.TOTAL_STEPS={steps}",
        f"--gin.SAVE_EVERY={SAVE_EVERY}",
        "--gin.LOG_EVERY=5",
        f"--run_dir={run}",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "dlm_jax.cli", "train", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _steps(run: Path) -> list[int]:
    """Steps of the finished checkpoints, ascending; an unfinished one has another name."""
    folder = run / "checkpoints"
    return (
        sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []
    )


def _unfinished(run: Path, began: float) -> bool:
    """Whether a checkpoint is being written that was begun after `began` (seconds, epoch)."""
    folder = run / "checkpoints"
    try:
        return any("tmp" in p.name and p.stat().st_mtime > began for p in folder.iterdir())
    except FileNotFoundError:  # finished in between, or none yet
        return False


def _kill(process: subprocess.Popen[str], run: Path, moment: str, rng: random.Random) -> bool:
    """Kills the process at a moment; returns whether a checkpoint was being written then."""
    file, began = run / "metrics.jsonl", time.time()
    if moment == "start":
        time.sleep(rng.uniform(0.0, 4.0))
    else:
        size = file.stat().st_size if file.exists() else 0
        while process.poll() is None and (file.stat().st_size if file.exists() else 0) <= size:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.5))
        while moment == "save" and process.poll() is None and not _unfinished(run, began):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0.0, 0.02) if moment == "save" else 0.0)
    saving = _unfinished(run, began)
    process.kill()
    return saving


def _train_lines(run: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "grad_norm", "learning_rate")
    return [tuple(line[n] for n in names) for line in lines if line["split"] == "train"]


def _differing_parameters(first: Path, second: Path) -> int:
    import jax
    import numpy as np

    from dlm_jax.checkpoints.loading import load_model

    pairs = zip(
        jax.tree.leaves(load_model(first).parameters),
        jax.tree.leaves(load_model(second).parameters),
    )
    return sum(int(np.sum(np.asarray(x) != np.asarray(y))) for x, y in pairs)


def _finish(process: subprocess.Popen[str]) -> str:
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run failed with {process.returncode}:\n{error[-3000:]}")
    return error


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    from dlm_jax.data.vocabularies import ByteVocabulary

    rng = random.Random(arguments.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        vocabulary, compiled = root / "vocabulary", root / "compiled"
        ByteVocabulary().save(vocabulary)
        alone, run = root / "alone", root / "killed"
        _finish(_start(alone, vocabulary, compiled, arguments.steps))
        lost = while_saving = 0
        expected = 0
        for number in range(arguments.kills + 1):
            process = _start(run, vocabulary, compiled, arguments.steps)
            moment = MOMENTS[number % len(MOMENTS)]
            if number < arguments.kills:
                while_saving += _kill(process, run, moment, rng)
                _, error = process.communicate()
                if process.returncode == 0:
                    raise SystemExit(f"the run ended before kill {number + 1}: give more --steps")
            else:
                error = _finish(process)
            # The newest checkpoint is deleted only when a newer one is finished.
            resumed = re.search(r"resumes after step (\d+)", error)
            if resumed and int(resumed[1]) < expected:
                lost += 1
            expected = max([expected, *_steps(run)])
            print(f"{number + 1:3} {moment:5} newest checkpoint {expected}", flush=True)
        ours, theirs = _train_lines(run), _train_lines(alone)
        lost += abs(len(ours) - len(theirs)) + sum(x != y for x, y in zip(ours, theirs))
        differing = _differing_parameters(run, alone)
    figures = {
        "benchmark": "kill_and_restart",
        "kills": arguments.kills,
        "while_saving": while_saving,
        "steps": arguments.steps,
        "lost": lost,
        "differing_parameters": differing,
        "seconds": round(time.monotonic() - began),
    }
    print(
        f"{arguments.kills} kills, {while_saving} of them while a checkpoint was being written: "
        f"{lost} checkpoints or lines lost, {differing} parameters differ from the run left alone"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
