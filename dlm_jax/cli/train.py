"""`dlm train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_jax.cli.flags import (
    add_gin,
    add_processes,
    agreed_config,
    is_main,
    join_processes,
    load_config,
)
from dlm_jax.errors import UserError

if TYPE_CHECKING:
    from dlm_jax.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    add_gin(parser)
    add_processes(parser)
    parser.add_argument(
        "--run_dir",
        required=True,
        metavar="FOLDER",
        help="folder of the run; one that exists is resumed, and needs no --gin_file",
    )


def run(arguments: argparse.Namespace) -> None:
    """Joins the other processes if there are any, checks the configuration, trains, records it."""
    several = join_processes(arguments)
    checked = agreed_config(several, lambda: _config(arguments))
    main = is_main(several)

    def record() -> None:
        if main:
            from dlm_jax import config

            config.record(checked, arguments.run_dir)

    # Not before `train` has found the values right: a refused command leaves the run as it was.
    result = checked.call(run_dir=arguments.run_dir, on_ready=record)
    if main:
        run = arguments.run_dir
        print(
            f"{run} is at step {result.step:,} after {result.seconds:.0f} s; "
            f"next: dlm eval --run_dir={run}, dlm report --run_dir={run}"
        )


def _config(arguments: argparse.Namespace) -> Config:
    recorded = Path(arguments.run_dir) / "config.gin"
    files = arguments.gin_file
    if not files and recorded.is_file():
        files = [str(recorded)]
    elif not files and not arguments.gin_bindings:
        raise UserError(
            f"dlm train needs --gin_file: {arguments.run_dir} has no config.gin to resume from"
        )
    return load_config(arguments, "train", files)
