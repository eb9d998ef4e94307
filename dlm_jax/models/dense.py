"""Products with the kernels of the layers, laid out as the backend multiplies fastest."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dlm_jax.parallel.mesh import single_cpu

PRODUCT = "product"
"""What rematerialisation calls a product that it would not know for one."""

# Rows of a matrix that begin a multiple of 1 KiB apart share at most four of the 64 sets of a CPU's
# first cache, and drive each other out: the product of 2048x768 with 768x3072 runs at 43 GFLOP/s on
# a Zen 3 core, and at 88 with 3088 columns. One more line of 64 bytes a row spreads them.
_CROWDED = 1024
_LINE = 64
# With fewer rows than these, widening the kernel costs more than it saves.
_MIN_ROWS = 512


def dense(x: jax.Array, kernel: jax.Array, num_inputs: int) -> jax.Array:
    """`tensordot(x, kernel, axes=num_inputs)` of equal dtypes, and its derivative.

    Args:
        x: [..., *inputs].
        kernel: [*inputs, *outputs].
        num_inputs: how many axes are summed over.

    Returns:
        [..., *outputs] in the dtype of `x`.
    """
    lead, outputs = x.shape[: x.ndim - num_inputs], kernel.shape[num_inputs:]
    rows, inputs = math.prod(lead), math.prod(kernel.shape[:num_inputs])
    if rows < _MIN_ROWS or not single_cpu():
        return jnp.tensordot(x, kernel, axes=num_inputs)
    flat = _spread_product(x.reshape(rows, inputs), kernel.reshape(inputs, -1))
    return checkpoint_name(flat, PRODUCT).reshape(*lead, *outputs)


@jax.custom_vjp
def _spread_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # Neither factor nor the product has crowded rows; what is added is zero and cut off again.
    return (_widened(x) @ _widened(kernel, both=True))[:, : kernel.shape[1]]


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Kept as it was multiplied: widening it again takes as long as a layer's norm.
    return _spread_product(x, kernel), (_widened(x), kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    wide_x, kernel = residuals
    inputs, outputs = kernel.shape
    gradient = _widened(gradient)
    x_gradient = gradient @ _widened(kernel, both=True).T
    return x_gradient[:, :inputs], (wide_x.T @ gradient)[:inputs, :outputs]


_spread_product.defvjp(_forward, _backward)


def _widened(x: jax.Array, *, both: bool = False) -> jax.Array:
    """x [rows, columns] with zeros behind it, so that no axis crowds the rows along it."""
    rows, columns = (_uncrowded(size, x.dtype.itemsize) - size for size in x.shape)
    return jnp.pad(x, ((0, rows if both else 0), (0, columns)))


def _uncrowded(size: int, itemsize: int) -> int:
    return size + _LINE // itemsize if size * itemsize % _CROWDED == 0 else size
