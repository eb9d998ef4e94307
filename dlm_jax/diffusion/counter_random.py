"""Counter-based randomness: every random number is a hash of what it belongs to.

A draw is addressed by (seed, purpose, draw number) through the key and by two 32-bit words through
the counter, in the diffusion room (example id, position). Nothing is consumed in sequence, so a
number does not depend on batch size, row order, packing, mesh or on what was drawn before.
"""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

_LOW_BITS = np.uint32(0xFFFF)
_UNIT = np.float32(2.0**-32)


class Purpose(enum.IntEnum):
    """What a stream of random words is for; the numbers are part of every run's reproducibility."""

    SHIFT = 1
    TIME = 2
    STRATUM = 3
    CORRUPTION = 4
    PROMPT = 5
    SELECTION = 6
    REPLACEMENT = 7
    TOKEN_SAMPLING = 8
    POSITION_SAMPLING = 9


def as_uint32(values: jax.typing.ArrayLike) -> jax.Array:
    """Reinterprets 32-bit integers as uint32, so that ids up to 2**32 survive an int32 batch."""
    array = jnp.asarray(values)
    if array.dtype == jnp.int32:
        return jax.lax.bitcast_convert_type(array, jnp.uint32)
    return array.astype(jnp.uint32)


def random_words(
    key: jax.Array,
    purpose: int,
    draw: jax.typing.ArrayLike,
    high: jax.typing.ArrayLike,
    low: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Two independent uniform words for each counter.

    Args:
      key: typed key of implementation ``threefry2x32`` (``jax.random.key(seed,
        impl='threefry2x32')``).
      purpose: which stream, see `Purpose`.
      draw: number of the draw, a scalar in [0, 2**32) (training: 0 or the epoch; evaluation: the
        Monte-Carlo draw; sampling: the step).
      high: [...] 32-bit integers, in this room the example id.
      low: [...] 32-bit integers that broadcast against `high`, in this room the position.

    Returns:
      Two uint32 arrays of the broadcast shape.

    Raises:
      ValueError: `key` is not a threefry2x32 key.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Threefry-2x32-20).
    """
    folded = jax.random.fold_in(jax.random.fold_in(key, int(purpose)), as_uint32(draw))
    data = jax.random.key_data(folded)
    if data.shape != (2,):
        raise ValueError("the key must be a scalar of implementation 'threefry2x32'")
    return threefry(data[0], data[1], as_uint32(high), as_uint32(low))


def threefry(
    key_high: jax.Array, key_low: jax.Array, high: jax.Array, low: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of counters under keys, all uint32 arrays that broadcast together.

    Elementwise, unlike `jax.extend.random.threefry_2x32`, which folds the counters into one flat
    array: a sharded batch stays where it is.
    """
    words = jnp.broadcast_arrays(key_high, key_low, high, low)
    first, second = threefry2x32_p.bind(*words)
    return first, second


def uniform(words: jax.Array) -> jax.Array:
    """Maps uniform uint32 words to float32 in [0, 1), finer towards 0.

    Truncated to 24 bits in general, to the full 32 bits below 2**-8, so that ``uniform(w) < p``
    holds with probability p up to a relative error of 2**-24 for every p >= 2**-8, and up to
    2**-32 absolutely below; p = 1 always holds and p = 0 never.
    """
    coarse = (words >> 8).astype(jnp.float32) * np.float32(2.0**-24)
    fine = words.astype(jnp.float32) * _UNIT
    return jnp.where(words < np.uint32(1 << 24), fine, coarse)


def positive_uniform(words: jax.Array) -> jax.Array:
    """Maps uniform uint32 words to float32 in (0, 1], in steps of 2**-32 (before rounding)."""
    return (words.astype(jnp.float32) + 1.0) * _UNIT


def multiply_high(a: jax.Array, b: jax.typing.ArrayLike) -> jax.Array:
    """The upper 32 bits of the 64-bit product of uint32 arrays.

    ``multiply_high(word, n)`` maps a uniform word to {0, ..., n - 1} monotonically, with
    probabilities equal up to 2**-32: the low-discrepancy of the word survives.
    """
    b = as_uint32(b)
    a_high, a_low = a >> 16, a & _LOW_BITS
    b_high, b_low = b >> 16, b & _LOW_BITS
    middle, other = a_high * b_low, a_low * b_high
    carry = (a_low * b_low >> 16) + (middle & _LOW_BITS) + (other & _LOW_BITS)
    return a_high * b_high + (middle >> 16) + (other >> 16) + (carry >> 16)
