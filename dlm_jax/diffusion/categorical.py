"""Categorical sampling in float32 that keeps the tail right, with about √V random words a row.

`jax.random.categorical` perturbs logits by float32 Gumbel noise, which by default never exceeds
about 16: tokens some e**16 times less likely than the best are never drawn, an accidental top-p.
Here the race is run with exponential variates of full relative precision (64 random bits down to
2**-64), in two stages: first between blocks of the vocabulary, then within the winning block.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.diffusion.counter_random import threefry

_BLOCK_STAGE, _TOKEN_STAGE = 0, 1


def exponential(high: jax.Array, low: jax.Array) -> jax.Array:
    """Exp(1) variates of 64 random bits, exact to float32 relative precision near zero.

    Args:
      high: [...] uint32, the upper word.
      low: [...] uint32, the lower word.

    Returns:
      [...] float32 in [2**-65, 16.7]. Small values matter: an unlikely category wins a race only
      by an arrival time as small as its probability. The cut at 16.7 removes a mass of 2**-24
      from the slow side, on which no category wins but against slower ones.
    """
    scale = np.float32(2.0**-32)
    fraction = (high.astype(jnp.float32) + (low.astype(jnp.float32) + 0.5) * scale) * scale
    return -jnp.log1p(-jnp.minimum(fraction, np.float32(1.0 - 2.0**-24)))


def race(logits: jax.Array, high: jax.Array, low: jax.Array) -> jax.Array:
    """Index of the first arrival when category i arrives after Exp(1) / exp(logit_i).

    Args:
      logits: [..., n] float32 unnormalised log-probabilities; -inf never wins.
      high: [..., n] uint32 upper random words.
      low: [..., n] uint32 lower random words.

    Returns:
      [...] int32; index i with probability softmax(logits)_i.
    """
    return jnp.argmax(logits - jnp.log(exponential(high, low)), axis=-1).astype(jnp.int32)


def sample_categorical(logits: jax.Array, words: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Draws a category from softmax(logits), tails included.

    The law factorises over blocks of about √V neighbours: P(block)·P(token | block). Each race
    needs one variate per contestant, so about 2√V hashes instead of V.

    Args:
      logits: [..., V] float; computed with in float32. -inf excludes a category, at least one must
        be finite.
      words: two uint32 arrays [...] of independent random words per element, as
        `counter_random.random_words` gives; they seed the hashes of the two races. Either they or
        `logits` may broadcast over leading axes.

    Returns:
      [...] int32.
    """
    logits = logits.astype(jnp.float32)
    size = logits.shape[-1]
    block = math.isqrt(size - 1) + 1
    num_blocks = -(-size // block)
    # One shared maximum, so that padding and exponential fuse into the reduction: what underflows
    # lies below e**-87, far beneath the resolution of the random words.
    masses = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, num_blocks * block - size)]
    masses = jnp.pad(masses, padding).reshape(*logits.shape[:-1], num_blocks, block).sum(axis=-1)
    chosen = race(jnp.log(masses), *_race_words(words, _BLOCK_STAGE, num_blocks))
    index = chosen[..., None] * block + jnp.arange(block, dtype=jnp.int32)
    logits = jnp.broadcast_to(logits, (*chosen.shape, size))
    inside = jnp.take_along_axis(logits, jnp.minimum(index, size - 1), axis=-1)
    inside = jnp.where(index < size, inside, -jnp.inf)
    return chosen * block + race(inside, *_race_words(words, _TOKEN_STAGE, block))


def _race_words(
    words: tuple[jax.Array, jax.Array], stage: int, size: int
) -> tuple[jax.Array, jax.Array]:
    key_high, key_low = (word[..., None] for word in words)
    return threefry(key_high, key_low, jnp.uint32(stage), jnp.arange(size, dtype=jnp.uint32))
