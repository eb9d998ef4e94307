"""Causal attention of new tokens over the keys and values that are kept of those before them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# Places whose keys are looked at together. Rows of any length go through pieces of one shape, and
# what a row cannot see adds exactly 0, so that no bit depends on how long the others are.
CHUNK = 64
_MASKED = -1e30


def cached_attention(
    query: jax.Array, cache: jax.Array, layer: jax.Array, first_row: jax.Array, places: jax.Array
) -> jax.Array:
    """Attends from some places of some rows to all places up to them.

    A running softmax over pieces of `CHUNK` places (Dao et al. 2022, FlashAttention, section 3.1).

    Args:
        query: [rows, width, heads, kv].
        cache: [layers, all rows, length, 2, heads, kv], keys and values, those of `places` among
            them; the length is a multiple of `CHUNK`.
        layer: int32 scalar, whose cache it is.
        first_row: int32 scalar; the rows are this one and those after it.
        places: int32 [rows, width], where the queries stand.

    Returns:
        [rows, width, heads, kv] in the dtype of `query`.
    """
    rows, width, heads, kv = query.shape
    query = query * jnp.asarray(1.0 / math.sqrt(kv), query.dtype)

    def one_chunk(number: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        peak, total, context = sums
        begin = number * CHUNK
        start = (layer, first_row, begin, 0, 0, 0)
        piece = jax.lax.dynamic_slice(cache, start, (1, rows, CHUNK, 2, heads, kv))[0]
        key, value = piece[:, :, 0], piece[:, :, 1]
        scores = jnp.einsum("rqhk,rmhk->rhqm", query, key, preferred_element_type=jnp.float32)
        seen = begin + jnp.arange(CHUNK) <= places[:, None, :, None]
        scores = jnp.where(seen, scores, _MASKED)
        # Every query sees place 0, so that the peak is that of a visible key from the start.
        higher = jnp.maximum(peak, scores.max(-1))
        scale = jnp.exp(peak - higher)
        weights = jnp.exp(scores - higher[..., None])
        update = jnp.einsum(
            "rhqm,rmhk->rhqk",
            weights.astype(value.dtype),
            value,
            preferred_element_type=jnp.float32,
        )
        return higher, total * scale + weights.sum(-1), context * scale[..., None] + update

    shape = (rows, heads, width)
    nothing = (jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros((*shape, kv)))
    _, total, context = jax.lax.fori_loop(0, places.max() // CHUNK + 1, one_chunk, nothing)
    return (context / total[..., None]).astype(query.dtype).transpose(0, 2, 1, 3)


def with_new(
    cache: jax.Array,
    keys_and_values: jax.Array,
    layer: jax.Array,
    first_row: jax.Array,
    places: jax.Array,
) -> jax.Array:
    """The cache with [rows, width, 2, heads, kv] written at the places of some rows of a layer."""
    rows = first_row + jnp.arange(places.shape[0])[:, None]
    return cache.at[layer, rows, places].set(keys_and_values)
