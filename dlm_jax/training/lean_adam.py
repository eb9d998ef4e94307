"""Adam with a smaller state: a first moment of 16 bits, and a second one of rows and columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# A matrix with a side shorter than this keeps its whole second moment, which costs little there.
_SHORTEST_SIDE = 128


class LeanAdamState(NamedTuple):
    """A pytree; each field but `step` has the structure of the parameters.

    Attributes:
        step: int32 [], number of finished updates.
        mu: first moments, in the dtype that was asked for.
        nu: second moments, float32; of a factored parameter their means over its longest dimension,
            which has size 1 here.
        nu_columns: of a factored parameter, the means over its second longest dimension, which has
            size 1 here; float32 [] for the others.
    """

    step: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    nu_columns: optax.Updates


def scale_by_lean_adam(
    b1: float, b2: float, epsilon: float, *, mu_dtype: str, factored: bool
) -> optax.GradientTransformation:
    """Scales gradients as Adam does (Kingma & Ba 2015), from less memory.

    The moments are updated and used in float32 and stored as asked. Rounding the first one to
    bfloat16 is harmless: a step moves it by 1 - b1 of its distance to the gradient, which is more
    than bfloat16's spacing of 1/256 unless the two are nearly equal anyway. A factored second
    moment is estimated as that of Adafactor (Shazeer & Stern 2018, section 3): v_ij = r_i c_j / r̄,
    with the running means r of the rows and c of the columns of the squared gradient. The two
    longest dimensions of an array are its rows and columns, if both have at least 128 elements;
    other arrays keep all of their second moment.

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        epsilon: added to the root of the second moment.
        mu_dtype: dtype of the stored first moment.
        factored: whether large second moments are factored.

    Returns:
        A transformation with the state `LeanAdamState`.
    """

    def sides(shape: tuple[int, ...]) -> tuple[int, int] | None:
        if not factored or len(shape) < 2:
            return None
        columns, rows = (int(axis) for axis in np.argsort(shape, kind="stable")[-2:])
        return (rows, columns) if shape[columns] >= _SHORTEST_SIDE else None

    def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        return shape[:axis] + (1,) + shape[axis + 1 :]

    def init(parameters: optax.Params) -> LeanAdamState:
        def nu(leaf: Any) -> jax.Array:
            axes = sides(leaf.shape)
            return jnp.zeros(without(leaf.shape, axes[0]) if axes else leaf.shape, jnp.float32)

        def nu_columns(leaf: Any) -> jax.Array:
            axes = sides(leaf.shape)
            return jnp.zeros(without(leaf.shape, axes[1]) if axes else (), jnp.float32)

        return LeanAdamState(
            step=jnp.zeros((), jnp.int32),
            mu=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, mu_dtype), parameters),
            nu=jax.tree.map(nu, parameters),
            nu_columns=jax.tree.map(nu_columns, parameters),
        )

    def scaled(
        gradient: jax.Array, mu: jax.Array, nu: jax.Array, nu_columns: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, ...]:
        axes = sides(gradient.shape)
        mu = b1 * mu.astype(jnp.float32) + (1 - b1) * gradient
        square = jnp.square(gradient)
        if axes is None:
            nu = second = b2 * nu + (1 - b2) * square
        else:
            longest, second_longest = axes
            nu = b2 * nu + (1 - b2) * square.mean(longest, keepdims=True)
            nu_columns = b2 * nu_columns + (1 - b2) * square.mean(second_longest, keepdims=True)
            mean = nu.mean(second_longest, keepdims=True)
            # A matrix without any gradient so far would divide zero by zero.
            second = nu * (nu_columns / jnp.maximum(mean, np.finfo(np.float32).tiny))
        second = second / (1 - b2**step)
        update = mu / (1 - b1**step) / (jnp.sqrt(second) + epsilon)
        return update, mu.astype(mu_dtype), nu, nu_columns

    def update(
        gradients: optax.Updates, state: LeanAdamState, parameters: optax.Params | None = None
    ) -> tuple[optax.Updates, LeanAdamState]:
        step = state.step + 1
        results = jax.tree.map(
            lambda g, mu, nu, columns: scaled(g, mu, nu, columns, step),
            gradients,
            state.mu,
            state.nu,
            state.nu_columns,
        )
        updates, *moments = jax.tree.transpose(
            jax.tree.structure(gradients), jax.tree.structure((0,) * 4), results
        )
        return updates, LeanAdamState(step, *moments)

    return optax.GradientTransformation(init, update)
