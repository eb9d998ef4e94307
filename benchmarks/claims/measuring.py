"""Gathers the figures of an experiment from its run folders and sweeps."""

from __future__ import annotations

import collections
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims.experiments import Experiment, Place
from benchmarks.claims.running import KILLED, current_commit, entries

_NELBO_EXAMPLES, _NELBO_DRAWS, _NELBO_LENGTH = 200, 4, 96
_RESAMPLES = 2000


def measure(experiment: Experiment) -> dict[str, Any]:
    """Returns the document of the experiment, all of it plain values for JSON."""
    from dlm_jax.evaluation.metrics import signature

    began = {entry["command"]: entry for entry in entries()}
    lines = [command.line for command in experiment.commands]
    document: dict[str, Any] = {
        "experiment": experiment.name,
        "command": f"python -m benchmarks.claims run {experiment.name}",
        "commands": lines,
        "commit": current_commit(),
        "commits": {line: began[line]["commit"] for line in lines if line in began},
        "cores": len(os.sched_getaffinity(0)),
        "models": {name: describe(folder) for name, folder in experiment.models.items()},
        "signature": signature("bleu"),
        "sweeps": {name: cells(folder) for name, folder in experiment.sweeps.items()},
    }
    if experiment.killed:
        record = (experiment.killed / KILLED).read_text(encoding="utf-8")
        document["killed"] = json.loads(record)
    if experiment.compared:
        document["compared"] = [_compared(experiment, *pair) for pair in experiment.compared]
    if experiment.lengths:
        rows = _answers_at(experiment, experiment.lengths)
        columns = ("true_length", "predicted_length", "length_confidence")
        document["lengths"] = [[row[name] for name in columns] for row in rows]
    if experiment.nelbo:
        first, second = (experiment.models[name] for name in experiment.nelbo)
        document["nelbo"] = _paired_nelbo(experiment.nelbo, (first, second))
    return document


def describe(folder: Path) -> dict[str, Any]:
    """What a run is and what it cost; `seconds` are those of all its processes together."""
    from dlm_jax.checkpoints.run_folder import RunFolder
    from dlm_jax.training import goodput

    run = RunFolder(folder)
    description = run.description()
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    record = (folder / "config.gin").read_text(encoding="utf-8")
    batch, length, seed = (_setting(record, name) for name in ("BATCH_SIZE", "LENGTH", "SEED"))
    last = steps[-1]
    return {
        "folder": str(folder),
        "task": description.task,
        "start": _relative(description.origin),
        "parameters": description.config.num_parameters(),
        "layers": description.config.num_layers,
        "embed_dim": description.config.embed_dim,
        "steps": last["step"],
        "token_positions": last["step"] * batch * length,
        "batch_size": batch,
        "length": length,
        "seed": seed,
        "seconds": round(sum(goodput.totals(run.metrics).values()), 1),
        "last_losses": [line["loss"] for line in steps[-5:]],
    }


def _setting(record: str, name: str) -> int:
    found = re.search(rf"^{name} = (\d+)\b", record, re.M)
    if found is None:
        raise ValueError(f"{name} is not in the record of the run")
    return int(found[1])


def _relative(source: str) -> str:
    """Names no folder of this machine."""
    models = os.environ.get("DLM_MODELS_DIR")
    return source.replace(models.rstrip("/"), "$DLM_MODELS_DIR") if models else source


def cells(folder: Path) -> list[dict[str, Any]]:
    """The finished cells of a sweep, with the settings and the figures of each."""
    sweep = load_sweep(folder)
    found = []
    for cell in sweep.cells():
        result = sweep.result(cell)
        if result is None:
            raise SystemExit(f"{folder}: {cell} is not finished; run the sweep first")
        saved = json.loads((sweep.folder(cell).path / "result.json").read_text(encoding="utf-8"))
        found.append(
            {
                **{name: value for name, value in saved["cell"].items() if value is not None},
                "identity": cell.identity,
                "parameters": result.parameters,
                "figures": saved["figures"],
                **_majority(folder, cell.identity, saved["figures"]),
                "seconds": result.seconds,
            }
        )
    return found


