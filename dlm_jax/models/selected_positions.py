"""What the two forms of the cross-entropy share: selected positions are brought to the front, and
what was computed of them is put back where they came from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Rows = tuple[jax.Array, jax.Array, jax.Array]  # targets, weight, smoothing weight, [positions]
Gradients = tuple[jax.Array, ...]  # of hidden, table and bias; empty without differentiation
Outputs = tuple[jax.Array, jax.Array, jax.Array]  # loss_sum, nll, correct


def selected_first(selected: jax.Array, size: int) -> jax.Array:
    """Places of the selected positions, int [size], in order; 0 after the last of them."""
    return jnp.nonzero(selected, size=size, fill_value=0)[0]


def put_back(compact: jax.Array, selected: jax.Array) -> jax.Array:
    """The inverse: [positions, ...] from values of the selected ones [size, ...]; 0 elsewhere."""
    rank = jnp.cumsum(selected) - 1
    chosen = selected.reshape(-1, *[1] * (compact.ndim - 1))
    return jnp.where(chosen, compact[rank], jnp.zeros((), compact.dtype))


def scaled_gradients(
    gradients: Gradients, selected: jax.Array, scale: jax.Array
) -> tuple[object, ...]:
    """Cotangents of (hidden, table, bias, rows, selected) for a loss whose gradients are known.

    Args:
        gradients: of hidden, table and bias.
        selected: bool [positions].
        scale: cotangent of the loss, a scalar.
    """
    scaled = [gradient * scale.astype(gradient.dtype) for gradient in gradients]
    nothing = np.zeros(selected.shape, jax.dtypes.float0)
    zeros = jnp.zeros(selected.shape, jnp.float32)
    return (*scaled, (nothing, zeros, zeros), nothing)


def products(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """`einsum` with float32 sums, whatever the factors are."""
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
