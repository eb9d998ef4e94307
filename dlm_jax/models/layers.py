"""Parameters with logical axes, and the layers that hold them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from dlm_jax.models.dense import dense
from dlm_jax.models.sharded_lookup import sharded_lookup
from dlm_jax.models.vocabulary_shards import vocabulary_shards
from dlm_jax.parallel.rules import constrain

Initializer = Callable[[jax.Array, Sequence[int], jnp.dtype], jax.Array]

# Standard deviation of BERT's and RoBERTa's initial matrices (Devlin et al. 2019, appendix A.2).
INITIAL_STDDEV = 0.02


class Stack:
    """Creates parameters, all with the same leading stacked axes.

    Args:
        rngs: stream of initialisation keys (`rngs.params`).
        shape: sizes of the stacked axes, `()` for a layer that stands alone.
        axes: their logical names.
    """

    def __init__(
        self, rngs: nnx.Rngs, shape: tuple[int, ...] = (), axes: tuple[str, ...] = ()
    ) -> None:
        self._rngs = rngs
        self._shape = shape
        self._axes = axes

    def parameter(
        self,
        initializer: Initializer,
        shape: tuple[int, ...],
        logical_axes: tuple[str | None, ...],
    ) -> nnx.Param[jax.Array]:
        """A float32 parameter of `shape` behind the stacked axes, its logical names as metadata."""
        value = initializer(self._rngs.params(), (*self._shape, *shape), jnp.float32)
        return nnx.Param(value, logical_axes=(*self._axes, *logical_axes))


class Linear(nnx.Module):
    """A kernel [*inputs, *outputs] and a bias [*outputs]."""

    def __init__(
        self,
        stack: Stack,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        input_axes: tuple[str | None, ...],
        output_axes: tuple[str | None, ...],
    ) -> None:
        self.kernel = stack.parameter(
            nnx.initializers.normal(INITIAL_STDDEV),
            (*inputs, *outputs),
            (*input_axes, *output_axes),
        )
        self.bias = stack.parameter(nnx.initializers.zeros_init(), outputs, output_axes)
        self._num_inputs = len(inputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., *inputs] to [..., *outputs] in the dtype of `x`."""
        product = dense(x, self.kernel[...].astype(x.dtype), self._num_inputs)
        return product + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, in float32."""

    def __init__(self, stack: Stack, size: int, epsilon: float) -> None:
        self.scale = stack.parameter(nnx.initializers.ones_init(), (size,), ("embed",))
        self.bias = stack.parameter(nnx.initializers.zeros_init(), (size,), ("embed",))
        self._epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., size]; returns the dtype of `x`."""
        return _layer_norm(x, self.scale[...], self.bias[...], self._epsilon)


def _moments(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    # float32 x; the mean and the reciprocal standard deviation, each [..., 1]
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    wide = x.astype(jnp.float32)
    mean, inverse = _moments(wide, epsilon)
    normalised = (wide - mean) * inverse
    # The input and two numbers a row are kept; automatic differentiation would keep more copies.
    return (normalised * scale + bias).astype(x.dtype), (x, scale, mean, inverse)


def _layer_norm_backward(
    epsilon: float, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse = residuals
    gradient = gradient.astype(jnp.float32)
    normalised = (x.astype(jnp.float32) - mean) * inverse
    scaled = gradient * scale
    along = (scaled * normalised).mean(-1, keepdims=True)
    x_gradient = inverse * (scaled - scaled.mean(-1, keepdims=True) - normalised * along)
    rows = tuple(range(x.ndim - 1))
    return x_gradient.astype(x.dtype), (gradient * normalised).sum(rows), gradient.sum(rows)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class Embedding(nnx.Module):
    """A table of rows [size, embed]; one that is split by rows over a mesh is never gathered."""

    def __init__(self, stack: Stack, size: int, embed_dim: int, axis: str | None) -> None:
        self.embedding = stack.parameter(
            nnx.initializers.normal(INITIAL_STDDEV), (size, embed_dim), (axis, "embed")
        )
        self._axis = axis

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Rows [..., embed] of int32 ids [...]."""
        table = self.embedding[...]
        if self._axis != "vocab":
            # Small: gathered on purpose, or the looked-up rows would lie split as the table does.
            return constrain(table, (self._axis, "embed"))[ids]
        shards = vocabulary_shards()
        if shards is None:
            return table[ids]
        return sharded_lookup(table, ids.reshape(-1), shards).reshape(*ids.shape, -1)
