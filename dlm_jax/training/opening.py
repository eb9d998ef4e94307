"""What a run says of itself before its first step."""

from __future__ import annotations

import shlex
from typing import Any

import jax

from dlm_jax.checkpoints.run_folder import RunFolder
from dlm_jax.data.loader import Loader
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.training.loop import Cadence
from dlm_jax.training.start import Start
from dlm_jax.training.state import TrainState


def model_info(config: EncoderConfig, shardings: Any) -> str:
    """Lists the parameters with their shapes, types and how the mesh splits them."""
    shapes = encoders.abstract_parameters(config)
    rows = [f"{config.num_parameters():,} parameters, {config.dtype} compute", ""]
    leaves, specs = jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings)
    for (path, leaf), sharding in zip(leaves, specs):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append(f"{name:<40} {str(list(leaf.shape)):<24} {leaf.dtype}  {sharding.spec}")
    return "\n".join(rows) + "\n"


def opening(
    folder: RunFolder,
    start: Start,
    state: TrainState,
    loader: Loader,
    mesh: jax.sharding.Mesh,
    tokens: int,
    cadence: Cadence,
    resumed: int,
) -> str:
    """Says what will happen: devices, model and its state, data, steps, and how to resume."""
    devices = jax.devices()
    parameters = start.config.num_parameters()
    sizes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    state_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    examples = ", ".join(f"{name} ({table})" for name, table in loader.tables.items())
    first = f"resumes after step {resumed}" if resumed else f"starts from {start.origin}"
    lines = [
        ("devices", f"{len(devices)} x {devices[0].device_kind}, mesh {sizes}"),
        (
            "model",
            f"{parameters:,} parameters, {state_bytes / 2**30:.2f} GiB of training state a device",
        ),
        ("data", f"{examples}, {tokens:,} token positions a step"),
        ("run", f"{folder.path} {first}, {cadence.total_steps - resumed:,} steps to go"),
        (
            "resume",
            f"the same command again; look at it with: dlm inspect {shlex.quote(str(folder.path))}",
        ),
        *(("note", note) for note in start.notes),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)
