"""The figures of a report: drawn once, written as PNG and as SVG that follows the page's theme."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
from collections.abc import Sequence
from typing import Any

from dlm_jax.evaluation.run_records import (
    VERDICTS,
    Quantity,
    Series,
    Stage,
    figure_names,
    number,
    quantity,
    series,
)

INK, MUTED, GRID, PAPER = "#1c2530", "#66717f", "#dde2e8", "#ffffff"
# Distinct in hue and in lightness, so that they stay apart for colour-blind readers and in print.
SERIES_COLORS = ("#2766b1", "#c9611a", "#2f8a57", "#8a55a8", "#b8374b", "#16808e", "#8a7420")
# Each colour is a variable of the page, whose dark theme gives it another value.
COLOR_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    PAPER: "--paper",
    GRID: "--grid",
    **{color: f"--series-{index}" for index, color in enumerate(SERIES_COLORS, start=1)},
}

_TRAINING_PANELS = ("loss", "accuracy", "learning_rate", "tokens_per_second")
HEADLINE = (*VERDICTS, "token_f1", "bleu", "rougeL", "nelbo", "nll", "topological_share")
MARKERS = "osD^vPX"
_MAX_LINES = len(SERIES_COLORS)
_MAX_ROWS = 40
WIDTH = 10.8
_PIXELS_PER_INCH = 100.0
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "figure.facecolor": PAPER,
    # A dollar sign in a task's name is no formula.
    "text.parse_math": False,
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
      name: file stem of the PNG.
      title: heading in the report.
      description: what it shows, in words, for those who do not see it.
      svg: an `<svg>` element for inlining, coloured by the page's variables.
      png: bytes of the PNG file, on white.
    """

    name: str
    title: str
    description: str
    svg: str
    png: bytes


def _inline_svg(svg: str, name: str, width: float) -> str:
    """Returns Matplotlib's SVG document as an element of an HTML page.

    Ids become unique to the figure, colours become variables of the page, and nothing is left
    that names another document.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"\s+xmlns(:\w+)?=\"[^\"]*\"", "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    # One scale for all figures, so that their text is of one size.
    attributes = rf'\1 style="max-width:{width * _PIXELS_PER_INCH:.0f}px" aria-hidden="true"'
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf"<svg {attributes}>", svg)
    for color, variable in COLOR_VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")


def finish(figure: Any, name: str, title: str, description: str) -> Figure:
    """Renders a Matplotlib figure as PNG and as SVG."""
    import matplotlib

    png, svg = io.BytesIO(), io.StringIO()
    # The layout is the slow part: once for both files.
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine(None)
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    # A salt of its own keeps the ids of a figure the same from one report to the next.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    inline = _inline_svg(svg.getvalue(), name, figure.get_figwidth())
    return Figure(name, title, description, inline, png.getvalue())


def styled() -> contextlib.AbstractContextManager[None]:
    """Within it, figures have the style of the reports."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def new_axes(
    rows: int,
    columns: int,
    width: float,
    height: float,
    height_ratios: Sequence[float] | None = None,
) -> tuple[Any, Any]:
    """Returns a Matplotlib figure of so many inches and its axes [rows, columns]."""
    # Not pyplot, which keeps every figure alive and chooses a display.
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)


def new_panels(count: int, height: float) -> tuple[Any, list[Any]]:
    """Returns a figure and `count` axes in rows of at most three, with room for a legend above."""
    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure, grid = new_axes(
        rows, columns, WIDTH * (0.6, 0.9, 1.0)[columns - 1], height * rows + 0.5
    )
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a fortieth of the curve, without start-up bias."""
    decay = 1.0 - 1.0 / max(1.0, len(values) / 40.0)
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = decay * average + (1.0 - decay) * value
        weight = decay * weight + (1.0 - decay)
        result.append(average / weight)
    return result


def shorten(name: str, limit: int) -> str:
    """Returns at most `limit` characters or so, the middle left out."""
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-(limit // 2) :]}"


def file_stem(kind: str, index: int, name: str) -> str:
    """Returns a name for a figure's file."""
    # Also a prefix of the ids in the SVG, hence ASCII without spaces.
    return f"{kind}_{index}_" + re.sub(r"[^A-Za-z0-9-]+", "_", name)


