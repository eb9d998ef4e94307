"""Left-to-right decoding of causal models, by the loop that runs every other sampler."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dlm_jax.errors import UserError
from dlm_jax.sampling.prediction import Denoiser

AUTO = "auto"
STRATEGY = "autoregressive"
DENOISING_STRATEGY = "reparam-uncond-deterministic-cosine"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NextToken:
    """A causal model as a denoiser: what it says of a position is read at the position before.

    Masks to the right of a position cannot change its features, so that a canvas can be as long
    as one likes.

    Args:
      model: a causal model.
    """

    model: Denoiser

    def features(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        """[batch, length, embed] of int32 [batch, length] each; zeros at the first place."""
        features = self.model.features(tokens, positions, segment_ids)
        return jnp.pad(features[:, :-1], ((0, 0), (1, 0), (0, 0)))

    def logits(self, features: jax.Array) -> jax.Array:
        """float32 [..., vocab] of features [..., embed]."""
        return self.model.logits(features)


def strategy_for(*, causal: bool, asked: str) -> str:
    """The decoding strategy of a model.

    Args:
      causal: whether the model sees only what stands to the left.
      asked: name of a strategy, or 'auto' for the default of such models.

    Raises:
      UserError: the strategy is not for such models.
    """
    if asked == AUTO:
        return STRATEGY if causal else DENOISING_STRATEGY
    if causal and asked != STRATEGY:
        raise UserError(
            f"The decoding strategy '{asked}' needs a model that sees both sides, and this one is "
            f"causal: leave the strategy out, or take '{STRATEGY}'."
        )
    if not causal and asked == STRATEGY:
        raise UserError(
            f"The decoding strategy '{STRATEGY}' needs a causal model, and this one sees both "
            "sides: 'left-to-right' writes one token a step with such a model."
        )
    return asked
