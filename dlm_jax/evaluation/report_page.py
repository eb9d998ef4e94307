"""The HTML of a report: one file that needs neither network nor scripts, in light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlm_jax.evaluation import metrics
from dlm_jax.evaluation.figures import COLOR_VARIABLES, Figure
from dlm_jax.evaluation.run_records import (
    VERDICTS,
    Predictions,
    Stage,
    figure_names,
    number,
    quantity,
)

_DARK = {
    "--ink": "#e6ebf1",
    "--muted": "#9aa6b5",
    "--grid": "#323b47",
    "--paper": "#171d25",
    "--series-1": "#7db2f0",
    "--series-2": "#f0a061",
    "--series-3": "#74cf9a",
    "--series-4": "#cba0e6",
    "--series-5": "#f28a9c",
    "--series-6": "#62cbd9",
    "--series-7": "#d8c264",
}
_PAGE_LIGHT = {"--ground": "#f4f6f8", "--right": "#1f7a48", "--wrong": "#a92b40"}
_PAGE_DARK = {"--ground": "#0f141a", "--right": "#74cf9a", "--wrong": "#f28a9c"}

_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 4px}
h2{font-size:1.2rem;margin:40px 0 12px}
h3{font-size:1rem;margin:20px 0 8px}
p{margin:8px 0}
.quiet{color:var(--muted)}
small,.small{font-size:.85rem}
section>.card,.tile,figure{background:var(--paper);border:1px solid var(--grid);border-radius:8px}
.card{padding:16px;overflow-x:auto}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:12px;margin:20px 0}
.tile{padding:14px 16px;overflow-wrap:anywhere}
.tile b{display:block;font-size:1.7rem;line-height:1.25;font-variant-numeric:tabular-nums}
figure{margin:12px 0;padding:16px;overflow-x:auto}
figure svg{display:block;width:100%;min-width:640px;height:auto}
figcaption{font-size:.85rem;color:var(--muted);margin-top:8px}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;vertical-align:top;padding:6px 10px;border-bottom:1px solid var(--grid)}
tr:last-child>td{border-bottom:0}
th{font-weight:600;color:var(--muted);white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.name{min-width:6rem;max-width:16rem;overflow-wrap:anywhere}
.text{min-width:9rem;max-width:26rem;white-space:pre-wrap;overflow-wrap:anywhere}
.text>div{max-height:9rem;overflow:auto}
.right{color:var(--right);font-weight:600;white-space:nowrap}
.wrong{color:var(--wrong);font-weight:600;white-space:nowrap}
details{background:var(--paper);border:1px solid var(--grid);border-radius:8px;margin:8px 0}
summary{cursor:pointer;padding:10px 16px;font-weight:600}
details>div{padding:0 16px 16px;overflow-x:auto}
pre{margin:0;padding:0 16px 16px;overflow-x:auto;
 font:13px/1.5 ui-monospace,"DejaVu Sans Mono",monospace}
iframe{width:100%;height:560px;border:1px solid var(--grid);border-radius:8px;
 background:var(--paper);resize:vertical}
.notice{border-left:4px solid var(--series-2);padding:8px 14px;background:var(--paper)}
@media print{body{background:#fff}.card,figure,.tile{break-inside:avoid}}
"""


def _variables(values: Mapping[str, str]) -> str:
    return ";".join(f"{name}:{value}" for name, value in values.items())


def _style() -> str:
    light = {variable: color for color, variable in COLOR_VARIABLES.items()} | _PAGE_LIGHT
    dark = _DARK | _PAGE_DARK
    return (
        f":root{{color-scheme:light dark;{_variables(light)}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{_variables(dark)}}}}}{_STYLE}"
    )


def format_value(value: float, error: float = math.nan, *, digits: int | None = None) -> str:
    """Returns a figure, with `± error` where there is one, to the digits that the error allows."""
    if not math.isfinite(value):
        return "–"
    if digits is None:
        if math.isfinite(error) and error > 0:
            digits = min(4, max(0, 1 - math.floor(math.log10(error))))
        else:
            digits = min(3, max(0, 2 - math.floor(math.log10(max(abs(value), 0.1)))))
    text = f"{value:,.{digits}f}"
    return f"{text} ± {error:.{digits}f}" if math.isfinite(error) else text


