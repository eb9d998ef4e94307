"""The results of a report as tables: by family of tasks, by task, and folded by part of a task."""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlm_jax.evaluation.figures import HEADLINE
from dlm_jax.evaluation.html_parts import format_value, interval_text, row_of
from dlm_jax.evaluation.run_records import Stage, figure_names, interval, number, quantity

# Demonstrations and their language, what besides the answers was judged, and on which examples:
# `x_v1.y_3_shot/reasoning_order@test`.
_KIND = re.compile(r"(?:(?:_english)?_\d+_shot)?(?:[/@].*)?$")
# Families of so many tasks are shown unfolded.
_UNFOLDED = 8
_HEADS = (
    ("", "Stage"),
    ("", "Task"),
    ("", "Figure"),
    ("number", "First ± SE"),
    ("number", "at step"),
    ("number", "Last ± SE"),
    ("number", "95% interval"),
    ("number", "at step"),
    ("number", "n"),
)


@dataclasses.dataclass(frozen=True)
class _Result:
    """A figure of a task, or of several together, at its first and at its last evaluation.

    Attributes:
      stage: of the report.
      task: or what stands for several.
      name: of the figure.
      first: line of metrics with the figure, its spread, `step` and `n`.
      last: likewise; the same object where there was one evaluation.
    """

    stage: str
    task: str
    name: str
    first: Mapping[str, Any]
    last: Mapping[str, Any]


def results_tables(stages: Sequence[Stage]) -> str:
    """Returns the tables of first and last evaluations; '' where there is none.

    Tasks of one family, such as `bbh_v1.*`, have a row for their mean and a table of their own;
    parts of a task, such as the subjects of MMLU, have a folded table below.
    """
    summary: list[_Result] = []
    tables: list[str] = []
    for stage in stages:
        for family, tasks in _families(stage.tasks).items():
            results = [result for task in tasks for result in _results(stage, task)]
            whole = [result for result in results if "/" not in result.name]
            if len(tasks) == 1:
                summary += whole
            else:
                summary += _means(stage.name, family, whole)
                title = f"{stage.name}: {len(tasks)} tasks of {family}"
                tables.append(_folded(title, _table(whole), unfolded=len(tasks) <= _UNFOLDED))
            tables += _part_tables([result for result in results if "/" in result.name])
    shown = f'<div class="card">{_table(summary)}</div>' if summary else ""
    return shown + "".join(tables)


def _families(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Groups names such as `bbh_v1.snarks_3_shot` by what stands before the dot and by shots."""
    families: dict[str, list[str]] = {}
    for task in tasks:
        kind = _KIND.search(task)
        name = task.partition(".")[0] + (kind[0] if kind and "." in task else "")
        families.setdefault(name, []).append(task)
    return families


def _results(stage: Stage, task: str) -> list[_Result]:
    lines = stage.evaluations(task)
    found = []
    for name in figure_names(lines):
        have = [line for line in lines if math.isfinite(number(line.get(name)))]
        found.append(_Result(stage.name, task, name, have[0], have[-1]))
    return found


def _means(stage: str, family: str, results: Sequence[_Result]) -> list[_Result]:
    """The mean over tasks of each headline figure that several of them have."""
    found = []
    for name in dict.fromkeys(result.name for result in results):
        own = [result for result in results if result.name == name]
        if name.removeprefix("oracle_") in HEADLINE and len(own) > 1:
            title = f"{family}, mean of {len(own)} tasks"
            once = all(result.first is result.last for result in own)
            last = _mean([result.last for result in own], name)
            first = last if once else _mean([result.first for result in own], name)
            found.append(_Result(stage, title, name, first, last))
    return found


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """A line for the mean of lines; their examples differ, so that their errors are independent.

    The interval is made of theirs, each side by itself (Zou and Donner 2008): tasks without a right
    answer have a standard error of 0, and their mean is no more certain than they are.
    """
    count = len(lines)
    values = [number(line[name]) for line in lines]
    mean = math.fsum(values) / count
    ends = [interval(line, name, within_scale=False) for line in lines]

    def spread(errors: Iterable[float]) -> float:
        return math.hypot(*errors) / count

    return {
        name: mean,
        f"{name}_se": spread(number(line.get(f"{name}_se")) for line in lines),
        f"{name}_low": mean - spread(value - low for value, (low, _) in zip(values, ends)),
        f"{name}_high": mean + spread(high - value for value, (_, high) in zip(values, ends)),
        "step": max(int(line["step"]) for line in lines),
        "n": math.fsum(number(line.get("n")) for line in lines),
    }


def _part_tables(results: Sequence[_Result]) -> list[str]:
    """A folded table for each figure that a task has by parts: `accuracy/anatomy` and so on."""
    grouped: dict[tuple[str, str, str], list[_Result]] = {}
    for result in results:
        figure, _, part = result.name.partition("/")
        key = (result.stage, result.task, figure)
        grouped.setdefault(key, []).append(dataclasses.replace(result, task=part))
    return [
        _folded(f"{stage}: {quantity(figure).label} of {task} in {len(parts)} parts", _table(parts))
        for (stage, task, figure), parts in grouped.items()
    ]


def _folded(title: str, table: str, *, unfolded: bool = False) -> str:
    state = " open" if unfolded else ""
    return f"<details{state}><summary>{html.escape(title)}</summary><div>{table}</div></details>"


def _table(results: Sequence[_Result]) -> str:
    body = "".join(f"<tr>{row_of(_cells(result))}</tr>" for result in results)
    return f"<table><thead><tr>{row_of(_HEADS, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _cells(result: _Result) -> list[tuple[str, str]]:
    name, last = result.name, result.last
    values = [
        format_value(number(line[name]), number(line.get(f"{name}_se")))
        for line in (result.first, last)
    ]
    once = result.first is last
    count = number(last.get("n"))
    return [
        ("name", html.escape(result.stage)),
        ("name", html.escape(result.task)),
        ("name", html.escape(quantity(name.partition("/")[0]).axis)),
        ("number", "–" if once else values[0]),
        ("number", "–" if once else f"{result.first['step']:,}"),
        ("number", f"<strong>{values[1]}</strong>"),
        ("number", interval_text(last, name) or "–"),
        ("number", f"{last['step']:,}"),
        ("number", f"{count:,.0f}" if math.isfinite(count) and "/" not in name else "–"),
    ]
