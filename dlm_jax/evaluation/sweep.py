"""A sweep: the same evaluation over models, checkpoints, tasks and settings of decoding.

A cell is one model on one task under one setting. Its result is a file of its own, named by a hash
of all that decides it, so that a sweep that was killed goes on where it stopped, cells can be
computed by any number of processes, and a changed setting makes a new cell instead of passing for
an old one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlm_jax.checkpoints.loading import LoadedModel, load_model
from dlm_jax.checkpoints.manager import CheckpointManager
from dlm_jax.checkpoints.run_folder import RunFolder
from dlm_jax.errors import UserError, nearest
from dlm_jax.evaluation.evaluators import GenerationEvaluator
from dlm_jax.models.encoder import from_parameters
from dlm_jax.training.evaluators import Evaluator

_RESULT, _FAILURE = "result.json", "failure.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Cell:
    """One evaluation.

    Attributes:
        model: run folder or other source of weights.
        step: of the checkpoint; None for foreign weights.
        task: name.
        settings: the values of the grid in this cell, by field of the evaluator.
        evaluator: with the task and the settings filled in.
    """

    model: str
    step: int | None
    task: str
    settings: Mapping[str, Any]
    evaluator: Evaluator

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits of all that decides the figures."""
        known = [self.model, self.step, type(self.evaluator).__name__, _values(self.evaluator)]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        step = "" if self.step is None else f"@{self.step}"
        settings = "".join(f" {name}={value}" for name, value in self.settings.items())
        return f"{self.model}{step} {self.task}{settings}"


