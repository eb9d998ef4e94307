"""Where denoiser and objective meet: losses of absorbed tokens, without logits of the batch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from dlm_jax.diffusion.autoregressive import AutoregressiveObjective
from dlm_jax.diffusion.likelihood import NelboEstimate, monte_carlo_nelbo
from dlm_jax.diffusion.objectives import Noised
from dlm_jax.diffusion.process import AbsorbingProcess
from dlm_jax.diffusion.scores import Scores
from dlm_jax.models.cross_entropy import linear_cross_entropy
from dlm_jax.models.encoder import Encoder
from dlm_jax.parallel.rules import constrain


def score(
    denoiser: Encoder,
    noised: Noised,
    *,
    chunk: int | None = None,
    dropout_key: jax.Array | None = None,
) -> Scores:
    """Scores the absorbed tokens of `noised`, never holding logits of more than a chunk of them.

    Args:
        denoiser: the encoder.
        noised: arrays of shape [rows, length].
        chunk: positions that are projected on the vocabulary at a time.
        dropout_key: turns dropout on.

    Returns:
        The weighted sum of losses (differentiable), and [rows, length] losses and hits per token.
    """
    # Pairs of draws are concatenated: under a mesh their rows have to be spread again.
    noised = jax.tree.map(lambda x: constrain(x, ("batch", "length")) if x.ndim == 2 else x, noised)
    features = denoiser.features(
        noised.tokens, noised.positions, noised.segment_ids, dropout_key=dropout_key
    )
    with jax.named_scope("head_and_loss"):
        hidden = denoiser.head_features(features)
        table, bias = denoiser.output_embedding()
        shape = noised.targets.shape
        total, nll, correct = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            table,
            bias,
            noised.targets.reshape(-1),
            noised.weight.reshape(-1),
            noised.smoothing_weight.reshape(-1),
            selected=noised.absorbed.reshape(-1),
            chunk=chunk,
        )
    return Scores(loss_sum=total, nll=nll.reshape(shape), correct=correct.reshape(shape))


@functools.partial(jax.jit, static_argnames=("process", "draws", "chunk", "seed"))
def nelbo_of_rows(
    denoiser: Encoder,
    batch: Mapping[str, Any],
    *,
    process: AbsorbingProcess,
    draws: int,
    chunk: int | None = None,
    seed: int = 0,
) -> NelboEstimate:
    """NELBO of each row's example, arrays [rows, 1]; noise depends on seed and example ids."""
    return monte_carlo_nelbo(
        process,
        lambda noised: score(denoiser, noised, chunk=chunk).nll,
        batch,
        jax.random.key(seed, impl="threefry2x32"),
        num_draws=draws,
        estimator="count" if process.num_timesteps is None else "time",
    )


@functools.partial(jax.jit, static_argnames=("chunk",))
def nll_of_rows(
    denoiser: Encoder, batch: Mapping[str, Any], *, chunk: int | None = None
) -> jax.Array:
    """Exact negative log-likelihood of the maskable tokens of each row, by a causal model.

    Args:
        denoiser: a causal encoder.
        batch: the batch contract, [rows, length].
        chunk: positions projected on the vocabulary at a time.

    Returns:
        float32 [rows], nats.
    """
    return score(denoiser, AutoregressiveObjective().noise(dict(batch)), chunk=chunk).nll.sum(-1)
