"""`dlm train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_jax.cli.flags import add_gin, load_config
from dlm_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    add_gin(parser)
    parser.add_argument(
        "--run_dir",
        required=True,
        metavar="FOLDER",
        help="folder of the run; one that exists is resumed, and needs no --gin_file",
    )


def run(arguments: argparse.Namespace) -> None:
    """Checks the configuration, records it, and trains."""
    from dlm_jax import config

    recorded = Path(arguments.run_dir) / "config.gin"
    files = arguments.gin_file
    if not files and recorded.is_file():
        files = [str(recorded)]
    elif not files and not arguments.gin_bindings:
        raise UserError(
            f"dlm train needs --gin_file: {arguments.run_dir} has no config.gin to resume from"
        )
    checked = load_config(arguments, "train", files)
    config.record(checked, arguments.run_dir)
    result = checked.call(run_dir=arguments.run_dir)
    print(
        f"{arguments.run_dir} is at step {result.step:,} after {result.seconds:.0f} s; "
        f"next: dlm eval --run_dir={arguments.run_dir}, dlm report --run_dir={arguments.run_dir}"
    )
