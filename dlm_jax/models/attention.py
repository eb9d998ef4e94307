"""Attention within segments: a token sees all tokens of its own, or those up to itself."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from dlm_jax.models.dropout import keep_mask, kept_scale
from dlm_jax.models.fused_attention import dot_product_attention, fits_splash, splash_attention
from dlm_jax.parallel.mesh import platform, single_cpu

# Finite, so that a row whose every score is masked gives no NaN.
_MASKED = -1e30
# Bytes of float32 scores that one block may hold: they should stay in the last-level cache.
_BLOCK_BYTES = 8 * 2**20


def attention(
    qkv: jax.Array,
    segment_ids: jax.Array,
    *,
    causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_seed: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Multi-head attention within segments.

    Args:
        qkv: queries, keys and values [batch, length, 3, heads, kv].
        segment_ids: int32 [batch, length]; tokens see each other where these are equal.
        causal: whether a token sees no later place of its row. Tokens of a segment stand in order.
        dropout_rate: probability of dropping an attention probability.
        dropout_seed: uint32 [2], or None for no dropout.
        implementation: a name of `models.config.ATTENTIONS`; 'auto' is `chosen_implementation`.

    Returns:
        [batch, length, heads, kv] in the dtype of `qkv`.

    Raises:
        UserError: when 'splash' is asked for and the length is not a multiple of 128.
        ValueError: when a fused kernel is asked for together with dropout.
    """
    if dropout_seed is None or dropout_rate == 0.0:
        dropout_seed, dropout_rate = jnp.zeros((2,), jnp.uint32), 0.0
    if implementation == "auto":
        implementation = chosen_implementation(qkv.shape[1], dropout=dropout_rate > 0)
    if implementation != "xla":
        if dropout_rate:
            raise ValueError(f"implementation={implementation!r} has no dropout.")
        kernel = splash_attention if implementation == "splash" else dot_product_attention
        return checkpoint_name(kernel(qkv, segment_ids, causal=causal), "attention_context")
    if single_cpu():
        return blockwise_attention(qkv, segment_ids, dropout_seed, dropout_rate, causal)
    return dense_attention(qkv, segment_ids, dropout_seed, dropout_rate, causal)


def chosen_implementation(length: int, *, dropout: bool) -> str:
    """What 'auto' stands for on the platform that is compiled for.

    Fused kernels have no dropout, so where attention probabilities are dropped, it is XLA on every
    platform.

    Args:
        length: tokens in a row; the TPU kernel takes multiples of 128.
        dropout: whether attention probabilities are dropped.

    Returns:
        'splash' on TPUs, 'dot_product' on GPUs, else 'xla'.
    """
    if dropout:
        return "xla"
    name = platform()
    if name == "tpu" and fits_splash(length):
        return "splash"
    return "dot_product" if name in ("gpu", "cuda", "rocm") else "xla"


def dense_attention(
    qkv: jax.Array,
    segment_ids: jax.Array,
    seed: jax.Array,
    dropout_rate: float,
    causal: bool = False,
) -> jax.Array:
    """The reference: all scores [batch, heads, length, length] at once, differentiated by JAX."""
    query, key, value = _heads_first(qkv)
    scores = _scores(query, key, _seen(segment_ids, causal))
    probabilities = jax.nn.softmax(scores, axis=-1)
    if dropout_rate:
        kept = keep_mask(seed, scores.shape, dropout_rate)
        probabilities = jnp.where(kept, probabilities * kept_scale(dropout_rate), 0.0)
    context = jnp.einsum("bhqm,bhmk->bqhk", probabilities.astype(value.dtype), value)
    return checkpoint_name(context, "attention_context")


