"""What a sweep ends in: one table as CSV and Markdown, and a page with scaling plots."""

from __future__ import annotations

import csv
import html
import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dlm_jax.errors import UserError
from dlm_jax.evaluation import figures as figures_lib
from dlm_jax.evaluation.figures import MARKERS, SERIES_COLORS, Figure
from dlm_jax.evaluation.report_page import figure_element, format_value, page, row_of, section
from dlm_jax.evaluation.run_records import figure_names, quantity
from dlm_jax.evaluation.sweep import CellResult, Sweep

TABLE_CSV, TABLE_MARKDOWN, PAGE = "table.csv", "table.md", "report.html"

Axis = Callable[[CellResult], float]


def write_sweep_report(sweep: Sweep) -> Path:
    """Writes the table and the page of what is finished; failed and missing cells are listed.

    Returns:
        The path of the page.

    Raises:
        UserError: a result is damaged, or the folder cannot be written.
    """
    cells = sweep.cells()
    results = [result for cell in cells if (result := sweep.result(cell)) is not None]
    unfinished = [
        (str(cell), sweep.failure(cell) or "not computed yet")
        for cell in cells
        if sweep.result(cell) is None
    ]
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
    """One line a cell with every figure and standard error in a column of its own."""
    settings, figures = _setting_names(results), _figure_columns(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "parameters", "step", "task", *settings, *figures, "seconds"])
    for result in results:
        cell = result.cell
        step = "" if cell.step is None else cell.step
        values = [cell.settings.get(name, "") for name in settings]
        measured = [result.figures.get(name, "") for name in figures]
        writer.writerow(
            [cell.model, result.parameters, step, cell.task, *values, *measured, result.seconds]
        )
    return text.getvalue()


def markdown_table(results: Sequence[CellResult]) -> str:
    """The same for people: figures with their standard errors beside them."""
    heads, rows = _rows(results)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def _setting_names(results: Sequence[CellResult]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.cell.settings))


def _figure_columns(results: Sequence[CellResult]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.figures))


def _rows(results: Sequence[CellResult]) -> tuple[list[str], list[list[str]]]:
    settings = _setting_names(results)
    columns = [name for name in _figure_columns(results) if not name.endswith("_se")]
    heads = ["model", "parameters", "step", "task", *settings, *columns]
    rows = []
    for result in results:
        cell, figures = result.cell, result.figures
        row = [cell.model, f"{result.parameters:,}", "" if cell.step is None else str(cell.step)]
        row += [cell.task, *(str(cell.settings.get(name, "")) for name in settings)]
        for name in columns:
            value, error = figures.get(name, math.nan), figures.get(f"{name}_se", math.nan)
            row.append(f"{value:.0f}" if name == "n" else format_value(value, error))
        rows.append(row)
    return heads, rows


def _page(
    folder: Path, results: Sequence[CellResult], unfinished: Sequence[tuple[str, str]]
) -> str:
    title = f"Sweep: {folder.resolve().name}"
    count = len(results) + len(unfinished)
    missing = "".join(
        f"<li>{html.escape(cell)}: {html.escape(reason)}</li>" for cell, reason in unfinished
    )
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="quiet">{len(results)} of {count} cells are finished.</p>',
        section("Unfinished cells", f"<ul>{missing}</ul>" if missing else ""),
        section("Scaling", "".join(figure_element(figure) for figure in scaling_figures(results))),
        section("Table", _html_table(results)),
    ]
    return page(title, body)


def _html_table(results: Sequence[CellResult]) -> str:
    if not results:
        return ""
    heads, rows = _rows(results)
    texts = ("model", "task", *_setting_names(results))
    styles = ["name" if head in texts else "number" for head in heads]

    def line(cells: Sequence[str], tag: str = "td") -> str:
        return row_of([(css, html.escape(cell)) for css, cell in zip(styles, cells)], tag)

    head = line(heads, "th")
    lines = "".join(f"<tr>{line(row)}</tr>" for row in rows)
    return (
        f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
        '<p class="small quiet">± is one standard error.</p></div>'
    )


