"""A plot of a figure by the parts of its task, such as the accuracy in each subject of MMLU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dlm_jax.evaluation import figures as figures_lib
from dlm_jax.evaluation.figures import INK, SERIES_COLORS, WIDTH, Figure
from dlm_jax.evaluation.run_records import Stage, figure_names, interval, number, quantity


def part_figures(stages: Sequence[Stage]) -> list[Figure]:
    """Draws, for the last evaluation of each task, every figure that it has by parts."""
    drawn: list[Figure] = []
    with figures_lib.styled():
        for stage in stages:
            for task in stage.tasks:
                line = stage.evaluations(task)[-1]
                parts: dict[str, list[str]] = {}
                for name in figure_names([line]):
                    if "/" in name:
                        parts.setdefault(name.partition("/")[0], []).append(name)
                for figure, names in parts.items():
                    drawn.append(_draw(stage, task, figure, names, line, len(drawn) + 1))
    return drawn


def _draw(
    stage: Stage, task: str, name: str, parts: Sequence[str], line: Mapping[str, Any], index: int
) -> Figure:
    parts = sorted(parts, key=lambda part: (number(line[part]), part))
    figure, [[axes]] = figures_lib.new_axes(1, 1, 0.8 * WIDTH, 0.19 * len(parts) + 1.2)
    for height, part in enumerate(parts):
        value = number(line[part])
        axes.errorbar(
            value,
            height,
            xerr=figures_lib.error_bar(value, interval(line, part)),
            fmt="o",
            markersize=5,
            color=SERIES_COLORS[0],
            elinewidth=1.2,
        )
    for other, label, style in (
        (name, "all examples", "-"),
        (f"{name}_macro", "mean over parts", "--"),
    ):
        value = number(line.get(other))
        if math.isfinite(value):
            axes.axvline(value, color=INK, linewidth=1.0, linestyle=style, label=label)
    axes.set_yticks(
        range(len(parts)), [figures_lib.shorten(part.partition("/")[2], 44) for part in parts]
    )
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(-0.7, len(parts) - 0.3)
    axes.grid(axis="y", visible=False)
    measured = quantity(name)
    axes.set_xlabel(measured.axis)
    if measured.upper is not None:
        axes.set_xlim(-0.03 * measured.upper, 1.03 * measured.upper)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
    words = f"{measured.label} of {task} in {len(parts)} parts"
    return figures_lib.finish(
        figure,
        figures_lib.file_stem("parts", index, task),
        f"Parts: {task}",
        f"{stage.name}, step {line['step']}: {words}, with 95% intervals.",
    )
