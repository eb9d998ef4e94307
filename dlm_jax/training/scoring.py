"""Where denoiser and objective meet: losses of absorbed tokens, without logits of the batch."""

from __future__ import annotations

import jax

from dlm_jax.diffusion.objectives import Noised
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
