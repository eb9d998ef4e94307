"""Which token is predicted at a position, and its log-probability."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.diffusion.categorical import sample_categorical
from dlm_jax.errors import UserError

# Partial sums over this many neighbours keep a float32 sum of 250k terms within a few ulp.
_SUM_WIDTH = 256
# Logits divided by these stay finite, and -inf stays what it is: beyond them nothing changes, since
# the likeliest token always wins below, and all are equally likely above.
_COLDEST, _HOTTEST = 1e-30, 1e30
_LOWEST = float(np.finfo(np.float32).min)

Words = tuple[jax.Array, jax.Array]


class Prediction(NamedTuple):
    """What the denoiser says about positions: all that is kept of their logits."""

    tokens: jax.Array  # int32 [...]
    log_probs: jax.Array  # float32 [...], never tempered


class Forbidden(NamedTuple):
    """Ids that may never be written: the mask, rows that stand for no token, and others."""

    mask_id: int
    vocab_size: int | None
    others: tuple[int, ...] = ()

    def ban(self, logits: jax.Array, ids: jax.Array | None = None) -> jax.Array:
        """float32 logits [..., n] with -inf at the forbidden ones of int32 ids [n], 0 … n - 1."""
        if ids is None:
            ids = jnp.arange(logits.shape[-1])
        banned = ids == self.mask_id
        if self.vocab_size is not None:
            banned |= ids >= self.vocab_size
        for other in self.others:
            banned |= ids == other
        return jnp.where(banned, -jnp.inf, logits.astype(jnp.float32))


class TokenRule(Protocol):
    """Hook: chooses tokens from logits. A rule is hashable and compared by value."""

    def choose(self, logits: jax.Array, words: Words) -> Prediction:
        """Predicts from float32 logits [..., vocab] (-inf = banned) and uint32 words [...]."""


class Peak(NamedTuple):
    """What the most probable token and its log-probability are made of."""

    token: jax.Array  # int32 [...], the first id of the largest logit
    logit: jax.Array  # float32 [...]
    # float32 [...], the sum of exp(logit_j - logit) over all j but the token. Without its own term
    # 1, the sum keeps its relative precision: a log-probability of -1e-12 is told from one of
    # -1e-11, where logit - logsumexp would round both to 0 and tie them.
    others: jax.Array

    @classmethod
    def lowest(cls, shape: tuple[int, ...]) -> Peak:
        """What `merge` with any peak leaves as it is."""
        zeros = jnp.zeros(shape, jnp.float32)
        return cls(jnp.zeros(shape, jnp.int32), jnp.full_like(zeros, _LOWEST), zeros)


@runtime_checkable
class PeakRule(Protocol):
    """A `TokenRule` that reads the peak of the logits only, so that they need not exist at once."""

    def of_peak(self, peak: Peak) -> Prediction:
        """Predicts from the peak [...] over the whole vocabulary."""


def peak(logits: jax.Array, ids: jax.Array) -> Peak:
    """The peak [...] of float32 logits [..., n] of ascending int32 ids [n]; -inf counts nothing."""
    size = logits.shape[-1]
    # Finite, so that a tile whose every id is banned gives no NaN.
    logit = jnp.maximum(logits.max(axis=-1), _LOWEST)
    # A plain max and a plain min reduce several times faster on a CPU than the paired argmax.
    token = jnp.where(logits == logit[..., None], ids, ids[-1]).min(axis=-1)
    others = jnp.where(ids == token[..., None], 0.0, jnp.exp(logits - logit[..., None]))
    even = size // _SUM_WIDTH * _SUM_WIDTH
    main = others[..., :even].reshape(*others.shape[:-1], even // _SUM_WIDTH, _SUM_WIDTH)
    total = main.sum(axis=-2).sum(axis=-1) + others[..., even:].sum(axis=-1)
    return Peak(token, logit, total)


def merge(first: Peak, second: Peak) -> Peak:
    """The peak of two disjoint sets of ids; where their logits are equal, the first one's token."""
    logit = jnp.maximum(first.logit, second.logit)
    lower = jnp.minimum(first.logit, second.logit)
    others = first.others * jnp.exp(first.logit - logit) + second.others * jnp.exp(
        second.logit - logit
    )
    token = jnp.where(second.logit > first.logit, second.token, first.token)
    return Peak(token, logit, others + jnp.exp(lower - logit))


@dataclasses.dataclass(frozen=True)
class Argmax:
    """The most probable token; the smaller id where two are equal."""

    def choose(self, logits: jax.Array, words: Words) -> Prediction:
        """Predicts without randomness; see `TokenRule.choose`."""
        del words
        return self.of_peak(peak(logits, jnp.arange(logits.shape[-1], dtype=jnp.int32)))

    def of_peak(self, peak: Peak) -> Prediction:
        """Predicts from a tile after another; see `PeakRule.of_peak`."""
        return Prediction(peak.token, -jnp.log1p(peak.others))


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
        temperature = min(max(self.temperature, _COLDEST), _HOTTEST)
        tokens = sample_categorical(logits / temperature, words)
        top = peak(logits, jnp.arange(logits.shape[-1], dtype=jnp.int32))
        drawn = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        return Prediction(tokens, (drawn - top.logit) - jnp.log1p(top.others))


def token_rule(temperature: float) -> TokenRule:
    """`Argmax` at temperature 0, else `Categorical`."""
    return Argmax() if temperature == 0 else Categorical(temperature)
