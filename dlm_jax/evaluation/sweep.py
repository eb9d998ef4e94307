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
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dlm_jax.checkpoints import manifest
from dlm_jax.checkpoints.loading import LoadedModel, load_model, run_of_source
from dlm_jax.checkpoints.manager import CheckpointManager
from dlm_jax.checkpoints.run_folder import RunFolder
from dlm_jax.config import value_types
from dlm_jax.config.signatures import signature
from dlm_jax.data.few_shot import name_with_shots
from dlm_jax.data.tasks import get_task
from dlm_jax.errors import UserError, nearest
from dlm_jax.evaluation.evaluators import GenerationEvaluator
from dlm_jax.models.encoder import from_parameters
from dlm_jax.training.evaluators import Evaluator

_RESULT, _FAILURE, _ATTEMPTS = "result.json", "failure.json", "attempts"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Cell:
    """One evaluation.

    Attributes:
        model: run folder or other source of weights.
        step: of the checkpoint; None for foreign weights.
        task: as the sweep names it; that of the evaluator has its demonstrations in its name.
        settings: where the cell stands on the axes: demonstrations as `shots`, and the values of
            the grid by field of the evaluator.
        evaluator: with the task and the settings filled in.
        predictor_step: of the length predictor, where lengths are predicted.
        seals: of the checkpoints of both, `manifest.digest`; other weights of the same name and
            step are another cell.
    """

    model: str
    step: int | None
    task: str
    settings: Mapping[str, Any]
    evaluator: Evaluator
    predictor_step: int | None = None
    seals: tuple[str | None, ...] = ()

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits of what decides the figures, but for the text of the task."""
        known = [self.model, self.step, type(self.evaluator).__name__, _values(self.evaluator)]
        if self.predictor_step is not None:
            known.append(self.predictor_step)
        known.extend(self.seals)
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
        tasks: figures by name for the task, or for each member of a mixture; `<name>_se` is a
            standard error, `<name>_low` and `<name>_high` are the ends of an interval.
        seconds: wall time of the evaluation, compilation included.
        attempts: how often it was begun.
    """

    cell: Cell
    parameters: int
    tasks: Mapping[str, Mapping[str, float]]
    seconds: float
    attempts: int = 1


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to evaluate.

    Attributes:
        run_dir: folder of the sweep.
        models: run folders, checkpoints of them (`<run>/checkpoints/<step>`), or other sources.
        checkpoints: 'newest' or 'all' of each run, or steps that each of them has. A model that is
            named by its checkpoint, or is no run, has no other.
        tasks: names of tasks; empty = what each model was trained on.
        shots: numbers of demonstrations to try (`few_shot.name_with_shots`); empty = the tasks as
            they are named.
        grid: for fields of the evaluator, the values to try; every combination is a cell.
        evaluator: what measures, with the settings that all cells share.

    Raises:
        UserError: no model, an empty axis, or a name that is no field of the evaluator.
    """

    run_dir: str | Path
    models: Sequence[str]
    tasks: Sequence[str] = ()
    shots: Sequence[int] = ()
    checkpoints: Sequence[int] | Literal["newest", "all"] = "newest"
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    evaluator: Evaluator = GenerationEvaluator()

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("sweep.models is empty: name the run folders to compare")
        _refuse_twice("sweep.models", [os.path.normpath(model) for model in self.models])
        _refuse_twice("sweep.tasks", self.tasks)
        _refuse_twice("sweep.shots", self.shots)
        fields = [field.name for field in dataclasses.fields(_dataclass(self.evaluator))]
        if self.checkpoints not in ("newest", "all") and (
            isinstance(self.checkpoints, str) or not self.checkpoints
        ):
            raise UserError(
                f"sweep.checkpoints is {self.checkpoints!r}, and must be 'newest', 'all' or steps"
                f"{nearest(str(self.checkpoints), ('newest', 'all'))}"
            )
        for name, values in self.grid.items():
            if name not in fields or name == "task":
                where = type(self.evaluator).__name__
                raise UserError(
                    f"sweep.grid names {name!r}, which is no setting of {where}"
                    f"{nearest(name, fields)}"
                )
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise UserError(f"sweep.grid[{name!r}] is {values!r}, and must be a list of values")
            _refuse_twice(f"sweep.grid[{name!r}]", values)
            wanted = signature(type(self.evaluator)).annotations.get(name, Any)
            for value in values:
                if not value_types.fits(value, wanted, type):
                    raise UserError(
                        f"sweep.grid[{name!r}] has the value {value!r}, and "
                        f"{type(self.evaluator).__name__}.{name} takes "
                        f"{value_types.describe(wanted)}"
                    )

    def cells(self) -> list[Cell]:
        """Every cell, model by model and checkpoint by checkpoint.

        Raises:
            UserError: a model has no such checkpoint, no task is named for it, or a task is not
                registered with so many demonstrations.
        """
        found = []
        for model in self.models:
            steps, trained_on = _checkpoints(model, self.checkpoints)
            tasks = self.tasks or ([trained_on] if trained_on else [])
            if not tasks:
                raise UserError(f"sweep.tasks is empty, and {model} was not trained on a task")
            predictor_step = _predictor_step(model)
            axes: list[Sequence[Any]] = [steps, tasks, self.shots or [None], *self.grid.values()]
            for step, task, shots, *values in itertools.product(*axes):
                settings = dict(zip(self.grid, values, strict=True))
                name = task if shots is None else name_with_shots(task, shots)
                evaluator = dataclasses.replace(_dataclass(self.evaluator), task=name, **settings)
                if shots is not None:
                    settings = {"shots": shots, **settings}
                predicted = getattr(evaluator, "canvas", None) == "predicted"
                predictor = predictor_step if predicted else None
                seals = _seals(model, step, predictor)
                found.append(Cell(model, step, task, settings, evaluator, predictor, seals))
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
            found = saved["tasks"] if "tasks" in saved else {cell.task: saved["figures"]}
            tasks = {
                task: {name: _number(value) for name, value in figures.items()}
                for task, figures in found.items()
            }
            return CellResult(
                cell, int(saved["parameters"]), tasks, float(saved["seconds"]), self.attempts(cell)
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is damaged ({error!r}): remove it, and the cell is computed again"
            ) from error

    def attempts(self, cell: Cell) -> int:
        """How often a cell was begun, by whatever process."""
        file = self.folder(cell).path / _ATTEMPTS
        return len(file.read_text(encoding="utf-8")) if file.is_file() else 0

    def begin(self, cell: Cell) -> None:
        """Counts an attempt, and forgets why an earlier one failed."""
        folder = self.folder(cell).path
        folder.mkdir(parents=True, exist_ok=True)
        # One byte each: appended whole or not at all, whoever else counts at the same time.
        with (folder / _ATTEMPTS).open("a", encoding="utf-8") as file:
            file.write("|")
        (folder / _FAILURE).unlink(missing_ok=True)

    def failure(self, cell: Cell) -> str | None:
        """Why the last try of an unfinished cell came to nothing; None if none was begun."""
        folder = self.folder(cell).path
        attempts = self.attempts(cell)
        if (folder / _RESULT).is_file() or not attempts:
            return None
        times = f" (tried {attempts} times)" if attempts > 1 else ""
        file = folder / _FAILURE
        if not file.is_file():
            return f"begun, and not finished: killed, or still running{times}"
        return f"{json.loads(file.read_text(encoding='utf-8'))['error']}{times}"


def check_tasks(cells: Sequence[Cell]) -> None:
    """Raises a UserError if a task of the cells is not registered, before any is computed."""
    for name in dict.fromkeys(_dataclass(cell.evaluator).task for cell in cells):
        get_task(name)


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
            sweep.begin(cell)
            try:
                loaded = loaded or load_model(source[0], step=source[1])
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
            say(f"{cell}: done in {result['seconds']:.1f} s")
    return failed


def _measure(cell: Cell, loaded: LoadedModel, folder: RunFolder) -> dict[str, Any]:
    began = time.monotonic()
    description = loaded.description
    denoiser = from_parameters(description.config, loaded.parameters)
    run = run_of_source(cell.model)
    kept = RunFolder(folder.path, None if run is None else run.path)
    found = cell.evaluator(denoiser, loaded.vocabulary, description, kept, cell.step or 0)
    # JSON has no NaN.
    tasks = {
        split.removeprefix("eval/"): {n: v if math.isfinite(v) else None for n, v in values.items()}
        for split, values in found.items()
    }
    # A mixture gives figures for each of its members.
    measured = {"tasks": tasks} if len(tasks) > 1 else {"figures": next(iter(tasks.values()), {})}
    return {
        "format": _FORMAT,
        "cell": {"model": cell.model, "step": cell.step, **_values(cell.evaluator)},
        "parameters": description.config.num_parameters(),
        **measured,
        "seconds": round(time.monotonic() - began, 3),
    }


def _checkpoints(
    model: str, wanted: Sequence[int] | str
) -> tuple[list[int] | list[None], str | None]:
    """Steps of the checkpoints of a source to evaluate, and the task that it was trained on."""
    path = Path(model)
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return [int(path.name)], RunFolder(path.parent.parent).description().task
    folder = RunFolder(path)
    if not folder.is_run:
        if ":" not in model and not path.exists():
            siblings = [sibling.name for sibling in path.parent.glob("*")]
            raise UserError(
                f"sweep.models names {model!r}, where nothing is{nearest(path.name, siblings)}"
            )
        return [None], None
    there = _saved_steps(folder)
    if not there:
        raise UserError(f"run {model} has no finished checkpoint yet")
    trained_on = folder.description().task
    if isinstance(wanted, str):
        return there if wanted == "all" else there[-1:], trained_on
    for step in wanted:
        if step not in there:
            raise UserError(
                f"sweep.checkpoints names step {step}, of which run {model} has no checkpoint; it "
                f"has {', '.join(map(str, there))}"
            )
    return list(wanted), trained_on


def _saved_steps(folder: RunFolder) -> list[int]:
    manager = CheckpointManager(folder.checkpoints)
    steps = manager.steps()
    manager.close()
    return steps


def _predictor_step(model: str) -> int | None:
    """Newest step of the length predictor of a run; None where there is none."""
    run = run_of_source(model)
    if run is None or not run.length_predictor.checkpoints.is_dir():
        return None
    return next(reversed(_saved_steps(run.length_predictor)), None)


def _refuse_twice(where: str, values: Sequence[Any]) -> None:
    written = [json.dumps(value, default=repr) for value in values]
    for number, value in enumerate(written):
        if value in written[:number]:
            raise UserError(f"{where} has {value} twice")


def _seals(model: str, step: int | None, predictor_step: int | None) -> tuple[str | None, ...]:
    """Those of a run's checkpoint and of its length predictor's; none for foreign weights."""
    run = run_of_source(model)
    folders = [] if run is None or step is None else [run.checkpoints / str(step)]
    if run is not None and predictor_step is not None:
        folders.append(run.length_predictor.checkpoints / str(predictor_step))
    return tuple(manifest.digest(folder) for folder in folders)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _dataclass(evaluator: Evaluator) -> Any:
    if not dataclasses.is_dataclass(evaluator) or isinstance(evaluator, type):
        raise UserError(f"sweep.evaluator is {evaluator!r}, and must be a dataclass with a task")
    return evaluator


def _values(evaluator: Evaluator) -> dict[str, Any]:
    # repr for what JSON lacks: two settings that print alike are alike.
    return json.loads(json.dumps(dataclasses.asdict(_dataclass(evaluator)), default=repr))