def measured_cell(line: Mapping[str, Any], name: str) -> str:
    """Returns the HTML of a figure with its standard error and, below them, its 95% interval."""
    value, error = number(line.get(name)), number(line.get(f"{name}_se"))
    text = format_value(value, error)
    low, high = (number(line.get(f"{name}_{end}")) for end in ("low", "high"))
    if not (math.isfinite(value) and math.isfinite(low) and math.isfinite(high)):
        return text
    digits = len(text.split(" ")[0].partition(".")[2])
    ends = f"{format_value(low, digits=digits)}, {format_value(high, digits=digits)}"
    return f'{text}<br><span class="small quiet">[{ends}]</span>'


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


def row_of(cells: Iterable[tuple[str, str]], tag: str = "td") -> str:
    """Returns the cells of a table's row from (class, HTML) pairs."""
    return "".join(
        f'<{tag} class="{css}">{text}</{tag}>' if css else f"<{tag}>{text}</{tag}>"
        for css, text in cells
    )


def results_table(stages: Sequence[Stage]) -> str:
    """Returns the table of first and last evaluation of every task; '' where there is none."""
    rows = []
    for stage in stages:
        for task in stage.tasks:
            lines = stage.evaluations(task)
            for name in figure_names(lines):
                have = [line for line in lines if math.isfinite(number(line.get(name)))]
                first, last = have[0], have[-1]
                values = [
                    format_value(number(line[name]), number(line.get(f"{name}_se")))
                    for line in (first, last)
                ]
                count = number(last.get("n"))
                rows.append(
                    row_of(
                        [
                            ("name", html.escape(stage.name)),
                            ("name", html.escape(task)),
                            ("name", html.escape(quantity(name).axis)),
                            ("number", "–" if first is last else values[0]),
                            ("number", "–" if first is last else f"{first['step']:,}"),
                            ("number", f"<strong>{values[1]}</strong>"),
                            ("number", f"{last['step']:,}"),
                            ("number", f"{count:,.0f}" if math.isfinite(count) else "–"),
                        ]
                    )
                )
    if not rows:
        return ""
    heads = [("", name) for name in ("Stage", "Task", "Figure")]
    heads += [("number", name) for name in ("First ± SE", "at step", "Last ± SE", "at step", "n")]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="card"><table><thead><tr>{row_of(heads, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


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
        "bootstrapped over examples (0 where all examples scored alike); that of a NELBO per "
        "token is by the delta method.</p>"
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
        oracle = ", oracle length" if entry.canvas == "oracle" else ""
        wrong = [record for record in entry.records[shown:] if _mark(record)[0] == "wrong"][:shown]
        parts.append(
            f"<h3>{html.escape(entry.task)}{oracle}</h3>"
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


def figure_element(figure: Figure) -> str:
    """Returns a figure with its description as caption."""
    return (
        f'<figure role="img" aria-label="{html.escape(figure.description, quote=True)}">'
        f"{figure.svg}<figcaption>{html.escape(figure.description)}</figcaption></figure>"
    )


def section(title: str, body: str) -> str:
    """Returns a headed section; '' for an empty body."""
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>" if body else ""


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
        f'<p class="small quiet">{html.escape(stage.name)}</p>'
        f'<iframe title="Decode trace of {html.escape(stage.name, quote=True)}" '
        f'sandbox="allow-scripts" srcdoc="{html.escape(stage.trace, quote=True)}"></iframe>'
        for stage in stages
        if stage.trace
    )


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
            "".join(figure_element(figure) for figure in figures if figure.name == "results")
            + results_table(stages)
            + _signatures(stages),
        ),
        section(
            "Curves",
            "".join(figure_element(figure) for figure in figures if figure.name != "results"),
        ),
        section("Predictions", prediction_tables(list(by_task.values()), shown)),
        section("Decode trace", _traces(stages)),
        section("Configuration", _folded(stages)),
    ]
    return page(title, body)


def page(title: str, body: Sequence[str]) -> str:
    """Returns an HTML document of these parts in the style of the reports."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_style()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
