"""What a sweep ends in: one table as CSV and Markdown, and a page with scaling plots."""

from __future__ import annotations

import csv
import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dlm_jax.errors import UserError
from dlm_jax.evaluation.html_parts import (
    figure_element,
    format_value,
    measured_cell,
    page,
    row_of,
    section,
)
from dlm_jax.evaluation.run_records import SPREADS
from dlm_jax.evaluation.scaling_figures import ORACLE, Row, rows_of, scaling_figures
from dlm_jax.evaluation.sweep import CellResult, Sweep

TABLE_CSV, TABLE_MARKDOWN, PAGE = "table.csv", "table.md", "report.html"


def write_sweep_report(sweep: Sweep) -> Path:
    """Writes the table and the page of what is finished; failed and missing cells are listed.

    Returns:
        The path of the page.

    Raises:
        UserError: a result is damaged, or the folder cannot be written.
    """
    results, unfinished = [], []
    for cell in sweep.cells():
        result = sweep.result(cell)
        if result is None:
            unfinished.append((str(cell), sweep.failure(cell) or "not computed yet"))
        else:
            results.append(result)
    folder = Path(sweep.run_dir)
    files = {
        TABLE_CSV: csv_table(results).encode(),
        TABLE_MARKDOWN: markdown_table(results).encode(),
        PAGE: _page(folder, results, unfinished).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            draft = folder / f".{name}.{os.getpid()}"
            draft.write_bytes(content)
            draft.replace(folder / name)
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}") from error
    return folder / PAGE


def csv_table(results: Sequence[CellResult]) -> str:
    """One line a cell and task; figures, standard errors and intervals in columns of their own."""
    rows = rows_of(results)
    settings = _setting_names(rows)
    figures = list(dict.fromkeys(name for row in rows for name in row.figures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["model", "parameters", "step", "task", *settings, *figures, "seconds", "attempts"]
    )
    for row in rows:
        cell = row.result.cell
        step = "" if cell.step is None else cell.step
        values = [cell.settings.get(name, "") for name in settings]
        measured = [row.figures.get(name, "") for name in figures]
        spent = [row.result.seconds, row.result.attempts]
        writer.writerow(
            [cell.model, row.result.parameters, step, row.task, *values, *measured, *spent]
        )
    return text.getvalue()


def markdown_table(results: Sequence[CellResult]) -> str:
    """The same for people, task by task: figures with their standard errors beside them.

    Figures of the parts of a benchmark, such as a subject, are in the CSV file alone.
    """
    rows = [row for group in _by_task(rows_of(results)).values() for row in group]
    settings, columns = _setting_names(rows), _columns(rows)
    lines = [["task", "model", "parameters", "step", *settings, *columns]]
    lines.append(["---"] * len(lines[0]))
    lines += [[row.task, *_place(row, settings), *_values(row, columns)] for row in rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def _by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.task, []).append(row)
    return grouped


def _setting_names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.result.cell.settings))


def _columns(rows: Sequence[Row], *, parts: bool = False) -> list[str]:
    """Names of the figures: of whole tasks, or of their parts such as `accuracy/anatomy`.

    Those of an oracle canvas share the column of the figure; each value says that it is one.
    """
    names = dict.fromkeys(name.removeprefix(ORACLE) for row in rows for name in row.figures)
    return [name for name in names if not name.endswith(SPREADS) and ("/" in name) == parts]


def _place(row: Row, settings: Sequence[str], model: str | None = None) -> list[str]:
    cell = row.result.cell
    step = "" if cell.step is None else str(cell.step)
    values = [str(cell.settings.get(name, "")) for name in settings]
    return [model or cell.model, f"{row.result.parameters:,}", step, *values]


def _short_names(rows: Sequence[Row]) -> dict[str, str]:
    """Models without the folder that all of them are in."""
    models = list(dict.fromkeys(row.result.cell.model for row in rows))
    if len(models) == 1 or any(not Path(model).is_absolute() for model in models):
        return {model: model for model in models}
    shared = os.path.commonpath([Path(model).parent for model in models])
    return {model: str(Path(model).relative_to(shared)) for model in models}


