"""`dlm length`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_jax.cli.flags import (
    add_gin,
    add_processes,
    agreed_config,
    is_main,
    join_processes,
    load_config,
)
from dlm_jax.errors import UserError

DEFAULT_FILE = "runs/length.gin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    add_gin(parser)
    add_processes(parser)
    parser.add_argument(
        "--run_dir",
        required=True,
        metavar="FOLDER",
        help="folder of a finished run, to whose model the predictor belongs; without --gin_file "
        f"it is trained as before, or as {DEFAULT_FILE} says",
    )


def run(arguments: argparse.Namespace) -> None:
    """Checks the configuration, trains the predictor, and records the configuration beside it.

    The modules that the run was trained with are imported again, so its tasks are known.
    """
    several = join_processes(arguments)
    from dlm_jax import config

    folder = Path(arguments.run_dir)
    if not (folder / "model.json").is_file():
        raise UserError(
            f"--run_dir={arguments.run_dir} is not a run folder: train a model first, with dlm "
            "train"
        )
    predictor = folder / "length_predictor"
    trained, recorded = folder / "config.gin", predictor / "config.gin"
    modules = config.imported_modules(trained) if trained.is_file() else []
    files = arguments.gin_file or [str(recorded) if recorded.is_file() else DEFAULT_FILE]
    checked = agreed_config(several, lambda: load_config(arguments, "length_stage", files, modules))
    main = is_main(several)

    def record() -> None:
        if main:
            config.record(checked, predictor)

    result = checked.call(
        run_dir=arguments.run_dir,
        # Not before the values have been found right: a refused command leaves the record.
        on_ready=record,
    )
    if main:
        print(
            f"{predictor} is at step {result.step:,} after {result.seconds:.0f} s; "
            f"next: dlm eval --run_dir={folder} --gin.CANVAS=\"'predicted'\""
        )
