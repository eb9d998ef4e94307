"""Sums over the examples of packed rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def example_sums(values: jax.Array, segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """Sums the tokens of each example.

    Args:
      values: [rows, length] numbers or bools (counted as int32).
      segment_ids: [rows, length] int32; tokens of ids from `num_segments` on are left out.
      num_segments: ids per row, 0 (padding) included.

    Returns:
      [rows, num_segments]; column s belongs to segment id s.
    """
    if values.dtype == jnp.bool_:
        values = values.astype(jnp.int32)
    return jax.vmap(
        lambda row, ids: jax.ops.segment_sum(row, ids, num_segments=num_segments),
    )(values, segment_ids)


def example_values(values: jax.Array, segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """Collects what is equal for the tokens of an example: [rows, length] -> [rows, num_segments].

    Ids without a token get the smallest value of the dtype.
    """
    return jax.vmap(
        lambda row, ids: jax.ops.segment_max(row, ids, num_segments=num_segments),
    )(values, segment_ids)


def broadcast_to_tokens(per_example: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Gives each token its example's entry: [rows, num_segments] -> [rows, length]."""
    return jnp.take_along_axis(per_example, segment_ids, axis=1)


def token_counts(selected: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Counts the selected tokens of each example.

    Args:
      selected: [rows, length] bool, False on padding.
      segment_ids: [rows, length] int32, at most `length`; 0 on padding.

    Returns:
      ([rows, length] int32, the count of each token's example; float32 scalar, the number of
      examples with at least one selected token).
    """
    counts = example_sums(selected, segment_ids, segment_ids.shape[1] + 1)
    return broadcast_to_tokens(counts, segment_ids), (counts > 0).sum().astype(jnp.float32)


def before_first_selected(
    selected: jax.Array, segment_ids: jax.Array, positions: jax.Array
) -> jax.Array:
    """[rows, length] bool: tokens of an example ahead of its first selected token.

    All tokens of an example without a selected one; False on padding.
    """
    length = segment_ids.shape[1]
    masked_positions = jnp.where(selected, positions, jnp.iinfo(jnp.int32).max)
    first = jax.vmap(
        lambda row, ids: jax.ops.segment_min(row, ids, num_segments=length + 1),
    )(masked_positions, segment_ids)
    return (positions < broadcast_to_tokens(first, segment_ids)) & (segment_ids > 0)
