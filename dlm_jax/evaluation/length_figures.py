"""The figure of predicted lengths: against the true ones, and how far their confidence holds."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

from dlm_jax.evaluation.figures import (
    GRID,
    MUTED,
    SERIES_COLORS,
    Figure,
    finish,
    new_axes,
    shorten,
    styled,
)
from dlm_jax.evaluation.run_records import Stage, number

_MAX_TASKS = 4
_LARGEST_DOT = 260.0  # square points

Prediction = tuple[float, float, float]  # true and predicted length in tokens, and its confidence


def length_figure(stages: Sequence[Stage]) -> Figure | None:
    """Draws predicted against true lengths and a reliability diagram of each task's newest answers
    on a predicted canvas; None where there are none."""
    newest: dict[str, tuple[int, list[Prediction]]] = {}
    for stage in stages:
        # Within a stage the latest step comes first; a later stage replaces an earlier one.
        for entry in reversed(stage.predictions):
            found = _predictions(entry.records)
            if found:
                newest[entry.task] = (entry.step, found)
    tasks = list(newest.items())[:_MAX_TASKS]
    if not tasks:
        return None
    with styled():
        figure, grid = new_axes(len(tasks), 2, 8.0, 3.4 * len(tasks))
        words = []
        for (left, right), (task, (step, found)) in zip(grid, tasks):
            _draw_lengths(left, found)
            error = _draw_reliability(right, found)
            left.set_title(f"{shorten(task, 34)} (step {step})")
            right.set_title(f"Reliability: calibration error {error:.3f}")
            mean = math.fsum(abs(true - guess) for true, guess, _ in found) / len(found)
            words.append(f"{task}: mean error {mean:.2f} tokens, calibration error {error:.3f}")
        description = (
            "Predicted against true lengths of answers (larger dots are more examples), and the "
            f"share of right predictions by their confidence, with ± 1 SE. {'; '.join(words)}."
        )
        return finish(figure, "lengths", "Predicted lengths", description)


def _predictions(records: Sequence[dict[str, Any]]) -> list[Prediction]:
    names = ("true_length", "predicted_length", "length_confidence")
    rows = [tuple(number(record.get(name)) for name in names) for record in records]
    return [(row[0], row[1], row[2]) for row in rows if all(map(math.isfinite, row))]


def _draw_lengths(axes: Any, found: Sequence[Prediction]) -> None:
    counts = collections.Counter((true, guess) for true, guess, _ in found)
    top = max(max(pair) for pair in counts) + 1
    most = max(counts.values())
    axes.plot([0, top], [0, top], color=MUTED, linewidth=1.0, linestyle="--")
    axes.scatter(
        [true for true, _ in counts],
        [guess for _, guess in counts],
        s=[8.0 + (_LARGEST_DOT - 8.0) * count / most for count in counts.values()],
        color=SERIES_COLORS[0],
        alpha=0.55,
        linewidth=0,
    )
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel("true length [tokens]")
    axes.set_ylabel("predicted length [tokens]")


def _draw_reliability(axes: Any, found: Sequence[Prediction]) -> float:
    """Draws a diagram and returns the expected calibration error."""
    # The room of sampling imports JAX.
    from dlm_jax.sampling.length_calibration import calibration_error, reliability

    bins = reliability([row[2] for row in found], [true == guess for true, guess, _ in found])
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle="--")
    for one in bins:
        axes.vlines(one.confidence, one.confidence, one.accuracy, color=GRID, linewidth=3)
    axes.errorbar(
        [one.confidence for one in bins],
        [one.accuracy for one in bins],
        yerr=[math.sqrt(one.accuracy * (1 - one.accuracy) / one.count) for one in bins],
        color=SERIES_COLORS[1],
        marker="o",
        markersize=4,
        linewidth=1.2,
        elinewidth=1.0,
    )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share that is right")
    return calibration_error(bins)
