"""`dlm export`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument(
        "--run_dir", required=True, metavar="FOLDER", help="run folder, or one of its checkpoints"
    )
    parser.add_argument("--step", type=int, help="checkpoint to take; the newest by default")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to make")


def run(arguments: argparse.Namespace) -> None:
    """Writes config.json, model.safetensors and the tokenizer, which transformers can load."""
    from dlm_jax.checkpoints.huggingface import export_folder
    from dlm_jax.checkpoints.loading import load_model

    loaded = load_model(arguments.run_dir, step=arguments.step)
    config = loaded.description.config
    path = export_folder(config, loaded.parameters, loaded.vocabulary, arguments.output)
    print(f"step {loaded.step} of {arguments.run_dir} is in {path}")
