"""Reads back what a run has written: its metrics, predictions, configuration and trace."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlm_jax.errors import UserError, nearest
from dlm_jax.evaluation.json_lines import read_json_lines
from dlm_jax.evaluation.likelihood import NORMAL_95

EVALUATION_PREFIX = "eval/"
# What is beside a figure says how sure it is: its standard error and the ends of its interval.
SPREADS = ("_se", "_low", "_high")
# Axes add and subtract their ends, which must not overflow.
_LARGEST = 1e300


@dataclasses.dataclass(frozen=True)
class Quantity:
    """How a figure is named and read by people.

    Attributes:
      label: name in words.
      unit: unit, '' where it is a plain number.
      better: 'higher', 'lower' or '' where neither is better.
      upper: end of the scale where it has one.
    """

    label: str
    unit: str = ""
    better: str = ""
    upper: float | None = None

    @property
    def axis(self) -> str:
        """Axis label with the unit in brackets."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label


QUANTITIES: dict[str, Quantity] = {
    "loss": Quantity("training loss", "nats/token, weighted", "lower"),
    "learning_rate": Quantity("learning rate"),
    "tokens_per_second": Quantity("throughput", "tokens/s", "higher"),
    "exact_match": Quantity("exact match", "fraction", "higher", 1.0),
    "numeric_answer": Quantity("numeric answer", "fraction", "higher", 1.0),
    "option_accuracy": Quantity("accuracy of options", "fraction", "higher", 1.0),
    "final_answer": Quantity("final answer", "fraction", "higher", 1.0),
    "equations_correct": Quantity("equations correct", "fraction", "higher", 1.0),
    "topological_share": Quantity("written in order of reasoning", "fraction", "", 1.0),
    "topological_share_chance": Quantity("in order by chance", "fraction", "", 1.0),
    "topological_share_right": Quantity("in order, of right answers", "fraction", "", 1.0),
    "strict_topological_share": Quantity("strictly in order of reasoning", "fraction", "", 1.0),
    "strict_topological_share_chance": Quantity("strictly in order by chance", "fraction", "", 1.0),
    "order_violations": Quantity("pairs in the wrong order", "an answer", "lower"),
    "early": Quantity("written before what it builds on", "fraction", "lower", 1.0),
    "answers_read": Quantity("answers of the known form", "fraction", "higher", 1.0),
    "token_f1": Quantity("token F1", "fraction", "higher", 1.0),
    "bleu": Quantity("BLEU", "0–100", "higher", 100.0),
    "bleu_lowercase": Quantity("BLEU, lower-cased", "0–100", "higher", 100.0),
    "rouge1": Quantity("ROUGE-1", "0–100", "higher", 100.0),
    "rouge2": Quantity("ROUGE-2", "0–100", "higher", 100.0),
    "rougeL": Quantity("ROUGE-L", "0–100", "higher", 100.0),
    "nelbo": Quantity("NELBO", "nats/token", "lower"),
    "nelbo_per_example": Quantity("NELBO of an example", "nats", "lower"),
    "nll": Quantity("negative log-likelihood", "nats/token", "lower"),
    "nll_per_example": Quantity("negative log-likelihood of an example", "nats", "lower"),
    "perplexity": Quantity("perplexity", "", "lower"),
    "perplexity_bound": Quantity("perplexity bound", "", "lower"),
    "bits_per_character": Quantity("bits per character", "bits", "lower"),
    "score": Quantity("mean log-probability", "nats/token"),
    "nfe": Quantity("denoiser evaluations", "a row"),
    "length_mae": Quantity("error of predicted lengths", "tokens", "lower"),
    "length_exact": Quantity("predicted lengths that are right", "fraction", "higher", 1.0),
    "length_within_1": Quantity("predicted lengths within 1 token", "fraction", "higher", 1.0),
    "length_within_2": Quantity("predicted lengths within 2 tokens", "fraction", "higher", 1.0),
    "length_in_beam": Quantity("true lengths in the beam", "fraction", "higher", 1.0),
    "length_nll": Quantity("NLL of true lengths", "nats", "lower"),
    "length_ece": Quantity("calibration error of lengths", "fraction", "lower", 1.0),
    "length_correlation": Quantity("correlation of lengths", "", "higher", 1.0),
    "accuracy": Quantity("training accuracy", "fraction", "higher", 1.0),
}


def quantity(name: str) -> Quantity:
    """Returns how a figure reads: an `oracle_` figure, a mean or a part says so.

    An unknown figure is its own name.
    """
    if name in QUANTITIES:
        return QUANTITIES[name]
    if name.startswith("oracle_"):
        base = quantity(name.removeprefix("oracle_"))
        return dataclasses.replace(base, label=f"{base.label}, oracle length")
    if name.endswith("_macro"):
        base = quantity(name.removesuffix("_macro"))
        return dataclasses.replace(base, label=f"{base.label}, mean over groups")
    if "/" in name:
        figure, _, part = name.partition("/")
        base = quantity(figure)
        return dataclasses.replace(base, label=f"{base.label}, {part}")
    return Quantity(name.replace("_", " "))


