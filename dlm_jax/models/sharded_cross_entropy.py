"""The chunked cross-entropy over a mesh: each device compacts its own positions and keeps its own
rows of the table.

A chunk is the next few selected positions of every device of a group, gathered; each device
computes the logits of its part of the vocabulary, and three numbers a position are added up over
the parts. The gradients are computed in the same loop: that of the table stays split, and is added
up over the replicas once, after the loop. A vocabulary that its shards do not divide is padded with
rows whose logits are minus infinity.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dlm_jax.models.selected_positions import (
    Gradients,
    Outputs,
    Rows,
    products,
    put_back,
    scaled_gradients,
    selected_first,
)
from dlm_jax.models.vocabulary_shards import VocabularyShards, padded_rows, padded_table

# Bytes of the float32 logits of a chunk on one device: large enough that the products outweigh
# reading and writing the table's gradient once a chunk.
_CHUNK_BYTES = 128 * 2**20
_MIN_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is static: the layout, the true size of the vocabulary, positions a device and chunk."""

    shards: VocabularyShards
    vocab_size: int
    chunk: int


def default_chunk(rows: int) -> int:
    """Positions that a group projects at a time where each device holds so many rows."""
    return max(_MIN_CHUNK, _CHUNK_BYTES // (4 * rows))


def sharded_cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    rows: Rows,
    selected: jax.Array,
    chunk: int | None,
    shards: VocabularyShards,
) -> Outputs:
    """What `linear_cross_entropy` computes, over the mesh of `jax.set_mesh`.

    Args:
        hidden: [positions, embed], split over `shards.tokens`.
        table: float32 [vocab, embed].
        bias: float32 [vocab].
        rows: targets int32, weight float32 and smoothing weight float32, each [positions].
        selected: bool [positions].
        chunk: positions that a group of devices projects at a time; None = as many as make 128 MiB
            of logits on each device, and at least 256.
        shards: how vocabulary and positions lie over the mesh.

    Returns:
        loss_sum, nll and correct as `linear_cross_entropy` does.
    """
    positions, vocab_size = hidden.shape[0], table.shape[0]
    more = -positions % shards.num_token_shards
    hidden, selected = padded_rows(hidden, more), padded_rows(selected, more)
    targets, weight, smoothing_weight = (padded_rows(row, more) for row in rows)
    table = padded_table(table, shards)
    bias = padded_rows(bias, table.shape[0] - vocab_size)
    if chunk is None:
        chunk = default_chunk(table.shape[0] // shards.num_shards)
    a_device = min(-(-chunk // shards.group), max(1, hidden.shape[0] // shards.num_token_shards))
    plan = _Plan(shards, vocab_size, a_device)
    rows = (targets, weight, smoothing_weight)
    loss_sum, nll, correct = _cross_entropy(hidden, table, bias, rows, selected, plan)
    return loss_sum, nll[:positions], correct[:positions]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    rows: Rows,
    selected: jax.Array,
    plan: _Plan,
) -> Outputs:
    return _over_the_mesh(hidden, table, bias, rows, selected, plan, differentiate=False)[0]


def _forward(
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    rows: Rows,
    selected: jax.Array,
    plan: _Plan,
) -> tuple[Outputs, tuple[Gradients, jax.Array]]:
    outputs, gradients = _over_the_mesh(
        hidden, table, bias, rows, selected, plan, differentiate=True
    )
    return outputs, (gradients, selected)


def _backward(
    plan: _Plan, residuals: tuple[Gradients, jax.Array], cotangents: Outputs
) -> tuple[object, ...]:
    return scaled_gradients(*residuals, cotangents[0])


_cross_entropy.defvjp(_forward, _backward)


def _over_the_mesh(
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    rows: Rows,
    selected: jax.Array,
    plan: _Plan,
    *,
    differentiate: bool,
) -> tuple[Outputs, Gradients]:
    shards = plan.shards
    tokens, vocabulary = shards.token_spec, shards.vocabulary_spec
    gradients = (tokens, vocabulary, vocabulary) if differentiate else ()
    return jax.shard_map(
        functools.partial(_on_a_device, plan=plan, differentiate=differentiate),
        in_specs=(tokens, vocabulary, vocabulary, (tokens,) * 3, tokens),
        out_specs=((PartitionSpec(), tokens, tokens), gradients),
        check_vma=False,
    )(hidden, table.astype(hidden.dtype), bias, rows, selected)


def _on_a_device(
    hidden: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    rows: Rows,
    selected: jax.Array,
    *,
    plan: _Plan,
    differentiate: bool,
) -> tuple[Outputs, Gradients]:
    # All arrays are a device's own: positions [positions / token shards], rows [vocab / shards].
    shards, chunk = plan.shards, plan.chunk
    positions, embed = hidden.shape
    padded = -(-positions // chunk) * chunk
    count = selected.sum()
    order = selected_first(selected, padded)
    columns = shards.first_row(bias.size) + jnp.arange(bias.size)
    bias = jnp.where(columns < plan.vocab_size, bias, -jnp.inf)

    def project(index: jax.Array, carry: tuple) -> tuple:
        loss_sum, nll, correct, gradients = carry
        start = index * chunk
        place = jax.lax.dynamic_slice_in_dim(order, start, chunk)
        live = start + jnp.arange(chunk) < count
        target, weight, smoothing = (row[place] for row in rows)
        weight, smoothing = jnp.where(live, weight, 0.0), jnp.where(live, smoothing, 0.0)
        group_hidden = shards.gather(hidden[place])
        group_rows = shards.gather(target), shards.gather(weight), shards.gather(smoothing)
        loss, chunk_nll, hit, slope = _compare(
            group_hidden, group_rows, kernel, bias, columns, plan
        )
        loss_sum += shards.own(loss).sum()
        nll = jax.lax.dynamic_update_slice_in_dim(nll, shards.own(chunk_nll), start, 0)
        correct = jax.lax.dynamic_update_slice_in_dim(correct, shards.own(hit), start, 0)
        if differentiate:
            gradients = _accumulate(gradients, slope, group_hidden, kernel, start, shards)
        return loss_sum, nll, correct, gradients

    nothing: tuple = ()
    if differentiate:
        nothing = (
            jnp.zeros((padded, embed), hidden.dtype),
            jnp.zeros(kernel.shape, jnp.float32),
            jnp.zeros(bias.shape, jnp.float32),
        )
    initial = (jnp.float32(0.0), jnp.zeros(padded), jnp.zeros(padded, bool), nothing)
    # All devices make as many rounds as the one with the most to do, since they wait for each
    # other in every round; no step is longer for it, because the gradients are awaited anyway.
    most = jax.lax.pmax(count, shards.tokens) if shards.tokens else count
    rounds = (most + chunk - 1) // chunk
    loss_sum, nll, correct, gradients = jax.lax.fori_loop(0, rounds, project, initial)
    if shards.tokens:
        loss_sum = jax.lax.psum(loss_sum, shards.tokens)
    outputs = loss_sum, put_back(nll, selected), put_back(correct, selected)
    if differentiate:
        hidden_gradient = put_back(gradients[0], selected)
        return outputs, (hidden_gradient, *(shards.add_replicas(g) for g in gradients[1:]))
    return outputs, ()


def _compare(
    hidden: jax.Array,
    rows: Rows,
    kernel: jax.Array,
    bias: jax.Array,
    columns: jax.Array,
    plan: _Plan,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Weighted loss, nll and hit of each of the group's positions [n], and the derivative of the
    loss with respect to this device's logits [n, vocab / shards]."""
    shards = plan.shards
    target, weight, smoothing = rows
    logits = products("ne,ve->nv", hidden, kernel) + bias
    peak = shards.maximum(logits.max(-1))
    exponentials = jnp.exp(logits - peak[:, None])
    real, is_target = columns < plan.vocab_size, columns == target[:, None]
    sums = shards.add(
        jnp.stack(
            [
                exponentials.sum(-1),
                jnp.where(is_target, logits, 0.0).sum(-1),
                jnp.where(real, logits, 0.0).sum(-1),
            ]
        )
    )
    total, target_logit, logit_sum = sums
    log_total = peak + jnp.log(total)
    nll = log_total - target_logit
    loss = weight * nll + smoothing * (log_total - logit_sum / plan.vocab_size)
    slope = exponentials * ((weight + smoothing) / total)[:, None]
    slope = slope - jnp.where(is_target, weight[:, None], 0.0)
    slope = jnp.where(real, slope - smoothing[:, None] / plan.vocab_size, 0.0)
    return loss, nll, target_logit >= peak, slope


def _accumulate(
    gradients: Gradients,
    slope: jax.Array,
    hidden: jax.Array,
    kernel: jax.Array,
    start: jax.Array,
    shards: VocabularyShards,
) -> Gradients:
    hidden_gradient, table_gradient, bias_gradient = gradients
    narrow = slope.astype(hidden.dtype)
    own = shards.add_and_scatter(products("nv,ve->ne", narrow, kernel))
    return (
        jax.lax.dynamic_update_slice_in_dim(
            hidden_gradient, own.astype(hidden_gradient.dtype), start, 0
        ),
        table_gradient + products("nv,ne->ve", narrow, hidden),
        bias_gradient + slope.sum(0),
    )