def tick_text(value: float, position: int | None = None) -> str:
    """Returns a number as axes show it: 250000 is 250k."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    if 0.0 < abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def _label_axes(axes: Any, measured: Quantity) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_title(measured.label[:1].upper() + measured.label[1:])
    axes.set_xlabel("step")
    axes.set_ylabel(measured.unit or measured.label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(tick_text))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(tick_text))


def training_figure(stage: Stage, index: int) -> Figure | None:
    """Draws loss, accuracy, learning rate and throughput of a stage; None if none was written."""
    lines = stage.splits.get("train", [])
    curves = {name: curve for name in _TRAINING_PANELS if (curve := series(lines, name)).steps}
    if not curves:
        return None
    figure, grid = new_axes(1, len(curves), WIDTH * max(2, len(curves)) / 4, 2.5)
    for axes, (name, curve) in zip(grid[0], curves.items()):
        _label_axes(axes, quantity(name))
        color = SERIES_COLORS[_TRAINING_PANELS.index(name)]
        noisy = name in ("loss", "accuracy") and len(curve.steps) > 20
        marker = "o" if len(curve.steps) == 1 else ""
        axes.plot(
            curve.steps, curve.values, color=color, alpha=0.3 if noisy else 1.0, marker=marker
        )
        if noisy:
            axes.plot(curve.steps, _smooth(curve.values), color=color)
        if name in ("tokens_per_second", "accuracy"):
            axes.set_ylim(bottom=0.0)
    last = {name: curve.values[-1] for name, curve in curves.items()}
    words = ", ".join(
        f"{quantity(name).label} {tick_text(float(f'{value:.3g}'))}" for name, value in last.items()
    )
    description = f"Training curves of {stage.name} up to step {lines[-1]['step']}: {words}."
    return finish(
        figure, file_stem("training", index, stage.name), f"Training: {stage.name}", description
    )


def _band(axes: Any, curve: Series, color: str) -> None:
    errors = [error if math.isfinite(error) else 0.0 for error in curve.errors]
    low = [value - error for value, error in zip(curve.values, errors)]
    high = [value + error for value, error in zip(curve.values, errors)]
    axes.fill_between(curve.steps, low, high, color=color, alpha=0.18, linewidth=0)


def evaluation_figure(stage: Stage, index: int) -> Figure | None:
    """Draws the headline figures of a stage's tasks along training, with a band of ± 1 SE.

    None where no task was evaluated at two steps. Beyond seven tasks the lines would be a
    tangle: the table of the report holds the others.
    """
    panels: dict[str, list[tuple[str, Series]]] = {}
    colors: dict[str, int] = {}
    for task in stage.tasks:
        lines = stage.evaluations(task)
        for name in figure_names(lines):
            curve = series(lines, name)
            if name.removeprefix("oracle_") in HEADLINE and len(curve.steps) > 1:
                colors.setdefault(task, len(colors))
                panels.setdefault(name, []).append((task, curve))
    panels = {
        name: shown
        for name, curves in panels.items()
        if (shown := [entry for entry in curves if colors[entry[0]] < _MAX_LINES])
    }
    if not panels:
        return None
    figure, grid = new_panels(len(panels), 3.0)
    handles: dict[str, Any] = {}
    for axes, (name, curves) in zip(grid, panels.items()):
        measured = quantity(name)
        _label_axes(axes, measured)
        for task, curve in curves:
            color, marker = SERIES_COLORS[colors[task]], MARKERS[colors[task]]
            _band(axes, curve, color)
            (handles[task],) = axes.plot(
                curve.steps, curve.values, color=color, marker=marker, markersize=4
            )
        if measured.upper == 1.0:
            axes.set_ylim(-0.03, 1.03)
    tasks = list(handles)
    labels = [shorten(task, 44) for task in tasks]
    columns = max(1, min(4, 110 // (max(map(len, labels)) + 8)))
    figure.legend(
        [handles[task] for task in tasks], labels, loc="outside upper left", ncols=columns
    )
    words = ", ".join(tasks) if len(tasks) <= 4 else f"{len(tasks)} tasks"
    description = f"Evaluation of {words} during {stage.name}, with bands of ± 1 SE."
    return finish(
        figure, file_stem("evaluation", index, stage.name), f"Evaluation: {stage.name}", description
    )


@dataclasses.dataclass(frozen=True)
class Change:
    """First and last value of a task's figure in a stage, each with its interval or NaN."""

    stage: str
    task: str
    first_step: int
    last_step: int
    first: tuple[float, tuple[float, float]]
    last: tuple[float, tuple[float, float]]


def _changes(stages: Sequence[Stage], name: str) -> list[Change]:
    found = []
    for stage in stages:
        for task in stage.tasks:
            curve = series(stage.evaluations(task), name)
            if curve.steps:
                found.append(
                    Change(
                        stage.name,
                        task,
                        curve.steps[0],
                        curve.steps[-1],
                        (curve.values[0], curve.intervals[0]),
                        (curve.values[-1], curve.intervals[-1]),
                    )
                )
    return found


