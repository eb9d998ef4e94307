"""Rows of a table that is split by rows over a mesh, without gathering it or its gradient.

Each device looks up, for the tokens of its whole group, the rows that its shard holds; adding the
shards' answers (all but one are zero, so the sum is exact) gives every device the rows of its own
tokens. The backward pass gathers the tokens' gradients and adds them to the shard that each belongs
to. Both go a chunk of tokens at a time, so that what is held beside the table does not grow with
the mesh.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.models.vocabulary_shards import VocabularyShards, padded_rows, padded_table

# Bytes of the float32 rows of a group's tokens in one chunk.
_CHUNK_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class _Plan:
    shards: VocabularyShards
    chunk: int
    rows: int


def sharded_lookup(table: jax.Array, ids: jax.Array, shards: VocabularyShards) -> jax.Array:
    """Rows of a table over the mesh of `jax.set_mesh`.

    Args:
        table: float32 [vocab, embed]; padded when its shards do not divide it.
        ids: int32 [tokens], each at least 0 and less than vocab.
        shards: how vocabulary and tokens lie over the mesh.

    Returns:
        float32 [tokens, embed], split over `shards.tokens`.
    """
    tokens = ids.shape[0]
    ids = padded_rows(ids, -tokens % shards.num_token_shards)
    table = padded_table(table, shards)
    fitting = _CHUNK_BYTES // (4 * table.shape[1] * shards.group)
    chunk = max(1, min(fitting, ids.shape[0] // shards.num_token_shards))
    plan = _Plan(shards, chunk, table.shape[0] // shards.num_shards)
    return _lookup(table, ids, plan)[:tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table: jax.Array, ids: jax.Array, plan: _Plan) -> jax.Array:
    return jax.shard_map(
        functools.partial(_rows, plan=plan),
        in_specs=(plan.shards.vocabulary_spec, plan.shards.token_spec),
        out_specs=plan.shards.token_spec,
        check_vma=False,
    )(table, ids)


def _forward(table: jax.Array, ids: jax.Array, plan: _Plan) -> tuple[jax.Array, jax.Array]:
    return _lookup(table, ids, plan), ids


def _backward(plan: _Plan, ids: jax.Array, gradient: jax.Array) -> tuple[jax.Array, np.ndarray]:
    table_gradient = jax.shard_map(
        functools.partial(_row_gradients, plan=plan),
        in_specs=(plan.shards.token_spec, plan.shards.token_spec),
        out_specs=plan.shards.vocabulary_spec,
        check_vma=False,
    )(ids, gradient)
    return table_gradient, np.zeros(ids.shape, jax.dtypes.float0)


_lookup.defvjp(_forward, _backward)


def _chunks(x: jax.Array, chunk: int) -> jax.Array:
    x = padded_rows(x, -x.shape[0] % chunk)
    return x.reshape(-1, chunk, *x.shape[1:])


def _place(ids: jax.Array, plan: _Plan) -> jax.Array:
    # Row of this device's shard, or `plan.rows`, one past its end, where another shard has it.
    place = plan.shards.gather(ids) - plan.shards.first_row(plan.rows)
    return jnp.where((place >= 0) & (place < plan.rows), place, plan.rows)


def _rows(table: jax.Array, ids: jax.Array, *, plan: _Plan) -> jax.Array:
    def look_up(chunk: jax.Array) -> jax.Array:
        found = table.at[_place(chunk, plan)].get(mode="fill", fill_value=0)
        return plan.shards.add_and_scatter(found)

    rows = jax.lax.map(look_up, _chunks(ids, plan.chunk))
    return rows.reshape(-1, table.shape[1])[: ids.shape[0]]


def _row_gradients(ids: jax.Array, gradient: jax.Array, *, plan: _Plan) -> jax.Array:
    def add(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        chunk_ids, chunk_gradient = chunk
        place = _place(chunk_ids, plan)
        return total.at[place].add(plan.shards.gather(chunk_gradient), mode="drop"), None

    zeros = jnp.zeros((plan.rows, gradient.shape[1]), gradient.dtype)
    chunks = (_chunks(ids, plan.chunk), _chunks(gradient, plan.chunk))
    return plan.shards.add_replicas(jax.lax.scan(add, zeros, chunks)[0])
