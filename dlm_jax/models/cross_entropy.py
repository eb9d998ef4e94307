"""Cross-entropy against a large vocabulary, without ever holding [positions, vocab].

Only the selected positions are projected: they are compacted to the front, and a loop whose trip
count is their number visits them a chunk at a time. So the cost follows the noise, the shapes are
static, and nothing can overflow. The gradients are computed in the same loop, while the chunk's
logits are at hand; the backward pass only scales them.

Under a mesh of several devices `sharded_cross_entropy` does the same with the table split by rows.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from dlm_jax.models.selected_positions import (
    Gradients,
    Outputs,
    Rows,
    products,
    put_back,
    scaled_gradients,
    selected_first,
)
from dlm_jax.models.sharded_cross_entropy import sharded_cross_entropy
from dlm_jax.models.vocabulary_shards import vocabulary_shards

# Unless the caller says how many positions a chunk holds: as many as make so many bytes of float32
# logits (a buffer that fits the caches wastes less on the last, half-filled chunk), but enough that
# adding a chunk's gradient to the table's costs little beside computing it.
_CHUNK_BYTES = 32 * 2**20
_MIN_CHUNK = 256


def linear_cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    weight: jax.Array,
    smoothing_weight: jax.Array,
    *,
    selected: jax.Array | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sum of weighted cross-entropies of softmax(hidden @ table.T + bias).

    loss_sum = Σ_n weight_n · (−log p_n[target_n]) + smoothing_weight_n · mean_v(−log p_n[v]),
    the second term being label smoothing (Szegedy et al. 2016, section 7).

    Args:
        hidden: [positions, embed], any floating dtype; products are computed in it.
        table: float32 [vocab, embed].
        bias: float32 [vocab].
        targets: int32 [positions].
        weight: float32 [positions].
        smoothing_weight: float32 [positions].
        selected: bool [positions], the positions to project; by default those where one of the
            weights is not 0. A position that is not selected counts for nothing.
        chunk: positions projected at a time; by default as many as 32 MiB of logits hold (128 MiB
            on each device of a mesh), and at least 256. Under a mesh it counts the positions of all
            devices that split the vocabulary and hold different positions.

    Returns:
        loss_sum, a float32 scalar in nats, differentiable with respect to `hidden`, `table` and
        `bias` only; nll float32 [positions] in nats and correct bool [positions] (no other logit
        exceeds the target's), both constants to differentiation, 0 and False where not selected.

    Raises:
        ValueError: when `chunk` is not positive.
    """
    positions = hidden.shape[0]
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk} is not a positive number of positions.")
    if selected is None:
        selected = (weight != 0) | (smoothing_weight != 0)
    rows = (targets, jax.lax.stop_gradient(weight), jax.lax.stop_gradient(smoothing_weight))
    shards = vocabulary_shards()
    if shards is not None:
        return sharded_cross_entropy(hidden, table, bias, rows, selected, chunk, shards)
    if chunk is None:
        chunk = max(_MIN_CHUNK, _CHUNK_BYTES // (4 * table.shape[0]))
    chunk = min(chunk, max(1, positions))
    return _linear_cross_entropy(hidden, table, bias, rows, selected, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _linear_cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    rows: Rows,
    selected: jax.Array,
    chunk: int,
) -> Outputs:
    return _loop(hidden, table, bias, rows, selected, chunk, differentiate=False)[0]


def _forward(
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    rows: Rows,
    selected: jax.Array,
    chunk: int,
) -> tuple[Outputs, tuple[Gradients, jax.Array]]:
    outputs, gradients = _loop(hidden, table, bias, rows, selected, chunk, differentiate=True)
    return outputs, (gradients, selected)


def _backward(
    chunk: int, residuals: tuple[Gradients, jax.Array], cotangents: Outputs
) -> tuple[object, ...]:
    return scaled_gradients(*residuals, cotangents[0])


_linear_cross_entropy.defvjp(_forward, _backward)


def _loop(
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    rows: Rows,
    selected: jax.Array,
    chunk: int,
    *,
    differentiate: bool,
) -> tuple[Outputs, Gradients]:
    positions, embed = hidden.shape
    padded = -(-positions // chunk) * chunk
    count = selected.sum()
    order = selected_first(selected, padded)
    kernel = table.astype(hidden.dtype)

    def project(index: jax.Array, carry: tuple) -> tuple:
        loss_sum, nll, correct, gradients = carry
        start = index * chunk
        place = jax.lax.dynamic_slice_in_dim(order, start, chunk)
        live = start + jnp.arange(chunk) < count
        chosen = hidden[place]
        target, weight, smoothing = (row[place] for row in rows)
        weight, smoothing = jnp.where(live, weight, 0.0), jnp.where(live, smoothing, 0.0)
        # [vocab, chunk]: with the table on the left XLA's CPU kernels read it as it lies in memory;
        # turned around they repack it for every chunk, which takes three times as long.
        logits = products("ve,ne->vn", kernel, chosen) + bias[:, None]
        peak = logits.max(0)
        exponentials = jnp.exp(logits - peak)
        total = exponentials.sum(0)
        log_total = peak + jnp.log(total)
        target_logit = jnp.take_along_axis(logits, target[None], axis=0)[0]
        chunk_nll = log_total - target_logit
        loss_sum += (weight * chunk_nll + smoothing * (log_total - logits.mean(0))).sum()
        nll = jax.lax.dynamic_update_slice_in_dim(nll, chunk_nll, start, 0)
        hit = target_logit >= peak
        correct = jax.lax.dynamic_update_slice_in_dim(correct, hit, start, 0)
        if differentiate:
            is_target = jnp.arange(bias.size)[:, None] == target
            slope = exponentials * ((weight + smoothing) / total) - jnp.where(
                is_target, weight, 0.0
            )
            slope = slope - smoothing / bias.size
            gradients = _accumulate(gradients, slope, chosen, kernel, start)
        return loss_sum, nll, correct, gradients

    nothing: tuple = ()
    if differentiate:
        nothing = (
            jnp.zeros((padded, embed), jnp.float32),
            jnp.zeros(table.shape, jnp.float32),
            jnp.zeros(bias.shape, jnp.float32),
        )
    initial = (jnp.float32(0.0), jnp.zeros(padded), jnp.zeros(padded, bool), nothing)
    chunks = (count + chunk - 1) // chunk
    loss_sum, nll, correct, gradients = jax.lax.fori_loop(0, chunks, project, initial)
    outputs = loss_sum, put_back(nll, selected), put_back(correct, selected)
    if differentiate:
        hidden_gradient = put_back(gradients[0], selected)
        gradients = (hidden_gradient.astype(hidden.dtype), *gradients[1:])
    return outputs, gradients


def _accumulate(
    gradients: Gradients, slope: jax.Array, chosen: jax.Array, kernel: jax.Array, start: jax.Array
) -> Gradients:
    # slope float32 [vocab, chunk]: the derivative of the loss with respect to the logits
    hidden_gradient, table_gradient, bias_gradient = gradients
    narrow = slope.astype(chosen.dtype)
    chunk_gradient = products("vn,ve->ne", narrow, kernel)
    return (
        jax.lax.dynamic_update_slice_in_dim(hidden_gradient, chunk_gradient, start, 0),
        table_gradient + products("vn,ne->ve", narrow, chosen),
        bias_gradient + slope.sum(1),
    )
