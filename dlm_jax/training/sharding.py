"""Where the state and the batches of a training step live: one answer for the run and its plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dlm_jax.data.packing import empty_batch
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel import rules
from dlm_jax.training.spikes import Recent
from dlm_jax.training.state import TrainState


def parameter_shardings(config: EncoderConfig, mesh: Mesh) -> Any:
    """Shardings of an encoder's parameters, as the active rules say of its logical axes."""
    return rules.parameter_shardings(
        encoders.logical_axes(config),
        mesh,
        rules.active_rules().parameters,
        encoders.abstract_parameters(config),
    )


def placed_parameters(config: EncoderConfig, mesh: Mesh) -> Any:
    """An encoder's parameters as `jax.ShapeDtypeStruct` leaves with shardings."""
    return placed(encoders.abstract_parameters(config), parameter_shardings(config, mesh))


def placed(shapes: Any, shardings: Any) -> Any:
    """`jax.ShapeDtypeStruct` leaves with shardings."""
    return jax.tree.map(_placed, shapes, shardings)


def abstract_state(
    parameters: Any,
    optimizer: optax.GradientTransformation,
    time_state: Any = None,
    recent: Recent | None = None,
) -> TrainState:
    """The training state as `jax.ShapeDtypeStruct` leaves with shardings; allocates nothing.

    The optimizer's arrays lie as their parameter does; where one has fewer or other dimensions
    (factored moments), the dimensions that it shares with the parameter do. Counters, the time
    sampler's table and the recent steps are on every device.

    Args:
        parameters: abstract leaves with shardings, of what the optimizer changes.
        optimizer: the optax transformation.
        time_state: arrays of the time sampler, or None.
        recent: arrays of the rule that skips spikes, or None.
    """
    mesh = jax.tree.leaves(parameters)[0].sharding.mesh
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(
        lambda *trees: TrainState.create(trees[0], optimizer, *trees[1:]),
        parameters,
        time_state,
        recent,
    )

    def like_parameter(leaf: Any, parameter: Any) -> jax.ShapeDtypeStruct:
        if leaf.shape == parameter.shape:
            return _placed(leaf, parameter.sharding)
        entries = (*parameter.sharding.spec, *[None] * len(leaf.shape))
        same = [
            entry if size == wanted else None
            for entry, size, wanted in zip(entries, leaf.shape, parameter.shape)
        ]
        return _placed(leaf, NamedSharding(mesh, PartitionSpec(*same)))

    def on_every_device(leaf: Any) -> jax.ShapeDtypeStruct:
        return _placed(leaf, everywhere)

    return TrainState(
        step=on_every_device(shapes.step),  # type: ignore[arg-type]
        parameters=parameters,
        optimizer_state=optax.tree.map_params(
            optimizer,
            like_parameter,
            shapes.optimizer_state,
            parameters,
            transform_non_params=on_every_device,
        ),
        skipped=on_every_device(shapes.skipped),  # type: ignore[arg-type]
        time_state=jax.tree.map(on_every_device, shapes.time_state),
        recent=jax.tree.map(on_every_device, shapes.recent),
    )


def shardings_of(tree: Any) -> Any:
    """The shardings of a tree of arrays or abstract leaves."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array [batch, length] of a batch."""
    spec = rules.partition_spec(("batch", "length"), mesh.shape, rules.active_rules().activations)
    return NamedSharding(mesh, spec)


def abstract_batch(rows: int, length: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch [rows, length] of the contract as `jax.ShapeDtypeStruct` leaves with shardings."""
    dtypes = {name: np.asarray(array).dtype for name, array in empty_batch(1, 1, 0).items()}
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((rows, length), jnp.dtype(dtype), sharding=sharding)
        for name, dtype in dtypes.items()
    }


def jit_step(
    step: Callable[..., Any],
    shardings: TrainState,
    compiler_options: dict[str, str] | None = None,
) -> Any:
    """The jitted step: it gives its state away, and the new one lies where the old one did."""
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=compiler_options,
    )


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
