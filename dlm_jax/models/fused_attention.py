"""Attention kernels that never hold all scores: splash on TPUs, and what JAX offers on GPUs."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.errors import UserError
from dlm_jax.parallel.rules import active_rules, partition_spec

# Tokens in the tiles of the TPU kernel: whole lanes of 128, and few enough for on-chip memory.
_SPLASH_BLOCKS = (512, 384, 256, 128)
_LANES = 128


def fits_splash(length: int) -> bool:
    """Whether the TPU kernel can take rows of `length` tokens: a multiple of 128."""
    return length % _LANES == 0


def splash_attention(
    qkv: jax.Array, segment_ids: jax.Array, *, causal: bool = False, interpret: bool = False
) -> jax.Array:
    """The splash kernel of JAX's Pallas library, forward and backward, on each device's own rows
    and heads.

    Args:
        qkv: [batch, length, 3, heads, kv].
        segment_ids: int32 [batch, length]; tokens see each other where these are equal.
        causal: whether a token sees no later place of its row.
        interpret: runs the kernel step by step on any platform, for tests.

    Returns:
        [batch, length, heads, kv] in the dtype of `qkv`.

    Raises:
        UserError: when the length is not a multiple of 128.
    """
    length = qkv.shape[1]
    if not fits_splash(length):
        raise UserError(
            f"EncoderConfig.attention='splash' needs rows of a multiple of {_LANES} tokens, "
            f"not {length}."
        )
    attend = functools.partial(_splash_on_a_device, causal=causal, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return attend(qkv, segment_ids)
    rules = active_rules().activations
    axes = ("batch", None, None, "heads", None)
    spec = partition_spec(axes, mesh.shape, rules, qkv.shape)
    rows, _, _, heads, _ = spec
    return jax.shard_map(
        attend,
        in_specs=(spec, jax.sharding.PartitionSpec(rows, None)),
        out_specs=jax.sharding.PartitionSpec(rows, None, heads, None),
        check_vma=False,  # Pallas calls do not say over which axes their results vary.
    )(qkv, segment_ids)


def _splash_on_a_device(
    qkv: jax.Array, segment_ids: jax.Array, *, causal: bool, interpret: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, heads, kv = qkv.shape[1], qkv.shape[3], qkv.shape[4]
    query, key, value = qkv.transpose(2, 0, 3, 1, 4)
    query = query * jnp.asarray(1.0 / math.sqrt(kv), query.dtype)
    kernel = _splash_kernel(heads, length, causal, interpret)

    def one_row(query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array) -> jax.Array:
        return kernel(query, key, value, splash.SegmentIds(q=ids, kv=ids))

    return jax.vmap(one_row)(query, key, value, segment_ids).transpose(0, 2, 1, 3)


def _splash_kernel(heads: int, length: int, causal: bool, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = next(size for size in _SPLASH_BLOCKS if length % size == 0)
    # The fused backward kernel keeps the gradient of the queries once for each block of keys.
    fused = block == length
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
    pattern = splash.CausalMask if causal else splash.FullMask
    mask = splash.MultiHeadMask([pattern((length, length))] * heads)
    return splash.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention_normaliser",
        interpret=interpret,
    )


def dot_product_attention(
    qkv: jax.Array, segment_ids: jax.Array, *, causal: bool = False
) -> jax.Array:
    """`jax.nn.dot_product_attention`: cuDNN's fused kernel where a GPU is present and the numbers
    are of 16 bits, XLA's own otherwise.

    Args:
        qkv: [batch, length, 3, heads, kv].
        segment_ids: int32 [batch, length]; tokens see each other where these are equal.
        causal: whether a token sees no later place of its row.

    Returns:
        [batch, length, heads, kv] in the dtype of `qkv`.
    """
    query, key, value = qkv.transpose(2, 0, 1, 3, 4)
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    # Tracing cuDNN's kernel needs its library, which a machine that only plans does not have.
    cudnn = jax.default_backend() == "gpu" and np.dtype(qkv.dtype).itemsize == 2
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=same,
        is_causal=causal,
        implementation="cudnn" if cudnn else "xla",
    )