def _heads_first(qkv: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # [batch, length, 3, heads, kv] -> three of [batch, heads, length, kv]
    split = qkv.transpose(2, 0, 3, 1, 4)
    return split[0], split[1], split[2]


def _seen(segment_ids: jax.Array, causal: bool) -> jax.Array:
    # bool [batch, query, key]
    seen = segment_ids[:, :, None] == segment_ids[:, None, :]
    return seen & jnp.tri(segment_ids.shape[1], dtype=bool) if causal else seen


def _scores(query: jax.Array, key: jax.Array, seen: jax.Array) -> jax.Array:
    # float32 [batch, heads, query, key]
    query = query * jnp.asarray(1.0 / math.sqrt(query.shape[-1]), query.dtype)
    scores = jnp.einsum("bhqk,bhmk->bhqm", query, key, preferred_element_type=jnp.float32)
    return jnp.where(seen[:, None], scores, _MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def blockwise_attention(
    qkv: jax.Array,
    segment_ids: jax.Array,
    seed: jax.Array,
    dropout_rate: float,
    causal: bool = False,
) -> jax.Array:
    """The same, a few rows of the batch at a time, so that the scores never leave the cache.

    The backward pass recomputes the probabilities from their log-normalisers (Dao et al. 2022,
    FlashAttention, section 3.1); no [batch, heads, length, length] waits for it in memory.
    """
    return _blockwise_forward(qkv, segment_ids, seed, dropout_rate, causal)[0]


def _block_rows(batch: int, heads: int, length: int) -> int:
    fitting = max(1, _BLOCK_BYTES // (4 * heads * length * length))
    return max(rows for rows in range(1, batch + 1) if batch % rows == 0 and rows <= fitting)


def _blocks(x: jax.Array, rows: int) -> jax.Array:
    return x.reshape(x.shape[0] // rows, rows, *x.shape[1:])


def _dropped(x: jax.Array, seed: jax.Array, rate: float, block: jax.Array) -> jax.Array:
    # x [rows, heads, query, key] is block number `block` of the whole batch's probabilities.
    if not rate:
        return x
    first_row = block * (x.shape[0] * x.shape[1] * x.shape[2])
    return jnp.where(keep_mask(seed, x.shape, rate, first_row), x * kept_scale(rate), 0.0)


def _blockwise_forward(
    qkv: jax.Array, segment_ids: jax.Array, seed: jax.Array, dropout_rate: float, causal: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    batch, length, _, heads, _ = qkv.shape
    rows = _block_rows(batch, heads, length)

    def one_block(block: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        index, query, key, value, seen = block
        scores = _scores(query, key, seen)
        peak = scores.max(-1, keepdims=True)
        exponentials = jnp.exp(scores - peak)
        total = exponentials.sum(-1, keepdims=True)
        weights = _dropped(exponentials, seed, dropout_rate, index).astype(value.dtype)
        context = jnp.einsum("bhqm,bhmk->bhqk", weights, value, preferred_element_type=jnp.float32)
        return (context / total).astype(value.dtype), (peak + jnp.log(total))[..., 0]

    # Transpositions stay outside the loop, where XLA spreads them over the cores, and so does the
    # mask: of segment ids sliced within it, XLA makes loops that are not vectorised.
    inputs = (*_heads_first(qkv), _seen(segment_ids, causal))
    blocks = (jnp.arange(batch // rows), *(_blocks(x, rows) for x in inputs))
    context, normaliser = jax.lax.map(one_block, blocks)
    context = context.reshape(batch, *context.shape[2:]).transpose(0, 2, 1, 3)
    context = checkpoint_name(context, "attention_context")
    normaliser = checkpoint_name(normaliser, "attention_normaliser")
    return context, (qkv, segment_ids, seed, context, normaliser)


def _blockwise_backward(
    dropout_rate: float, causal: bool, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    qkv, segment_ids, seed, context, normaliser = residuals
    rows = qkv.shape[0] // normaliser.shape[0]
    scale = 1.0 / math.sqrt(qkv.shape[-1])

    def one_block(block: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        index, query, key, value, outer, query_t, outer_t, seen, log_total, inner = block
        probabilities = jnp.exp(_scores(query, key, seen) - log_total[..., None])
        weights = _dropped(probabilities, seed, dropout_rate, index).astype(value.dtype)
        weight_gradient = jnp.einsum(
            "bhqk,bhmk->bhqm", outer, value, preferred_element_type=jnp.float32
        )
        weight_gradient = _dropped(weight_gradient, seed, dropout_rate, index)
        score_gradient = (probabilities * (weight_gradient - inner[..., None]) * scale).astype(
            value.dtype
        )
        # Transposing the narrow factor instead of the square one makes the last two products
        # three times as fast with the matrix kernels of XLA on CPUs.
        return (
            jnp.einsum("bhqm,bhmk->bhqk", score_gradient, key),
            jnp.einsum("bhkq,bhqm->bhkm", query_t, score_gradient),
            jnp.einsum("bhkq,bhqm->bhkm", outer_t, weights),
        )

    query, key, value = _heads_first(qkv)
    outer = gradient.transpose(0, 2, 1, 3)
    inner = (gradient * context).astype(jnp.float32).sum(-1).transpose(0, 2, 1)
    seen = _seen(segment_ids, causal)
    inputs = (query, key, value, outer, query.swapaxes(2, 3), outer.swapaxes(2, 3), seen)
    blocks = (
        jnp.arange(normaliser.shape[0]),
        *(_blocks(x, rows) for x in inputs),
        normaliser,
        _blocks(inner, rows),
    )
    products = jax.lax.map(one_block, blocks)
    by_query, by_key, by_value = (x.reshape(-1, *x.shape[2:]) for x in products)
    qkv_gradient = jnp.stack(
        [
            by_query.transpose(0, 2, 1, 3),
            by_key.transpose(0, 3, 1, 2),
            by_value.transpose(0, 3, 1, 2),
        ],
        axis=2,
    )
    no_gradient = jax.dtypes.float0
    return (
        qkv_gradient,
        np.zeros(segment_ids.shape, no_gradient),
        np.zeros(seed.shape, no_gradient),
    )


blockwise_attention.defvjp(_blockwise_forward, _blockwise_backward)
