"""`dlm report`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument(
        "--run_dir", required=True, metavar="FOLDER", help="run folder, or a folder of run folders"
    )
    parser.add_argument("--title", help="heading; the folder's name by default")


def run(arguments: argparse.Namespace) -> None:
    """Writes the report and prints its path."""
    from dlm_jax.evaluation.report import write_report

    print(write_report(arguments.run_dir, title=arguments.title))
