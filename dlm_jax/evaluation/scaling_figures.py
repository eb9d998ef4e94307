"""The plots of a sweep: each headline figure against size, denoiser evaluations and training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlm_jax.evaluation import figures as figures_lib
from dlm_jax.evaluation.figures import MARKERS, SERIES_COLORS, Figure
from dlm_jax.evaluation.run_records import figure_names, interval, quantity
from dlm_jax.evaluation.sweep import CellResult

ORACLE = "oracle_"


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of a cell on one task; a mixture makes several rows of a cell."""

    result: CellResult
    task: str
    figures: Mapping[str, float]


def rows_of(results: Sequence[CellResult]) -> list[Row]:
    """Takes results apart by task."""
    return [
        Row(result, task, figures)
        for result in results
        for task, figures in result.tasks.items()
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Axis:
    """What a plot has along it.

    Attributes:
      name: as labels say it.
      place: where a row stands; NaN where it has no place.
      leaves_out: coordinates of a row that the axis itself tells.
    """

    name: str
    place: Callable[[Row], float]
    leaves_out: tuple[str, ...]


def _nfe(row: Row) -> float:
    return row.figures.get("nfe", row.figures.get(f"{ORACLE}nfe", math.nan))


def _step(row: Row) -> float:
    step = row.result.cell.step
    return float(step) if step else math.nan  # a logarithm has no place for step 0


_AXES = (
    _Axis("parameters", lambda row: float(row.result.parameters), ("model",)),
    _Axis("denoiser evaluations (NFE)", _nfe, ("steps",)),
    _Axis("training step", _step, ("step",)),
)


@dataclasses.dataclass(frozen=True)
class _Point:
    """A figure of a row; `name` is the name that the figure has there, with its `oracle_`."""

    row: Row
    name: str

    @property
    def value(self) -> float:
        return self.row.figures[self.name]


def scaling_figures(rows: Sequence[Row]) -> list[Figure]:
    """Draws the headline figures of each task, those that nothing can be drawn along left out.

    A panel is an axis: size, denoiser evaluations, training. A line joins the cells that differ in
    what is on the axis only; bars are 95% intervals. Answers on a canvas of oracle length stand in
    the same panel, under that name.
    """
    drawn = []
    with figures_lib.styled():
        for number, task in enumerate(dict.fromkeys(row.task for row in rows)):
            own = [row for row in rows if row.task == task]
            present = figure_names([dict(row.figures) for row in own])
            for name in dict.fromkeys(each.removeprefix(ORACLE) for each in present):
                if name in figures_lib.HEADLINE:
                    figure = _task_figure(_points(own, name), task, name, number)
                    drawn += [figure] if figure is not None else []
    return drawn


def _points(rows: Sequence[Row], name: str) -> list[_Point]:
    return [
        _Point(row, each)
        for row in rows
        for each in (name, ORACLE + name)
        if math.isfinite(row.figures.get(each, math.nan))
    ]


def _coordinates(point: _Point) -> dict[str, str]:
    cell = point.row.result.cell
    path = Path(cell.model)
    run = path.parents[1] if path.parent.name == "checkpoints" else path
    places = {"model": str(run), "step": "" if cell.step is None else str(cell.step)}
    places |= {name: str(value) for name, value in cell.settings.items()}
    return places | ({"canvas": "oracle"} if point.name.startswith(ORACLE) else {})


def _run_names(runs: Sequence[str]) -> dict[str, str]:
    """Each run by as few of the last parts of its path as tell it from the others."""
    parts = {run: Path(run).parts for run in runs}
    longest = max((len(one) for one in parts.values()), default=0)
    for count in range(1, longest):
        names = {run: "/".join(one[-count:]) for run, one in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {run: run for run in runs}


def _labels(points: Sequence[_Point], axis: _Axis) -> list[str]:
    """Names the line of each point by the coordinates that vary, but for those of the axis."""
    found = [_coordinates(point) for point in points]
    steps: dict[str, set[str]] = {}
    for places in found:
        steps.setdefault(places["model"], set()).add(places["step"])
    told = set(axis.leaves_out)
    if all(len(own) == 1 for own in steps.values()):
        told.add("step")  # the model tells it
    names = dict.fromkeys(name for places in found for name in places if name not in told)
    varying = [name for name in names if len({places.get(name) for places in found}) > 1]
    runs = _run_names([places["model"] for places in found])
    return [
        ", ".join(
            runs[places[name]] if name == "model" else f"{name} {places[name]}"
            for name in varying
            if places.get(name)
        )
        for places in found
    ]


def _lines(points: Sequence[_Point], axis: _Axis) -> dict[str, list[_Point]]:
    """The points of each line by its label; empty where no line has two places."""
    placed = [point for point in points if math.isfinite(axis.place(point.row))]
    lines: dict[str, list[_Point]] = {}
    for point, label in zip(placed, _labels(placed, axis), strict=True):
        lines.setdefault(label, []).append(point)
    if all(len({axis.place(point.row) for point in line}) < 2 for line in lines.values()):
        return {}
    return lines


def _task_figure(points: Sequence[_Point], task: str, name: str, number: int) -> Figure | None:
    panels = {axis: lines for axis in _AXES if (lines := _lines(points, axis))}
    if not panels:
        return None
    rows = max(min(len(lines), len(SERIES_COLORS)) for lines in panels.values())
    figure, grid = figures_lib.new_panels(len(panels), 2.6 + 0.17 * rows)
    left_out = 0
    for axes, (axis, lines) in zip(grid, panels.items()):
        shown = list(lines.items())[: len(SERIES_COLORS)]
        left_out = max(left_out, len(lines) - len(shown))
        for index, (label, line) in enumerate(shown):
            _draw_line(axes, line, axis, index, label)
        _label_axes(axes, axis, [point for _, line in shown for point in line])
        axes.set_ylabel(quantity(name).axis)
        if any(label for label, _ in shown):
            # Below its own panel: the lines of two panels are not the same.
            axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.2), fontsize=8)
    words = quantity(name).label
    along = " and ".join(axis.name for axis in panels)
    description = f"{task}: {words} against {along}, with 95% intervals."
    if left_out:
        description += f" {left_out} more lines are left out; the table has all."
    return figures_lib.finish(figure, f"scaling_{number}_{name}", description, description)


