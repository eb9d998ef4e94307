"""`dlm sweep`."""

from __future__ import annotations

import argparse
import concurrent.futures
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_jax.cli.flags import add_gin, load_config
from dlm_jax.errors import RunError, UserError

if TYPE_CHECKING:
    from dlm_jax.evaluation.sweep import Cell, Sweep

ENGINES = ("inline", "process", "slurm", "report")
RECORD = "sweep.gin"

_SLURM = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{jobs}
#SBATCH --output={logs}/%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
# One task of the array is one cell; a finished cell is not computed again.
set -euo pipefail
cell=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {list})
exec {command} --cell="$cell"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    add_gin(parser)
    parser.add_argument("--run_dir", required=True, metavar="FOLDER", help="folder of the sweep")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="inline",
        help="inline: in this process; process: a process for each cell; slurm: write an array "
        "job; report: only gather what is finished",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="cells at a time, in processes (1)"
    )
    parser.add_argument(
        "--cell", action="append", default=[], metavar="ID", help="compute this cell only"
    )


def run(arguments: argparse.Namespace) -> None:
    """Computes the cells that are not finished, then writes table.csv, table.md and report.html.

    Raises:
        RunError: a cell failed; the others were computed all the same.
    """
    from dlm_jax import config
    from dlm_jax.checkpoints.run_folder import RunFolder
    from dlm_jax.evaluation.sweep import check_tasks

    if arguments.jobs < 1:
        raise UserError(f"--jobs is {arguments.jobs}, and must be 1 or more")
    folder = Path(arguments.run_dir)
    files = arguments.gin_file or _recorded(folder)
    checked = load_config(arguments, "sweep", files)
    sweep = checked.call(run_dir=arguments.run_dir)
    cells = sweep.cells()
    if arguments.cell:
        _compute(sweep, _named(cells, arguments.cell))
        return
    missing = [cell for cell in cells if sweep.result(cell) is None]
    if arguments.engine != "report":
        check_tasks(missing)
    RunFolder(folder).make()
    config.record(checked, folder, RECORD)
    command = _command(folder.resolve(), arguments.modules)
    if arguments.engine == "slurm":
        _write_slurm(folder.resolve(), command, missing, arguments.jobs)
        return
    _say(f"{len(cells)} cells, {len(cells) - len(missing)} of them finished before")
    try:
        if arguments.engine == "inline":
            _compute(sweep, missing)
        elif arguments.engine == "process":
            _compute_in_processes(command, missing, arguments.jobs)
    finally:
        _report(sweep)


def _recorded(folder: Path) -> list[str]:
    record = folder / RECORD
    if not record.is_file():
        raise UserError(f"dlm sweep needs --gin_file: {folder} holds no sweep yet")
    return [str(record)]


def _named(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    by_name = {cell.identity: cell for cell in cells}
    for name in names:
        if name not in by_name:
            raise UserError(f"--cell={name} is no cell of this sweep")
    return [by_name[name] for name in names]


def _compute(sweep: Sweep, cells: Sequence[Cell]) -> None:
    from dlm_jax.evaluation.sweep import run_cells

    failed = run_cells(sweep, cells, _say)
    if failed:
        raise RunError(f"{failed} of {len(cells)} cells failed; the same command tries them again")


def _command(folder: Path, modules: Sequence[str]) -> list[str]:
    """The command of a child, up to its cell; files are found from any working directory."""
    imports = [
        f"--import={Path(name).resolve() if name.endswith('.py') else name}" for name in modules
    ]
    record = f"--gin_file={folder / RECORD}"
    return [sys.executable, "-m", "dlm_jax.cli", "sweep", record, f"--run_dir={folder}", *imports]


def _compute_in_processes(command: Sequence[str], cells: Sequence[Cell], jobs: int) -> None:
    def compute(cell: Cell) -> int:
        return subprocess.run([*command, f"--cell={cell.identity}"]).returncode

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(compute, cells))
    failed = sum(code != 0 for code in codes)
    if failed:
        raise RunError(f"{failed} of {len(cells)} cells failed; the same command tries them again")


def _write_slurm(folder: Path, command: Sequence[str], cells: Sequence[Cell], jobs: int) -> None:
    if not cells:
        print("every cell is finished: dlm sweep --engine=report gathers them")
        return
    listed, script, logs = folder / "cells.txt", folder / "sweep.sbatch", folder / "logs"
    logs.mkdir(exist_ok=True)
    listed.write_text("".join(f"{cell.identity}\n" for cell in cells), encoding="utf-8")
    text = _SLURM.format(
        name=shlex.quote(folder.name),
        last=len(cells) - 1,
        jobs=jobs,
        logs=logs,
        list=shlex.quote(str(listed)),
        command=shlex.join(command),
    )
    script.write_text(text, encoding="utf-8")
    print(f"sbatch {shlex.quote(str(script))}")
    print(shlex.join([*command, "--engine=report"]))


def _report(sweep: Sweep) -> None:
    from dlm_jax.evaluation.sweep_report import TABLE_MARKDOWN, write_sweep_report

    report = write_sweep_report(sweep)
    print((Path(sweep.run_dir) / TABLE_MARKDOWN).read_text(encoding="utf-8"), end="")
    print(f"report: {report}")


def _say(line: str) -> None:
    from dlm_jax.training.metrics import say

    say(line)