def _own_name(row: Row, column: str) -> str:
    return ORACLE + column if ORACLE + column in row.figures else column


def _values(row: Row, columns: Sequence[str]) -> list[str]:
    found = []
    for column in columns:
        name = _own_name(row, column)
        value = row.figures.get(name, math.nan)
        text = format_value(value, row.figures.get(f"{name}_se", math.nan))
        text = f"{value:.0f}" if name == "n" else text
        found.append(f"{text} (oracle)" if name != column else text)
    return found


def _page(
    folder: Path, results: Sequence[CellResult], unfinished: Sequence[tuple[str, str]]
) -> str:
    title = f"Sweep: {folder.resolve().name}"
    count = len(results) + len(unfinished)
    again = [result for result in results if result.attempts > 1]
    rows = rows_of(results)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="quiet">{len(results)} of {count} cells are finished.</p>',
        section("Unfinished cells", _list(unfinished)),
        *(section(task, _task_body(own)) for task, own in _by_task(rows).items()),
        section(
            "Cells that were tried again",
            _list([(str(result.cell), f"finished at try {result.attempts}") for result in again]),
        ),
    ]
    return page(title, body)


def _list(entries: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f"<li>{html.escape(cell)}: {html.escape(text)}</li>" for cell, text in entries)
    return f'<div class="card"><ul class="small">{lines}</ul></div>' if lines else ""


def _task_body(rows: Sequence[Row]) -> str:
    """The plots of a task, its table, and folded below it that of its parts."""
    plots = "".join(figure_element(figure) for figure in scaling_figures(rows))
    settings = _setting_names(rows)
    whole = _html_table(rows, settings, {name: name for name in _columns(rows)})
    parts = ""
    kinds: dict[str, dict[str, str]] = {}
    for name in _columns(rows, parts=True):
        kind, _, part = name.partition("/")
        kinds.setdefault(kind, {})[name] = part
    for kind, names in kinds.items():
        table = _html_table(rows, settings, names, transposed=True)
        parts += (
            f"<details><summary>{html.escape(kind)} of {len(names)} parts</summary>"
            f"<div>{table}</div></details>"
        )
    return f'{plots}<div class="card">{whole}</div>{parts}'


def _html_table(
    rows: Sequence[Row],
    settings: Sequence[str],
    columns: Mapping[str, str],
    *,
    transposed: bool = False,
) -> str:
    """A line a cell; transposed, a line a figure, where there are more figures than cells."""
    heads = ["model", "parameters", "step", *settings]
    styles = ["name" if head in ("model", *settings) else "number" for head in heads]
    styles += ["number"] * len(columns)
    models = _short_names(rows)
    lines = [
        [
            *(html.escape(t) for t in _place(row, settings, models[row.result.cell.model])),
            *(_measured(row, name) for name in columns),
        ]
        for row in rows
    ]
    heads += columns.values()
    lines = [[html.escape(head) for head in heads], *lines]
    table = [list(zip(styles, line, strict=True)) for line in lines]
    if transposed:
        table = [[("name", line[0][1]), *line[1:]] for line in zip(*table, strict=True)]
    first = f"<tr>{row_of(table[0], 'th')}</tr>"
    rest = "".join(f"<tr>{row_of(line)}</tr>" for line in table[1:])
    return (
        f"<table><thead>{first}</thead><tbody>{rest}</tbody></table>"
        '<p class="small quiet">± is one standard error; below it is a 95% interval.</p>'
    )


def _measured(row: Row, column: str) -> str:
    name = _own_name(row, column)
    if name == "n":
        return f"{row.figures[name]:,.0f}" if name in row.figures else "–"
    cell = measured_cell(row.figures, name)
    return f'{cell}<br><span class="small quiet">oracle</span>' if name != column else cell