def _label_axes(axes: Any, axis: _Axis, points: Sequence[_Point]) -> None:
    axes.set_xlabel(axis.name)
    axes.set_xscale("log")
    places = sorted({axis.place(point.row) for point in points})
    ticks = places[:1]
    for place in places[1:]:
        # A logarithmic axis has room for about six labels.
        if math.log(place / ticks[-1]) >= math.log(places[-1] / places[0]) / 6:
            ticks.append(place)
    axes.set_xticks(ticks, [figures_lib.tick_text(float(f"{x:.2g}")) for x in ticks])
    axes.set_xticks([], minor=True)


def _draw_line(axes: Any, points: Sequence[_Point], axis: _Axis, index: int, label: str) -> None:
    points = sorted(points, key=lambda point: axis.place(point.row))
    places = [axis.place(point.row) for point in points]
    bars = [
        figures_lib.error_bar(point.value, interval(point.row.figures, point.name))
        for point in points
    ]
    axes.errorbar(
        places,
        [point.value for point in points],
        yerr=[[below[0] for below, _ in bars], [above[0] for _, above in bars]],
        color=SERIES_COLORS[index],
        # Two models of one size are two points, and no trend.
        linestyle="-" if len(set(places)) == len(places) else "none",
        marker=MARKERS[index],
        markersize=5,
        elinewidth=1.0,
        capsize=2,
        label=figures_lib.shorten(label, 48),
    )