@dataclasses.dataclass(frozen=True)
class CellResult:
    """What a cell gave.

    Attributes:
        cell: which.
        parameters: of the model, tokens' rows included.
        figures: by name; `<name>_se` is a standard error.
        seconds: wall time of the evaluation, compilation included.
    """

    cell: Cell
    parameters: int
    figures: Mapping[str, float]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to evaluate.

    Attributes:
        run_dir: folder of the sweep.
        models: run folders, checkpoints of them (`<run>/checkpoints/<step>`), or other sources.
        tasks: names of tasks; empty = what each model was trained on.
        grid: for fields of the evaluator, the values to try; every combination is a cell.
        evaluator: what measures, with the settings that all cells share.

    Raises:
        UserError: no model, an empty axis, or a name that is no field of the evaluator.
    """

    run_dir: str | Path
    models: Sequence[str]
    tasks: Sequence[str] = ()
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    evaluator: Evaluator = GenerationEvaluator()

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("sweep.models is empty: name the run folders to compare")
        fields = [field.name for field in dataclasses.fields(_dataclass(self.evaluator))]
        for name, values in self.grid.items():
            if name not in fields or name == "task":
                where = type(self.evaluator).__name__
                raise UserError(
                    f"sweep.grid names {name!r}, which is no setting of {where}"
                    f"{nearest(name, fields)}"
                )
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise UserError(f"sweep.grid[{name!r}] is {values!r}, and must be a list of values")

    def cells(self) -> list[Cell]:
        """Every cell, model by model.

        Raises:
            UserError: a model has no checkpoint, or no task is named for it.
        """
        found = []
        for model in self.models:
            step, trained_on = _checkpoint(model)
            tasks = self.tasks or ([trained_on] if trained_on else [])
            if not tasks:
                raise UserError(f"sweep.tasks is empty, and {model} was not trained on a task")
            for task, values in itertools.product(tasks, itertools.product(*self.grid.values())):
                settings = dict(zip(self.grid, values, strict=True))
                evaluator = dataclasses.replace(_dataclass(self.evaluator), task=task, **settings)
                found.append(Cell(model, step, task, settings, evaluator))
        return found

    def folder(self, cell: Cell) -> RunFolder:
        """Where a cell's result and its predictions stand."""
        return RunFolder(Path(self.run_dir) / "cells" / cell.identity)

    def result(self, cell: Cell) -> CellResult | None:
        """The result of a cell; None where it is not finished.

        Raises:
            UserError: the file of the result is damaged.
        """
        file = self.folder(cell).path / _RESULT
        if not file.is_file():
            return None
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            figures = {name: _number(value) for name, value in saved["figures"].items()}
            return CellResult(cell, int(saved["parameters"]), figures, float(saved["seconds"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is damaged ({error!r}): remove it, and the cell is computed again"
            ) from error

    def failure(self, cell: Cell) -> str | None:
        """Why the last try of an unfinished cell failed, in a sentence; None if it did not."""
        file = self.folder(cell).path / _FAILURE
        if self.result(cell) is not None or not file.is_file():
            return None
        return str(json.loads(file.read_text(encoding="utf-8"))["error"])


def run_cells(
    sweep: Sweep, cells: Sequence[Cell], say: Callable[[str], None] = lambda line: None
) -> int:
    """Computes cells in this process, each model loaded once; a failed one stops no other.

    Args:
        sweep: which they belong to.
        cells: what to compute; finished ones are computed again.
        say: told about each cell.

    Returns:
        How many failed; why is in their folders.
    """
    failed = 0
    for source, group in itertools.groupby(cells, key=lambda cell: (cell.model, cell.step)):
        loaded: LoadedModel | None = None
        for cell in group:
            folder = sweep.folder(cell)
            try:
                loaded = loaded or load_model(source[0], step=_step_argument(*source))
                result = _measure(cell, loaded, folder)
            except Exception as error:  # A cell must not take the others with it.
                failed += 1
                reason = " ".join(f"{error}".split()) or type(error).__name__
                trace = "" if isinstance(error, UserError) else traceback.format_exc()
                document = {"cell": str(cell), "error": reason, "traceback": trace}
                folder.write_text(_FAILURE, json.dumps(document, indent=1) + "\n")
                say(f"{cell}: failed: {reason}")
                continue
            folder.write_text(_RESULT, json.dumps(result, indent=1) + "\n")
            (folder.path / _FAILURE).unlink(missing_ok=True)
            say(f"{cell}: done in {result['seconds']:.1f} s")
    return failed


def _measure(cell: Cell, loaded: LoadedModel, folder: RunFolder) -> dict[str, Any]:
    began = time.monotonic()
    description = loaded.description
    denoiser = from_parameters(description.config, loaded.parameters)
    found = cell.evaluator(denoiser, loaded.vocabulary, description, folder, cell.step or 0)
    # A mixture gives figures for each of its members.
    several = len(found) > 1
    figures = {
        f"{split.removeprefix('eval/')}/{name}" if several else name: value
        for split, values in found.items()
        for name, value in values.items()
    }
    return {
        "format": _FORMAT,
        "cell": {"model": cell.model, "step": cell.step, **_values(cell.evaluator)},
        "parameters": description.config.num_parameters(),
        # JSON has no NaN.
        "figures": {k: v if math.isfinite(v) else None for k, v in figures.items()},
        "seconds": round(time.monotonic() - began, 3),
    }


def _checkpoint(model: str) -> tuple[int | None, str | None]:
    """Step of the checkpoint that a source names, and the task that it was trained on."""
    path = Path(model)
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return int(path.name), RunFolder(path.parent.parent).description().task
    folder = RunFolder(path)
    if not folder.is_run:
        return None, None
    manager = CheckpointManager(folder.checkpoints)
    step = manager.latest_step()
    manager.close()
    if step is None:
        raise UserError(f"run {model} has no finished checkpoint yet")
    return step, folder.description().task


def _step_argument(model: str, step: int | None) -> int | None:
    return None if Path(model).parent.name == "checkpoints" else step


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _dataclass(evaluator: Evaluator) -> Any:
    if not dataclasses.is_dataclass(evaluator) or isinstance(evaluator, type):
        raise UserError(f"sweep.evaluator is {evaluator!r}, and must be a dataclass with a task")
    return evaluator


def _values(evaluator: Evaluator) -> dict[str, Any]:
    # repr for what JSON lacks: two settings that print alike are alike.
    return json.loads(json.dumps(dataclasses.asdict(_dataclass(evaluator)), default=repr))
