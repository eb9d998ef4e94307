"""The HTML of a report: one file that needs neither network nor scripts, in light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dlm_jax.evaluation import metrics
from dlm_jax.evaluation.figures import Figure
from dlm_jax.evaluation.html_parts import figure_element, format_value, page, row_of, section
from dlm_jax.evaluation.results_table import results_tables
from dlm_jax.evaluation.run_records import VERDICTS, Predictions, Stage, figure_names, number


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _tile(name: str, value: str, note: str) -> str:
    return (
        f'<div class="tile"><span class="small quiet">{html.escape(name)}</span>'
        f'<b>{html.escape(value)}</b><span class="small quiet">{html.escape(note)}</span></div>'
    )


def _pair(value: Any) -> tuple[float, float]:
    if isinstance(value, list | tuple) and len(value) == 2:
        return number(value[0]), number(value[1])
    return number(value), math.nan


def summary_tiles(summary: Mapping[str, Any]) -> str:
    """Returns the headline of summary.json: a tile for each task, the NELBO and the time."""
    tiles = []
    tasks = summary.get("tasks")
    for task, entry in tasks.items() if isinstance(tasks, dict) else ():
        if not isinstance(entry, dict):
            continue
        value, count = number(entry.get("exact_match")), number(entry.get("n"))
        # The standard error of a fraction of independent examples.
        error = (
            math.sqrt(value * (1 - value) / count) if count > 0 and 0 <= value <= 1 else math.nan
        )
        before = format_value(number(entry.get("before")), digits=3)
        note = f"before {before}" + (f" · n = {count:,.0f}" if count > 0 else "")
        tiles.append(_tile(f"{task}: exact match", format_value(value, error, digits=3), note))
    nelbo = summary.get("nelbo")
    if isinstance(nelbo, dict):
        before = format_value(*_pair(nelbo.get("before")))
        after = format_value(*_pair(nelbo.get("after")))
        tiles.append(_tile("NELBO [nats/token]", after, f"before {before} · lower is better"))
    seconds = number(summary.get("seconds"))
    if math.isfinite(seconds):
        tiles.append(_tile("Wall-clock time", _duration(seconds), "of all stages"))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _signatures(stages: Sequence[Stage]) -> str:
    lines = [line for stage in stages for task in stage.tasks for line in stage.evaluations(task)]
    names = {name.removeprefix("oracle_") for name in figure_names(lines)}
    found = []
    for name in sorted(names):
        try:
            found.append(f"<li><code>{html.escape(metrics.signature(name))}</code></li>")
        except ValueError:
            continue
    if not found:
        return ""
    return (
        "<details><summary>How the metrics are computed</summary><div>"
        '<p class="small">Settings of the metrics unless a task sets others. Standard errors are '
        "bootstrapped over examples (0 where all examples scored alike), and so are intervals, "
        "but for Wilson's where all answers are right or all wrong; those of a NELBO per token are "
        "by the delta method, those of a mean of tasks are made of the tasks' own.</p>"
        f'<ul class="small">{"".join(found)}</ul></div></details>'
    )


def _mark(record: Mapping[str, Any]) -> tuple[str, str]:
    judged = record.get("metrics")
    for name in VERDICTS:
        value = number(judged.get(name)) if isinstance(judged, dict) else math.nan
        if math.isfinite(value):
            return ("right", "✓ right") if value == 1.0 else ("wrong", "✗ wrong")
    return ("quiet", "–")


def _text(value: Any, limit: int = 600) -> str:
    text = " / ".join(str(part) for part in value) if isinstance(value, list) else str(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]} … {text[-limit // 2 :]}"
    return f"<div>{html.escape(text)}</div>"


def _prediction_rows(records: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for record in records:
        css, mark = _mark(record)
        nfe = number(record.get("nfe"))
        rows.append(
            row_of(
                [
                    (css, mark),
                    ("text", _text(record.get("input", ""))),
                    ("text", _text(record.get("target", ""))),
                    ("text", _text(record.get("prediction", ""))),
                    ("number", format_value(number(record.get("score")), digits=2)),
                    ("number", f"{nfe:.0f}" if math.isfinite(nfe) else "–"),
                ]
            )
        )
    heads = [("", name) for name in ("", "Input", "Target", "Prediction")]
    heads += [("number", "Score"), ("number", "NFE")]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<table><thead><tr>{row_of(heads, 'th')}</tr></thead><tbody>{body}</tbody></table>"
        '<p class="small quiet">Score: mean log-probability of the answer, nats/token. '
        "NFE: denoiser evaluations of the row.</p>"
    )


def prediction_tables(predictions: Sequence[Predictions], shown: int) -> str:
    """Returns the first `shown` predictions of each task at its last step, and some wrong ones."""
    parts = []
    seen: set[tuple[str, str]] = set()
    for entry in predictions:
        if (entry.task, entry.canvas) in seen:
            continue
        seen.add((entry.task, entry.canvas))
        length = f", {entry.canvas} length" if entry.canvas in ("oracle", "predicted") else ""
        wrong = [record for record in entry.records[shown:] if _mark(record)[0] == "wrong"][:shown]
        parts.append(
            f"<h3>{html.escape(entry.task)}{length}</h3>"
            f'<div class="card"><p class="small quiet">The first '
            f"{min(shown, len(entry.records))} of {len(entry.records):,} at step "
            f"{entry.step:,}, not selected.</p>{_prediction_rows(entry.records[:shown])}</div>"
        )
        if wrong:
            parts.append(
                f"<details><summary>Further wrong answers ({len(wrong)})</summary>"
                f"<div>{_prediction_rows(wrong)}</div></details>"
            )
    return "".join(parts)


def _folded(stages: Sequence[Stage]) -> str:
    parts = []
    for stage in stages:
        for title, text in (("Configuration", stage.config), ("Model", stage.model_info)):
            if text and text.strip():
                heading = f"{title}: {stage.name}"
                parts.append(
                    f"<details><summary>{html.escape(heading)}</summary>"
                    f"<pre>{html.escape(text)}</pre></details>"
                )
    return "".join(parts)


def _traces(stages: Sequence[Stage]) -> str:
    # A document of its own: neither its styles nor its scripts reach this page.
    return "".join(
        f'<p class="small quiet">{html.escape(name)}</p>'
        f'<iframe title="Decode trace of {html.escape(name, quote=True)}" '
        f'sandbox="allow-scripts" srcdoc="{html.escape(text, quote=True)}"></iframe>'
        for stage in stages
        for name, text in stage.traces.items()
    )


def _is_result(figure: Figure) -> bool:
    return figure.name.startswith(("results", "parts_"))


def _notices(stages: Sequence[Stage]) -> str:
    notes = []
    for stage in stages:
        if stage.empty:
            notes.append(f"{stage.name} has written neither metrics nor predictions yet.")
        elif not stage.splits.get("train"):
            notes.append(f"{stage.name} has no training metrics.")
        if stage.unreadable:
            notes.append(
                f"{stage.name}: {stage.unreadable} line(s) were cut short, as when a process is "
                "killed while it writes, and are left out."
            )
    return "".join(f'<p class="notice">{html.escape(note)}</p>' for note in notes)


def render(
    title: str,
    stages: Sequence[Stage],
    figures: Sequence[Figure],
    summary: Mapping[str, Any] | None,
    *,
    shown: int = 8,
) -> str:
    """Returns the report as one HTML document.

    Args:
      title: heading of the page.
      stages: the runs, in order.
      figures: what `figures.draw` made of them.
      summary: summary.json, or None.
      shown: predictions shown of each task.
    """
    by_task: dict[tuple[str, str], Predictions] = {}
    for stage in stages:
        for entry in reversed(stage.predictions):
            by_task[entry.task, entry.canvas] = entry
    trained = ", ".join(
        f"{stage.name} ({stage.splits['train'][-1]['step']:,} steps)"
        for stage in stages
        if stage.splits.get("train")
    )
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="quiet">{html.escape(trained)}</p>' if trained else "",
        _notices(stages),
        summary_tiles(summary) if summary else "",
        section(
            "Results",
            "".join(figure_element(figure) for figure in figures if _is_result(figure))
            + results_tables(stages)
            + _signatures(stages),
        ),
        section(
            "Curves",
            "".join(figure_element(figure) for figure in figures if not _is_result(figure)),
        ),
        section("Predictions", prediction_tables(list(by_task.values()), shown)),
        section("Decode traces", _traces(stages)),
        section("Configuration", _folded(stages)),
    ]
    return page(title, body)
