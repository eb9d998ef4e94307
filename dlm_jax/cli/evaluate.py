"""`dlm eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_jax.cli.flags import add_gin, load_config
from dlm_jax.errors import UserError

DEFAULT_FILE = "runs/evaluate.gin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    add_gin(parser)
    parser.add_argument(
        "--run_dir",
        required=True,
        metavar="FOLDER",
        help=f"folder of the run; without --gin_file it is measured as {DEFAULT_FILE} says",
    )


def run(arguments: argparse.Namespace) -> None:
    """Checks the configuration, evaluates, and records what the figures were measured with.

    The modules that the run was trained with are imported again, so its tasks are known.
    """
    from dlm_jax import config
    from dlm_jax.checkpoints.run_folder import RunFolder
    from dlm_jax.evaluation.run_records import SPREADS

    folder = Path(arguments.run_dir)
    if not (folder / "model.json").is_file():
        raise UserError(
            f"--run_dir={arguments.run_dir} is not a run folder: dlm import makes one of foreign "
            "weights"
        )
    trained = folder / "config.gin"
    modules = config.imported_modules(trained) if trained.is_file() else []
    checked = load_config(arguments, "evaluate", arguments.gin_file or [DEFAULT_FILE], modules)
    RunFolder(folder).make()
    results = checked.call(run_dir=arguments.run_dir)
    config.record(checked, folder, "eval.gin")
    for split, figures in results.items():
        print(split)
        for name, value in figures.items():
            if not name.endswith(SPREADS):
                error, low = figures.get(f"{name}_se"), figures.get(f"{name}_low")
                spread = f" ± {error:.4f}" if error else ""
                interval = "" if low is None else f" [{low:.4f}, {figures[f'{name}_high']:.4f}]"
                print(f"  {name:<31} {value:10.4f}{spread}{interval}")
    print(f"report: {folder / 'report.html'}")
