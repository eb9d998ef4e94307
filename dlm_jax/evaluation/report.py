"""The report of one run or of several stages: `report.html` and its figures as PNG beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dlm_jax.errors import UserError
from dlm_jax.evaluation import figures as figures_lib
from dlm_jax.evaluation import report_page
from dlm_jax.evaluation.length_figures import length_figure
from dlm_jax.evaluation.part_figures import part_figures
from dlm_jax.evaluation.run_records import read_stage, read_summary, stage_folders


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_report(
    run_dir: str | Path,
    stages: Mapping[str, str | Path] | None = None,
    *,
    title: str | None = None,
    shown: int = 8,
) -> Path:
    """Writes `run_dir/report.html` and `run_dir/figures/*.png`.

    A run that has written little or nothing gives a page that says so.

    Args:
      run_dir: a run folder, or a folder of run folders; its summary.json makes the headline.
      stages: {name: run folder} in the order of the report; by default `run_dir` itself where it
        holds metrics, else its sub-folders that do, by name.
      title: heading; the folder's name by default.
      shown: predictions shown of each task.

    Returns:
      The path of report.html.

    Raises:
      UserError: a folder does not exist, a file in one is not what its name says, or the report
        cannot be written.
    """
    folder = Path(run_dir)
    chosen = stage_folders(folder) if stages is None else stages
    read = [read_stage(path, name) for name, path in chosen.items()]
    lengths = length_figure(read)
    figures = [*figures_lib.draw(read), *part_figures(read), *([lengths] if lengths else [])]
    heading = title or f"Report: {folder.resolve().name}"
    page = report_page.render(heading, read, figures, read_summary(folder), shown=shown)
    target = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if figures:
            (folder / "figures").mkdir(exist_ok=True)
        for figure in figures:
            _write(folder / "figures" / f"{figure.name}.png", figure.png)
        _write(target, page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}") from error
    return target
