"""Dropout whose mask is a hash of the element's position, so the backward pass keeps nothing.

A dropout mask needs no cryptographic generator: with threefry, drawing the masks costs as much as
the matrix products on a CPU. Each element gets 32 bits of an integer hash of (key, row, column)
that compilers vectorise and fuse into the multiplication, in both passes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_WORD = 2**32


def seed_words(key: jax.Array) -> jax.Array:
    """Two uint32 words [2] of a typed key, the seed of the masks of one call site."""
    words = jax.random.key_data(key)
    return words.reshape(-1)[-2:].astype(jnp.uint32)


def keep_mask(
    seed: jax.Array, shape: tuple[int, ...], rate: float, first_row: jax.Array | int = 0
) -> jax.Array:
    """Draws which elements survive.

    Args:
        seed: uint32 [2].
        shape: at least one dimension; the last one is the column, the others number the rows.
        rate: probability that an element is dropped, exact to 2**-32.
        first_row: number of the first row, for a block of a larger array.

    Returns:
        bool [shape], True where the element is kept.
    """
    row = jnp.zeros(shape[:-1], jnp.uint32) + jnp.uint32(first_row)
    stride = 1
    for dimension in reversed(range(len(shape) - 1)):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape[:-1], dimension)
        row += index * jnp.uint32(stride)
        stride *= shape[dimension]
    row_hash = _mix(_mix(row ^ seed[0]) + seed[1])
    column = jnp.arange(shape[-1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    return _mix(row_hash[..., None] + column) >= jnp.uint32(_threshold(rate))


def _mix(x: jax.Array) -> jax.Array:
    # A bijection of 32-bit words with nearly no bias in how input bits flip output bits:
    # xor-shift-multiply with the constants of Wellons' search ("Hash Function Prospector").
    x ^= x >> 16
    x *= jnp.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _threshold(rate: float) -> int:
    return round(rate * _WORD)


def kept_scale(rate: float) -> float:
    """What a kept element is multiplied by, so that its expectation is the element itself."""
    return _WORD / (_WORD - _threshold(rate))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(x: jax.Array, seed: jax.Array, rate: float) -> jax.Array:
    """Drops elements of x [...] with probability `rate` and rescales the others.

    Args:
        x: any floating dtype.
        seed: uint32 [2] of `seed_words`.
        rate: probability in [0, 1).
    """
    kept = keep_mask(seed, x.shape, rate)
    return jnp.where(kept, x * jnp.asarray(kept_scale(rate), x.dtype), jnp.zeros((), x.dtype))


def _forward(x: jax.Array, seed: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    return dropout(x, seed, rate), seed


def _backward(rate: float, seed: jax.Array, gradient: jax.Array) -> tuple[jax.Array, np.ndarray]:
    return dropout(gradient, seed, rate), np.zeros((2,), jax.dtypes.float0)


dropout.defvjp(_forward, _backward)
