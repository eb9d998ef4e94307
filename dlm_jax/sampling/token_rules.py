"""Which token is predicted at a position, and its log-probability."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dlm_jax.diffusion.categorical import sample_categorical
from dlm_jax.errors import UserError

# Partial sums over this many neighbours keep a float32 sum of 250k terms within a few ulp.
_SUM_WIDTH = 256

Words = tuple[jax.Array, jax.Array]


class Prediction(NamedTuple):
    """What the denoiser says about positions: all that is kept of their logits."""

    tokens: jax.Array  # int32 [...]
    log_probs: jax.Array  # float32 [...], never tempered


class TokenRule(Protocol):
    """Hook: chooses tokens from logits. A rule is hashable and compared by value."""

    def choose(self, logits: jax.Array, words: Words) -> Prediction:
        """Predicts from float32 logits [..., vocab] (-inf = banned) and uint32 words [...]."""


class _Peak(NamedTuple):
    token: jax.Array  # int32 [...], the first index of the largest logit
    logit: jax.Array  # float32 [...]
    log_excess: jax.Array  # float32 [...], log of the sum of exp(logit_j - peak) over all j


def _peak(logits: jax.Array) -> _Peak:
    size = logits.shape[-1]
    ids = jnp.arange(size, dtype=jnp.int32)
    logit = logits.max(axis=-1)
    # A plain max and a plain min reduce several times faster on a CPU than the paired argmax.
    token = jnp.where(logits == logit[..., None], ids, size - 1).min(axis=-1)
    # Without its own term 1, the sum keeps its relative precision: a log-probability of -1e-12 is
    # told from one of -1e-11, where logit - logsumexp would round both to 0 and tie them.
    others = jnp.where(ids == token[..., None], 0.0, jnp.exp(logits - logit[..., None]))
    even = size // _SUM_WIDTH * _SUM_WIDTH
    main = others[..., :even].reshape(*others.shape[:-1], even // _SUM_WIDTH, _SUM_WIDTH)
    total = main.sum(axis=-2).sum(axis=-1) + others[..., even:].sum(axis=-1)
    return _Peak(token, logit, jnp.log1p(total))


@dataclasses.dataclass(frozen=True)
class Argmax:
    """The most probable token; the smaller id where two are equal."""

    def choose(self, logits: jax.Array, words: Words) -> Prediction:
        """Predicts without randomness; see `TokenRule.choose`."""
        del words
        peak = _peak(logits)
        return Prediction(peak.token, -peak.log_excess)


@dataclasses.dataclass(frozen=True)
class Categorical:
    """A draw from softmax(logits / temperature), scored by the log-probability at temperature 1.

    Raises:
      UserError: the temperature is not positive.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(
                f"Categorical.temperature is {self.temperature}, and must be above 0 "
                "(Argmax is the limit at 0)."
            )

    def choose(self, logits: jax.Array, words: Words) -> Prediction:
        """Draws with the tails right; see `TokenRule.choose`."""
        tokens = sample_categorical(logits / self.temperature, words)
        peak = _peak(logits)
        drawn = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        return Prediction(tokens, (drawn - peak.logit) - peak.log_excess)


def token_rule(temperature: float) -> TokenRule:
    """`Argmax` at temperature 0, else `Categorical`."""
    return Argmax() if temperature == 0 else Categorical(temperature)
