"""What a denoiser's predictions cost: the contract, and the dense reference."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from dlm_jax.diffusion.objectives import Noised


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """Predictions compared with the clean tokens.

    Attributes:
      loss_sum: float32 scalar, differentiable: the sum over tokens of ``weight`` times the negative
        log-likelihood plus ``smoothing_weight`` times the mean over the vocabulary of -log p.
      nll: [rows, length] float32, nats, without gradient, 0 where not absorbed.
      correct: [rows, length] bool, the target is the most probable token, False where not absorbed.
    """

    loss_sum: jax.Array
    nll: jax.Array
    correct: jax.Array


def dense_scores(logits: jax.Array, noised: Noised) -> Scores:
    """Scores from the logits of all positions, the reference for fused implementations.

    Args:
      logits: [rows, length, vocab] float, finite; computed with in float32.
      noised: the corrupted batch with its targets and weights.

    Returns:
      The scores; memory and time are those of a float32 [rows, length, vocab] array.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    nll = -jnp.take_along_axis(log_probs, noised.targets[..., None], axis=-1)[..., 0]
    mean_nll = -log_probs.mean(axis=-1)
    loss_sum = (noised.weight * nll + noised.smoothing_weight * mean_nll).sum()
    correct = (jnp.argmax(logits, axis=-1) == noised.targets) & noised.absorbed
    return Scores(
        loss_sum=loss_sum,
        nll=jax.lax.stop_gradient(jnp.where(noised.absorbed, nll, 0.0)),
        correct=correct,
    )
