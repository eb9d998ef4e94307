"""What a run says of itself before its first step."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import jax

from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.models.config import EncoderConfig
from dlm_jax.training.feed import HostData
from dlm_jax.training.state import TrainState


def model_info(config: EncoderConfig, parameters: Any) -> str:
    """Lists the parameters with their shapes, types and how the mesh splits them.

    Args:
        config: of the model.
        parameters: arrays or abstract leaves, with shardings.
    """
    rows = [f"{_count(parameters):,} parameters, {config.dtype} compute", ""]
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append(f"{name:<40} {str(list(leaf.shape)):<24} {leaf.dtype}  {leaf.sharding.spec}")
    return "\n".join(rows) + "\n"


def opening(
    folder: RunFolder,
    description: ModelDescription,
    notes: Sequence[str],
    state: TrainState,
    data: HostData,
    resumed: int,
    total_steps: int,
) -> str:
    """Says what will happen: devices, model and its state, data, steps, and how to resume."""
    devices = jax.devices()
    sizes = " ".join(f"{name}={size}" for name, size in data.sharding.mesh.shape.items())
    state_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    parameters = f"{_count(state.parameters):,} parameters"
    tokens = data.batch_size * data.length
    examples = ", ".join(f"{name} ({table})" for name, table in data.loader.tables.items())
    first = f"resumes after step {resumed}" if resumed else f"starts from {description.origin}"
    lines = [
        ("devices", f"{len(devices)} x {devices[0].device_kind}, mesh {sizes}"),
        ("model", f"{parameters}, {state_bytes / 2**30:.2f} GiB of training state a device"),
        ("data", f"{examples}, {tokens:,} token positions a step"),
        *(
            ("data", f"{name}, at {data.length} tokens a row: {table.counts}")
            for name, table in data.loader.tables.items()
            if table.counts
        ),
        ("run", f"{folder.path} {first}, {total_steps - resumed:,} steps to go"),
        (
            "resume",
            f"the same command again; look at it with: dlm inspect {shlex.quote(str(folder.path))}",
        ),
        *(("note", note) for note in notes),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _count(parameters: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))
