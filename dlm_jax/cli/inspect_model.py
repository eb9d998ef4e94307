"""`dlm inspect`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_jax.errors import UserError

if TYPE_CHECKING:
    from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
    from dlm_jax.models.config import EncoderConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("source", help="run folder, one of its checkpoints, or Hugging Face folder")


def run(arguments: argparse.Namespace) -> None:
    """Prints what is there, without reading the weights."""
    from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder

    path = Path(arguments.source)
    if path.name.isdecimal() and path.parent.name == "checkpoints":
        if not path.is_dir():
            raise UserError(f"{path} does not exist")
        path = path.parent.parent
    folder = RunFolder(path)
    if folder.is_run:
        description = folder.description()
        rows = [("run", str(path)), *_run_rows(folder, description)]
    else:
        from dlm_jax.checkpoints import sources
        from dlm_jax.checkpoints.hf_config import read_config

        resolved = sources.resolve(arguments.source)
        description = ModelDescription(read_config(resolved / "config.json"))
        rows = [("Hugging Face folder", str(resolved))]
    _print_rows([*rows, *_cost_rows(description.config)])
    print("\nconfig")
    _print_rows([(f"  {k}", repr(v)) for k, v in dataclasses.asdict(description.config).items()])
    print("\nparameters")
    _print_rows(_parameter_rows(description.config))


def _run_rows(folder: RunFolder, description: ModelDescription) -> list[tuple[str, str]]:
    from dlm_jax.checkpoints.length_predictor import read_record
    from dlm_jax.checkpoints.manager import CheckpointManager

    steps: list[int] = []
    if folder.checkpoints.is_dir():
        manager = CheckpointManager(folder.checkpoints)
        steps = manager.steps()
        manager.close()
    rows = [
        (field.name, str(getattr(description, field.name)))
        for field in dataclasses.fields(description)
        if field.name != "config"
    ]
    rows.append(("checkpoints", ", ".join(map(str, steps)) or "none"))
    predictor = read_record(folder.length_predictor)
    if predictor is not None:
        rows.append(("length predictor", f"of step {predictor.model_step}, for {predictor.task}"))
    recorded = folder.path / "config.gin"
    return [*rows, ("gin record", str(recorded))] if recorded.is_file() else rows


def _cost_rows(config: EncoderConfig) -> list[tuple[str, str]]:
    count, length = config.num_parameters(), config.max_length
    return [
        ("parameters", f"{count:,} ({4 * count / 2**20:,.1f} MiB in float32)"),
        ("longest row", f"{length} tokens"),
        ("forward", f"{config.flops_per_token(length) / 1e6:,.1f} MFLOP a token of such a row"),
    ]


def _parameter_rows(config: EncoderConfig) -> list[tuple[str, str]]:
    import jax

    from dlm_jax.models.encoder import abstract_parameters

    return [
        (
            f"  {jax.tree_util.keystr(path, simple=True, separator='/')}",
            f"{leaf.dtype}{[*leaf.shape]}",
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_parameters(config))
    ]


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
