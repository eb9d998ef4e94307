"""The parts that pages of reports are made of: one file each, in light or dark, without scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlm_jax.evaluation.figures import COLOR_VARIABLES, Figure
from dlm_jax.evaluation.run_records import interval, number

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


def interval_text(line: Mapping[str, Any], name: str) -> str:
    """Returns the 95% interval of a figure to the digits of the figure; '' where none is known."""
    low, high = interval(line, name)
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    value = format_value(number(line[name]), number(line.get(f"{name}_se"))).split(" ")[0]
    digits = len(value.partition(".")[2])
    return f"{format_value(low, digits=digits)} to {format_value(high, digits=digits)}"


def measured_cell(line: Mapping[str, Any], name: str) -> str:
    """Returns the HTML of a figure with its standard error and, below them, its 95% interval."""
    text = format_value(number(line.get(name)), number(line.get(f"{name}_se")))
    ends = interval_text(line, name)
    return f'{text}<br><span class="small quiet">{ends}</span>' if ends else text


def row_of(cells: Iterable[tuple[str, str]], tag: str = "td") -> str:
    """Returns the cells of a table's row from (class, HTML) pairs."""
    return "".join(
        f'<{tag} class="{css}">{text}</{tag}>' if css else f"<{tag}>{text}</{tag}>"
        for css, text in cells
    )


def figure_element(figure: Figure) -> str:
    """Returns a figure with its description as caption."""
    return (
        f'<figure role="img" aria-label="{html.escape(figure.description, quote=True)}">'
        f"{figure.svg}<figcaption>{html.escape(figure.description)}</figcaption></figure>"
    )


def section(title: str, body: str) -> str:
    """Returns a headed section; '' for an empty body."""
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>" if body else ""


def page(title: str, body: Sequence[str]) -> str:
    """Returns an HTML document of these parts in the style of the reports."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_style()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
