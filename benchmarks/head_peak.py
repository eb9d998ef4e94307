"""Memory of the loss over 250k tokens on slices that are not here: ours, and one with all logits.

Both compute the loss and its gradients with respect to hidden states, table and bias, bfloat16
products with float32 logits, on the same mesh: positions split over all chips, the table as
training keeps it. Counted is what the compiled program needs beside its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dlm_jax.planning.topologies import Topology

# Sizes, and slices of v5e that hold them.
HEAD_SLICES = {"base": "v5e:1x1", "xxl": "v5e:4x4"}


def head_bytes(size: str, where: str, positions_a_chip: int) -> tuple[int, int]:
    """Bytes a chip that our loss and the naive one need beside their inputs."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from dlm_jax.models.config import SIZES
    from dlm_jax.parallel.mesh import MeshConfig, make_mesh
    from dlm_jax.parallel.rules import PARAMETER_RULES, partition_spec

    topology = Topology.parse(where)
    mesh = make_mesh(MeshConfig(1, -1, 1), topology.devices())
    config, positions = SIZES[size], positions_a_chip * topology.chips

    def array(shape: tuple[int, ...], axes: tuple[Any, ...], dtype: Any = jnp.float32) -> Any:
        spec = partition_spec(axes, mesh.shape, PARAMETER_RULES, shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    arguments = (
        array((positions, config.embed_dim), ("batch", None), jnp.bfloat16),
        array((config.vocab_size, config.embed_dim), ("vocab", "embed")),
        array((config.vocab_size,), ("vocab",)),
        array((positions,), ("batch",), jnp.int32),
        array((positions,), ("batch",)),
    )
    shardings = tuple(argument.sharding for argument in arguments[:3])
    everywhere = NamedSharding(mesh, PartitionSpec())

    def needed(loss: Callable[..., jax.Array]) -> int:
        with jax.set_mesh(mesh):
            program = jax.jit(
                jax.value_and_grad(loss, (0, 1, 2)), out_shardings=(everywhere, shardings)
            )
            memory = program.lower(*arguments).compile().memory_analysis()
        assert memory is not None  # the TPU compiler always states it
        return memory.peak_memory_in_bytes - memory.argument_size_in_bytes

    return needed(_ours), needed(_naive)


def _ours(hidden: Any, table: Any, bias: Any, targets: Any, weight: Any) -> Any:
    import jax.numpy as jnp

    from dlm_jax.models.cross_entropy import linear_cross_entropy

    smoothing = jnp.zeros_like(weight)
    return linear_cross_entropy(hidden, table, bias, targets, weight, smoothing)[0]


def _naive(hidden: Any, table: Any, bias: Any, targets: Any, weight: Any) -> Any:
    import jax
    import jax.numpy as jnp

    scores = jnp.einsum(
        "ne,ve->nv", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    log_p = jax.nn.log_softmax(scores + bias)
    return (weight * -jnp.take_along_axis(log_p, targets[:, None], -1)[:, 0]).sum()