# Figures that say of one answer whether it is right, best known first.
VERDICTS = ("exact_match", "numeric_answer", "option_accuracy", "final_answer", "equations_correct")


@dataclasses.dataclass(frozen=True)
class Series:
    """A figure along training, each list [points].

    Attributes:
      steps: of training.
      values: of the figure.
      errors: standard errors, or NaN.
      intervals: (low, high) of 95%, or (NaN, NaN).
    """

    steps: list[int]
    values: list[float]
    errors: list[float]
    intervals: list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of a task at a step, on a canvas such as 'fixed', 'search' or 'oracle'.

    The task is `<task>@test` where the examples are not those of validation.
    """

    task: str
    step: int
    canvas: str
    records: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is on disk of one run.

    Attributes:
      name: how the report calls it.
      folder: the run folder.
      splits: lines of metrics.jsonl by split ('train', 'eval/<task>'), ascending steps.
      predictions: latest first within a task.
      config: text of config.gin, or None.
      model_info: text of model_info.txt, or None.
      traces: pages that show how answers were written, by a name for each: that of the run, and
        the latest of each task.
      unreadable: lines skipped because they were cut short.
    """

    name: str
    folder: Path
    splits: dict[str, list[dict[str, Any]]]
    predictions: list[Predictions]
    config: str | None = None
    model_info: str | None = None
    traces: dict[str, str] = dataclasses.field(default_factory=dict)
    unreadable: int = 0

    @property
    def tasks(self) -> list[str]:
        """Names of the evaluated tasks, in the order of their first evaluation."""
        return [
            name.removeprefix(EVALUATION_PREFIX)
            for name in self.splits
            if name.startswith(EVALUATION_PREFIX)
        ]

    def evaluations(self, task: str) -> list[dict[str, Any]]:
        """Returns the evaluation lines of a task, ascending steps."""
        return self.splits.get(EVALUATION_PREFIX + task, [])

    @property
    def empty(self) -> bool:
        """Whether the run has written neither metrics nor predictions."""
        return not any(self.splits.values()) and not self.predictions


def number(value: Any) -> float:
    """Returns a JSON value as a float, NaN where it is no number or too large for any axis."""
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > _LARGEST:
        return math.nan
    return float(value)


def series(lines: Iterable[Mapping[str, Any]], name: str) -> Series:
    """Returns the finite values of a figure in ascending lines of metrics."""
    finite = [line for line in lines if math.isfinite(number(line.get(name)))]
    return Series(
        steps=[int(line["step"]) for line in finite],
        values=[number(line[name]) for line in finite],
        errors=[number(line.get(f"{name}_se")) for line in finite],
        intervals=[interval(line, name) for line in finite],
    )


def interval(
    line: Mapping[str, Any], name: str, *, within_scale: bool = True
) -> tuple[float, float]:
    """Returns the ends of a figure's 95% interval, or (NaN, NaN).

    Those that were measured (`<name>_low`, `<name>_high`), else 1.96 standard errors to each side,
    within the scale of the figure unless that is not wanted.
    """
    low, high = number(line.get(f"{name}_low")), number(line.get(f"{name}_high"))
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    value, error = number(line.get(name)), number(line.get(f"{name}_se"))
    if not (math.isfinite(value) and math.isfinite(error)):
        return math.nan, math.nan
    upper = quantity(name).upper
    low, high = value - NORMAL_95 * error, value + NORMAL_95 * error
    return (max(0.0, low), min(upper, high)) if within_scale and upper is not None else (low, high)


