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
from dlm_jax.training.state import TrainState


def parameter_shardings(config: EncoderConfig, mesh: Mesh) -> Any:
    """Shardings of an encoder's parameters, as the active rules say of its logical axes."""
    return rules.parameter_shardings(
        encoders.logical_axes(config),
        mesh,
        rules.active_rules().parameters,
        encoders.abstract_parameters(config),
    )


def state_shardings(
    config: EncoderConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    time_state: Any = None,
) -> TrainState:
    """Shardings of the whole training state.

    The optimizer's arrays lie as their parameter does; where one has fewer or other dimensions
    (factored moments), the dimensions that it shares with the parameter do. Counters and the time
    sampler's table are on every device.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    parameters = encoders.abstract_parameters(config)
    shardings = parameter_shardings(config, mesh)
    abstract = _shapes(config, optimizer, time_state)

    def like_parameter(leaf: Any, parameter: Any, sharding: NamedSharding) -> NamedSharding:
        if leaf.shape == parameter.shape:
            return sharding
        entries = (*sharding.spec, *[None] * len(leaf.shape))
        same = [
            entry if size == wanted else None
            for entry, size, wanted in zip(entries, leaf.shape, parameter.shape)
        ]
        return NamedSharding(mesh, PartitionSpec(*same))

    return TrainState(
        step=everywhere,  # type: ignore[arg-type]
        parameters=shardings,
        optimizer_state=optax.tree.map_params(
            optimizer,
            like_parameter,
            abstract.optimizer_state,
            parameters,
            shardings,
            transform_non_params=lambda _: everywhere,
        ),
        skipped=everywhere,  # type: ignore[arg-type]
        time_state=jax.tree.map(lambda _: everywhere, abstract.time_state),
    )


def abstract_state(
    config: EncoderConfig,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    time_state: Any = None,
) -> TrainState:
    """The training state as `jax.ShapeDtypeStruct` leaves with shardings; allocates nothing."""
    return jax.tree.map(_placed, _shapes(config, optimizer, time_state), shardings)


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


def _shapes(
    config: EncoderConfig, optimizer: optax.GradientTransformation, time_state: Any
) -> TrainState:
    return jax.eval_shape(
        lambda parameters, table: TrainState.create(parameters, optimizer, table),
        encoders.abstract_parameters(config),
        time_state,
    )


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