def scaling_figures(results: Sequence[CellResult]) -> list[Figure]:
    """Draws each headline figure against parameters and against denoiser evaluations (NFE).

    A panel is a task, a line joins the cells that differ in what is on the axis only; bars are 95%
    intervals. An axis along which nothing differs is not drawn.
    """
    drawn = []
    with figures_lib.styled():
        for name in figure_names([dict(result.figures) for result in results]):
            if name.removeprefix("oracle_") not in figures_lib.HEADLINE:
                continue
            have = [r for r in results if math.isfinite(r.figures.get(name, math.nan))]
            by_size = _scaling_figure(
                have, name, "parameters", lambda r: float(r.parameters), _decoding_label
            )
            by_nfe = _scaling_figure(have, name, "NFE", _nfe, _model_label)
            drawn += [figure for figure in (by_size, by_nfe) if figure is not None]
    return drawn


def _nfe(result: CellResult) -> float:
    figures = result.figures
    return figures.get("nfe", figures.get("oracle_nfe", math.nan))


def _decoding_label(result: CellResult) -> str:
    settings = result.cell.settings
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "all cells"


def _model_label(result: CellResult) -> str:
    cell = result.cell
    others = [f"{k} {v}" for k, v in cell.settings.items() if k != "steps"]
    name = Path(cell.model).name if Path(cell.model).parent.name != "checkpoints" else cell.model
    return ", ".join([name, *others])


def _scaling_figure(
    results: Sequence[CellResult],
    name: str,
    axis: str,
    place: Axis,
    label: Callable[[CellResult], str],
) -> Figure | None:
    results = [result for result in results if math.isfinite(place(result))]
    tasks = list(dict.fromkeys(result.cell.task for result in results))
    if len({place(result) for result in results}) < 2:
        return None
    labels = list(dict.fromkeys(label(result) for result in results))[: len(SERIES_COLORS)]
    figure, grid = figures_lib.new_panels(len(tasks), 3.0)
    for axes, task in zip(grid, tasks):
        for index, line in enumerate(labels):
            chosen = [r for r in results if r.cell.task == task and label(r) == line]
            _draw_line(axes, sorted(chosen, key=place), name, place, index, line)
        measured = quantity(name)
        axes.set_title(figures_lib.shorten(task, 38))
        axes.set_xlabel(axis)
        axes.set_ylabel(measured.axis)
        axes.set_xscale("log")
        places = sorted({place(result) for result in results})
        axes.set_xticks(places, [figures_lib.tick_text(float(f"{x:.2g}")) for x in places])
        axes.set_xticks([], minor=True)
    handles = dict(zip(*reversed(grid[0].get_legend_handles_labels())))
    figure.legend(
        list(handles.values()),
        [figures_lib.shorten(text, 60) for text in handles],
        loc="outside upper left",
        ncols=2,
    )
    words = quantity(name).label
    description = f"{words[:1].upper()}{words[1:]} against {axis}, with 95% intervals."
    stem = f"scaling_{name}_{axis.lower()}".replace("/", "_")
    return figures_lib.finish(figure, stem, description, description)


def _draw_line(
    axes: Any, results: Sequence[CellResult], name: str, place: Axis, index: int, label: str
) -> None:
    if not results:
        return
    places = [place(result) for result in results]
    errors = [result.figures.get(f"{name}_se", math.nan) for result in results]
    axes.errorbar(
        places,
        [result.figures[name] for result in results],
        yerr=[1.96 * error if math.isfinite(error) else 0.0 for error in errors],
        color=SERIES_COLORS[index],
        # Two models of one size are two points, and no trend.
        linestyle="-" if len(set(places)) == len(places) else "none",
        marker=MARKERS[index],
        markersize=5,
        capsize=2,
        label=label,
    )