def figure_names(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the figures in evaluation lines, in the order of `QUANTITIES`."""
    present = {
        name
        for line in lines
        for name, value in line.items()
        if math.isfinite(number(value)) and not name.endswith(SPREADS)
    }
    present -= {"step", "n", "seconds", "time", "maskable_tokens", "answers_right"}
    order = list(QUANTITIES)

    def rank(name: str) -> tuple[int, str]:
        base = name.removeprefix("oracle_").partition("/")[0].removesuffix("_macro")
        return (order.index(base) if base in order else len(order), name)

    return sorted(present, key=rank)


def _splits(records: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Groups metrics by split. A resumed run repeats steps: what it wrote last counts."""
    merged: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        step = number(record.get("step"))
        if not math.isfinite(step):
            continue
        lines = merged.setdefault(str(record.get("split", "train")), {})
        lines[int(step)] = _merged(lines.get(int(step), {}), record)
    return {split: [lines[step] for step in sorted(lines)] for split, lines in merged.items()}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of two evaluations at a step, of which the later one counts.

    Those of other examples, which their number tells, do not stand beside its own; nor does an
    interval that was measured with an earlier value.
    """
    before, now = number(old.get("n")), number(new.get("n"))
    if math.isfinite(before) and math.isfinite(now) and before != now:
        return dict(new)
    stale = {name + spread for name in new for spread in SPREADS}
    return {**{name: value for name, value in old.items() if name not in stale}, **new}


def _predictions(folder: Path) -> tuple[list[Predictions], int]:
    found: list[Predictions] = []
    unreadable = 0
    root = folder / "eval"
    for path in sorted(root.rglob("*.jsonl")):
        step, _, kind = path.name.removesuffix(".jsonl").partition(".")
        if not step.isdecimal():
            continue
        records, skipped = read_json_lines(path)
        unreadable += skipped
        if records:
            split = records[0].get("split", "validation")
            suffix = "" if split == "validation" else f"@{split}"
            task = path.parent.relative_to(root).as_posix() + suffix
            canvas = "oracle" if "oracle" in kind.split(".") else str(records[0].get("canvas"))
            found.append(Predictions(task, int(step), canvas, records))
    return sorted(found, key=lambda entry: (entry.task, entry.canvas, -entry.step)), unreadable


def _with_predicted_figures(
    splits: dict[str, list[dict[str, Any]]], predictions: Sequence[Predictions]
) -> dict[str, list[dict[str, Any]]]:
    """Adds the means of the predictions of evaluations that metrics.jsonl does not know."""
    known = {(split, int(line["step"])) for split, lines in splits.items() for line in lines}
    extra: list[dict[str, Any]] = []
    for entry in predictions:
        split = EVALUATION_PREFIX + entry.task
        if (split, entry.step) in known:
            continue
        judged = [
            record["metrics"] for record in entry.records if isinstance(record.get("metrics"), dict)
        ]
        line: dict[str, Any] = {"step": entry.step, "split": split, "n": len(entry.records)}
        for name in sorted({name for metrics in judged for name in metrics}):
            values = [number(metrics.get(name)) for metrics in judged]
            values = [value for value in values if math.isfinite(value)]
            mean = math.fsum(values) / len(values) if values else math.nan
            prefix = "oracle_" if entry.canvas == "oracle" else ""
            line[prefix + name] = mean
            if len(values) > 1:
                spread = math.fsum((value - mean) ** 2 for value in values)
                line[f"{prefix}{name}_se"] = math.sqrt(spread / (len(values) - 1) / len(values))
        extra.append(line)
    return _splits([line for lines in splits.values() for line in lines] + extra)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _traces(folder: Path, name: str) -> dict[str, str]:
    found = {name: _text(folder / "trace.html")}
    latest: dict[Path, tuple[int, Path]] = {}
    for path in sorted((folder / "eval").rglob("*.html")):
        number_of_step = path.name.partition(".")[0]
        if number_of_step.isdecimal():
            newest = latest.get(path.parent, (0, path))
            latest[path.parent] = max(newest, (int(number_of_step), path))
    for task, (step, path) in latest.items():
        title = f"{name}: {task.relative_to(folder / 'eval').as_posix()}, step {step}"
        found[title] = _text(path)
    return {title: text for title, text in found.items() if text}


def _existing_folder(path: Path) -> Path:
    if path.is_dir():
        return path
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    hint = nearest(path.name, [sibling.name for sibling in siblings if sibling.is_dir()])
    what = "is not a folder" if path.exists() else "does not exist"
    raise UserError(f"run folder {path} {what}{hint}")


def read_stage(folder: str | Path, name: str | None = None) -> Stage:
    """Reads a run folder; files that are not there yet are empty in the result.

    Raises:
      UserError: the folder does not exist, or a file in it is not what its name says.
    """
    folder = _existing_folder(Path(folder))
    records: list[dict[str, Any]] = []
    unreadable = 0
    if (folder / "metrics.jsonl").exists():
        records, unreadable = read_json_lines(folder / "metrics.jsonl")
    predictions, skipped = _predictions(folder)
    return Stage(
        name=folder.name if name is None else name,
        folder=folder,
        splits=_with_predicted_figures(_splits(records), predictions),
        predictions=predictions,
        config=_text(folder / "config.gin"),
        model_info=_text(folder / "model_info.txt"),
        traces=_traces(folder, folder.name if name is None else name),
        unreadable=unreadable + skipped,
    )


def stage_folders(run_dir: str | Path) -> dict[str, Path]:
    """Returns the runs of a folder by name: itself, or else its sub-folders that hold metrics.

    The length predictor of a run follows it.

    Raises:
      UserError: the folder does not exist.
    """
    folder = _existing_folder(Path(run_dir))
    runs = [folder]
    if not (folder / "metrics.jsonl").exists():
        runs = sorted(path.parent for path in folder.glob("*/metrics.jsonl")) or runs
    found: dict[str, Path] = {}
    for run in runs:
        name = run.resolve().name
        found[name] = run
        predictor = run / "length_predictor"
        if (predictor / "metrics.jsonl").exists():
            found[f"{name}: length predictor"] = predictor
    return found


def read_summary(folder: str | Path) -> dict[str, Any] | None:
    """Returns summary.json of a folder, or None where there is none.

    Raises:
      UserError: it is not a JSON object.
    """
    text = _text(Path(folder) / "summary.json")
    if text is None:
        return None
    try:
        summary = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{Path(folder) / 'summary.json'} is not JSON: {error}") from error
    if not isinstance(summary, dict):
        raise UserError(f"{Path(folder) / 'summary.json'} does not hold a JSON object")
    return summary