def error_bar(value: float, interval: tuple[float, float]) -> list[list[float]]:
    """Returns the lengths [[below], [above]] of an interval around a value; 0 for NaN."""
    low, high = interval
    if not (math.isfinite(low) and math.isfinite(high)):
        return [[0.0], [0.0]]
    # The interval of a resampled figure may leave the figure itself out by a hair.
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _draw_changes(axes: Any, changes: Sequence[Change], measured: Quantity, staged: bool) -> None:
    for row, change in enumerate(changes):
        height = len(changes) - 1 - row
        if change.first_step != change.last_step:
            axes.plot(
                [change.first[0], change.last[0]], [height] * 2, color=GRID, linewidth=5, zorder=1
            )
            axes.errorbar(
                change.first[0],
                height,
                xerr=error_bar(*change.first),
                fmt="o",
                markersize=7,
                markerfacecolor=PAPER,
                color=MUTED,
                elinewidth=1.2,
                label="first evaluation",
            )
        axes.errorbar(
            change.last[0],
            height,
            xerr=error_bar(*change.last),
            fmt="o",
            markersize=7,
            color=SERIES_COLORS[0],
            elinewidth=1.6,
            label="last evaluation",
        )
    names = [shorten(f"{c.stage}: {c.task}" if staged else c.task, 44) for c in changes]
    axes.set_yticks(range(len(changes)), list(reversed(names)))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(-0.6, len(changes) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(measured.unit or measured.label)
    better = f" ({measured.better} is better)" if measured.better else ""
    axes.set_title(measured.label[:1].upper() + measured.label[1:] + better)
    if measured.upper is not None:
        axes.set_xlim(-0.03 * measured.upper, 1.03 * measured.upper)


def results_figure(stages: Sequence[Stage]) -> Figure | None:
    """Draws first and last evaluation of every task with 95% intervals; None without any."""
    lines = [line for stage in stages for task in stage.tasks for line in stage.evaluations(task)]
    names = [n for n in figure_names(lines) if n.removeprefix("oracle_") in HEADLINE]
    panels = {name: changes for name in names if (changes := _changes(stages, name)[:_MAX_ROWS])}
    if not panels:
        return None
    sizes = [len(changes) for changes in panels.values()]
    # Every panel has the same space for a row, whatever the number of rows.
    heights = [0.34 * size + 0.95 for size in sizes]
    figure, grid = new_axes(len(panels), 1, WIDTH, sum(heights) + 0.4, heights)
    staged = len({stage.name for stage in stages if stage.tasks}) > 1
    for axes, (name, changes) in zip(grid[:, 0], panels.items()):
        _draw_changes(axes, changes, quantity(name), staged)
    # Not every panel has a first evaluation.
    found = [pair for axes in grid[:, 0] for pair in zip(*axes.get_legend_handles_labels())]
    handles = {label: handle for handle, label in found}
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=2)
    tasks = sorted({change.task for changes in panels.values() for change in changes})
    words = ", ".join(tasks) if len(tasks) <= 4 else f"{len(tasks)} tasks"
    description = f"First and last evaluation of {words}, with 95% intervals."
    if max(sizes) == _MAX_ROWS:
        description += f" At most {_MAX_ROWS} rows are drawn; the table has all."
    return finish(figure, "results", "First and last evaluation", description)


def _verdicts(records: Sequence[dict[str, Any]]) -> list[tuple[float, bool]]:
    pairs = []
    for record in records:
        judged = record.get("metrics")
        score = number(record.get("score"))
        if not isinstance(judged, dict) or not math.isfinite(score):
            continue
        values = [number(judged.get(name)) for name in VERDICTS]
        values = [value for value in values if math.isfinite(value)]
        if values:
            pairs.append((score, values[0] == 1.0))
    return pairs


def confidence_figure(stages: Sequence[Stage]) -> Figure | None:
    """Draws how sure right and wrong answers were, one panel a task; None where none is judged."""
    newest: dict[str, tuple[str, list[tuple[float, bool]]]] = {}
    for stage in stages:
        # Within a stage the latest step comes first; a later stage replaces an earlier one.
        for entry in reversed(stage.predictions):
            pairs = _verdicts(entry.records)
            if pairs:
                title = entry.task + (", oracle length" if entry.canvas == "oracle" else "")
                newest[title] = (f"{title} (step {entry.step})", pairs)
    panels = list(newest.values())[:6]
    if not panels:
        return None
    figure, grid = new_panels(len(panels), 2.6)
    for axes, (title, pairs) in zip(grid, panels):
        right = [score for score, is_right in pairs if is_right]
        wrong = [score for score, is_right in pairs if not is_right]
        axes.hist(
            [right, wrong],
            bins=20,
            stacked=True,
            color=[SERIES_COLORS[2], SERIES_COLORS[4]],
            label=["right", "wrong"],
        )
        axes.set_title(shorten(title, 38))
        axes.set_xlabel("mean log-probability of the answer [nats/token]")
        axes.set_ylabel("examples")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2)
    description = "Histograms of the model's own score of right and of wrong answers."
    return finish(figure, "confidence", "Confidence of right and wrong answers", description)


def draw(stages: Sequence[Stage]) -> list[Figure]:
    """Draws every figure that the stages have data for, in the order of the report."""
    with styled():
        found = [results_figure(stages)]
        found += [training_figure(stage, index) for index, stage in enumerate(stages, start=1)]
        found += [evaluation_figure(stage, index) for index, stage in enumerate(stages, start=1)]
        found.append(confidence_figure(stages))
    return [figure for figure in found if figure is not None]
