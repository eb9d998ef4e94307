"""Markdown of figures, and sentences on whether they say what was claimed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlm_jax.evaluation.html_parts import format_value

Document = Mapping[str, Any]
Cell = Mapping[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, followed by an empty one."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def figure(cell: Cell, name: str) -> tuple[float, float]:
    """A figure and its standard error, under whatever canvas it was measured."""
    figures = cell["figures"]
    found = name if name in figures else f"oracle_{name}"
    error = figures.get(f"{found}_se")
    return figures[found], math.nan if error is None else error


def shown(pair: Sequence[float]) -> str:
    """`value ± standard error`."""
    return format_value(*pair)


def number(value: float) -> str:
    """A count with separators of thousands."""
    return f"{value:,.0f}"


def minutes(seconds: float) -> str:
    """Minutes, to one decimal."""
    return f"{seconds / 60:.1f}"


def select(cells: Iterable[Cell], **values: Any) -> list[Cell]:
    """The cells whose settings have these values."""
    return [c for c in cells if all(c.get(name) == value for name, value in values.items())]


def standard_errors(difference: float, error: float) -> str:
    """A difference and how sure it is."""
    if not error > 0:
        return format_value(difference, error)
    return f"{format_value(difference, error)} ({abs(difference) / error:.1f} standard errors)"


def verdict(holds: bool | None, text: str) -> list[str]:
    """The sentence that stands under a table; None where the figures do not decide."""
    word = {True: "**Holds.**", False: "**Does not hold here.**", None: "**Undecided.**"}[holds]
    return [f"{word} {text}", ""]


def commands(document: Document) -> list[str]:
    """The command of the experiment, and those of `dlm` that it runs."""
    lines = [f"Command: `{document['command']}`, which runs", "", "```bash"]
    return [*lines, *document["commands"], "```", ""]


def costs(document: Document) -> list[str]:
    """Table of the trained models: steps, seeds and minutes."""
    rows = [
        [
            name,
            number(model["parameters"]),
            f"`{model['task']}`",
            number(model["steps"]),
            number(model["token_positions"]),
            str(model["seed"]),
            minutes(model["seconds"]),
        ]
        for name, model in document["models"].items()
    ]
    header = ["model", "parameters", "last stage", "steps", "token positions", "seed", "minutes"]
    return table(header, rows)