def _majority(folder: Path, identity: str, figures: Mapping[str, float]) -> dict[str, float]:
    """How often the most frequent reference is the right answer, where answers are right or not."""
    if "exact_match" not in figures:
        return {}
    targets = collections.Counter(str(row["target"]) for row in answers(folder, identity))
    return {"majority": targets.most_common(1)[0][1] / targets.total()}


def load_sweep(folder: Path) -> Any:
    """The sweep that a folder records."""
    from dlm_jax import config
    from dlm_jax.cli.configurables import CONFIGURABLES, ENTRIES
    from dlm_jax.cli.flags import import_task_module

    checked = config.load(
        [str(folder / "sweep.gin")],
        [],
        "sweep",
        CONFIGURABLES,
        other_entries=ENTRIES,
        supplied=("run_dir",),
        importer=import_task_module,
    )
    return checked.call(run_dir=str(folder))


def _paired_nelbo(names: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """NELBO of two models on the same unseen examples under the same noise, and the difference."""
    from dlm_jax.checkpoints.loading import load_model
    from dlm_jax.data.tasks import import_task_modules, members
    from dlm_jax.evaluation.evaluators import LikelihoodEvaluator
    from dlm_jax.evaluation.likelihood import nelbo_difference
    from dlm_jax.models.encoder import from_parameters

    import_task_modules(["multi30k"])
    evaluator = LikelihoodEvaluator(
        split="test", max_examples=_NELBO_EXAMPLES, draws=_NELBO_DRAWS, length=_NELBO_LENGTH
    )
    results = []
    for folder in folders:
        loaded = load_model(folder)
        [(task, _)] = members(loaded.description.task or "")[1]
        denoiser = from_parameters(loaded.description.config, loaded.parameters)
        results.append(evaluator.nelbo(denoiser, loaded.vocabulary, loaded.description, task))
    difference, error = nelbo_difference(*results)
    return {
        "examples": len(results[0].nats),
        "draws": _NELBO_DRAWS,
        "tokens": int(results[0].tokens.sum()),
        **{name: list(result.per_token) for name, result in zip(names, results)},
        "difference": [difference, error],
    }


def answers(folder: Path, identity: str) -> list[dict[str, Any]]:
    """The predictions of a cell, in the order of the examples."""
    [file] = (folder / "cells" / identity / "eval").glob("*/*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _answers_at(experiment: Experiment, place: Place) -> list[dict[str, Any]]:
    name, value = place
    folder = experiment.sweeps[name]
    sweep = load_sweep(folder)
    cell = next(cell for cell in sweep.cells() if value in cell.settings.values())
    return answers(folder, cell.identity)


def _compared(experiment: Experiment, first: Place, second: Place) -> dict[str, Any]:
    pair = [_answers_at(experiment, place) for place in (first, second)]
    return {"first": list(first), "second": list(second), **paired_bleu(*pair)}


def paired_bleu(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> Any:
    """BLEU of `second` minus that of `first` on the same examples, by a paired bootstrap.

    Returns:
      The difference, its standard error, and the share of resamples in which it is above 0.

    Raises:
      ValueError: the answers are not to the same examples.
    """
    from dlm_jax.evaluation.metrics import bleu, statistics

    if [row["index"] for row in first] != [row["index"] for row in second]:
        raise ValueError("the answers are to different examples")
    measured = []
    for rows in (first, second):
        found = statistics(bleu, [r["target"] for r in rows], [r["prediction"] for r in rows])
        assert found is not None
        measured.append(found["bleu"])
    generator = np.random.default_rng(0)
    count = len(first)
    differences = []
    for _ in range(_RESAMPLES):
        weights = generator.multinomial(count, np.full(count, 1 / count)).astype(np.float64)
        low, high = (one.figure(weights @ one.per_example) for one in measured)
        differences.append(high - low)
    low, high = (one.figure(one.per_example.sum(axis=0)) for one in measured)
    return {
        "difference": high - low,
        "standard_error": float(np.std(differences, ddof=1)),
        "share_above_0": float(np.mean(np.array(differences) > 0)),
    }


def write(document: Mapping[str, Any], folder: Path) -> Path:
    """Writes the document of an experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{document['experiment']}.json"
    text = json.dumps(_finite(document), indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
    return file


def _finite(value: Any) -> Any:
    """JSON has no NaN; and no figure here is known to more than six digits."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
