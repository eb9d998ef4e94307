"""Which positions are written and which are masked again: the heart of a sampler.

A rule sees one step of all rows and answers with two masks. It never sees logits, only predictions,
and must treat each row by itself: reductions run along the last axis only.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dlm_jax.diffusion.categorical import exponential
from dlm_jax.diffusion.counter_random import uniform
from dlm_jax.sampling.token_rules import Prediction, Words


class StepView(NamedTuple):
    """What a position rule may read at step s = 1 … S."""

    tokens: jax.Array  # int32 [batch, length], before this step
    scores: jax.Array  # float32 [batch, length], log-probability at the time of writing
    masked: jax.Array  # bool [batch, length], editable and not written
    editable: jax.Array  # bool [batch, length]
    predicted: Prediction  # of [batch, length]; meaningful where `reads` asked for it
    masked_after: jax.Array  # int32 [batch], masks that the schedule leaves after this step
    masked_fraction: jax.Array  # float32 [], the schedule's ρ of this step
    steps_left: jax.Array  # int32 [batch], this step included
    words: Words  # uint32 [batch, length] twice, fresh at every (row id, step, position)


class Decision(NamedTuple):
    """What happens to the canvas in one step."""

    write: jax.Array  # bool [batch, length], masked positions that take their predicted token
    remask: jax.Array  # bool [batch, length], written positions that become [MASK] again
    # bool [batch], rows that end here, whatever is still masked; None = no row
    stop: jax.Array | None = None


class PositionRule(Protocol):
    """Hook: chooses positions. A rule is hashable and compared by value."""

    def reads(self, masked: jax.Array, editable: jax.Array) -> jax.Array:
        """bool [batch, length]: positions whose predictions `decide` will look at."""

    def decide(self, view: StepView) -> Decision:
        """Chooses what to write and what to mask again."""

    def settled(self, masked: jax.Array, masked_after: jax.Array) -> jax.Array:
        """bool [batch]: rows that no later step can change, given their state after a step."""

    def reach(self, steps: int) -> int | None:
        """The most editable positions of a row that `steps` steps surely write; None = any."""


def lowest(keys: jax.Array, count: jax.Array, among: jax.Array) -> jax.Array:
    """Marks exactly `count` smallest keys of each row; the first index wins a tie.

    Args:
      keys: float32 [batch, length].
      count: int32 [batch], at most the number of candidates.
      among: bool [batch, length], the candidates.

    Returns:
      bool [batch, length].
    """
    order = jnp.argsort(jnp.where(among, keys, jnp.inf), axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    return among & (rank < count[:, None])


@dataclasses.dataclass(frozen=True)
class Reparameterized:
    """Routes every editable position by confidence (Zheng et al. 2023, arXiv 2302.05737; DLM code).

    The least confident positions, as many as the schedule says, are or become [MASK]; the other
    masked ones are written; the other written ones keep their token and score. Confidence is the
    log-probability of the *present* prediction, also where another token has been written.

    Args:
      conditional: mask a written position again only if it is among the least confident, its token
        is predicted anew, and with a lower log-probability than when it was written.
      noise_scale: confidence is perturbed by Gumbel noise of scale `noise_scale`·ρ, which anneals
        to nothing with the masked fraction ρ. 0 = deterministic.
    """

    conditional: bool = False
    noise_scale: float = 0.0

    def reads(self, masked: jax.Array, editable: jax.Array) -> jax.Array:
        """Written positions too: their confidence decides whether they are masked again."""
        del masked
        return editable

    def decide(self, view: StepView) -> Decision:
        """Method: `PositionRule.decide`."""
        confidence = view.predicted.log_probs
        if self.noise_scale:
            gumbel = -jnp.log(exponential(*view.words))
            confidence += self.noise_scale * view.masked_fraction * gumbel
        low = lowest(confidence, view.masked_after, view.editable)
        remask = view.editable & ~view.masked & low
        if self.conditional:
            repeated = view.predicted.tokens == view.tokens
            remask &= repeated & (view.predicted.log_probs < view.scores)
        return Decision(write=view.masked & ~low, remask=remask)

    def settled(self, masked: jax.Array, masked_after: jax.Array) -> jax.Array:
        """The schedule never rises, so that after 0 nothing is written or masked any more."""
        return ~masked.any(axis=-1) & (masked_after == 0)

    def reach(self, steps: int) -> int | None:
        """The schedule ends at 0 masks."""
        del steps
        return None


@dataclasses.dataclass(frozen=True)
class RandomUnmasking:
    """Each masked position is written with probability 1/(S - s + 1) and stays (`cmlm`)."""

    def reads(self, masked: jax.Array, editable: jax.Array) -> jax.Array:
        """Masked positions only."""
        del editable
        return masked

    def decide(self, view: StepView) -> Decision:
        """Method: `PositionRule.decide`."""
        probability = 1.0 / view.steps_left.astype(jnp.float32)
        write = view.masked & (uniform(view.words[0]) < probability[:, None])
        return Decision(write=write, remask=jnp.zeros_like(write))

    def settled(self, masked: jax.Array, masked_after: jax.Array) -> jax.Array:
        """Nothing is masked again, so that a full canvas stays."""
        del masked_after
        return ~masked.any(axis=-1)

    def reach(self, steps: int) -> int | None:
        """The last step writes with probability 1."""
        del steps
        return None


@dataclasses.dataclass(frozen=True)
class LeftToRight:
    """The leftmost masked position is written, one a step: autoregression, by a denoiser too.

    Args:
      stop_id: a row ends once it has written this id; None = when it is full.
    """

    stop_id: int | None = None

    def reads(self, masked: jax.Array, editable: jax.Array) -> jax.Array:
        """The leftmost masked position only."""
        del editable
        return masked & (jnp.cumsum(masked, axis=-1) == 1)

    def decide(self, view: StepView) -> Decision:
        """Method: `PositionRule.decide`."""
        write = self.reads(view.masked, view.editable)
        stop = None
        if self.stop_id is not None:
            stop = (write & (view.predicted.tokens == self.stop_id)).any(axis=-1)
        return Decision(write=write, remask=jnp.zeros_like(write), stop=stop)

    def settled(self, masked: jax.Array, masked_after: jax.Array) -> jax.Array:
        """Nothing is masked again, so that a full canvas stays."""
        del masked_after
        return ~masked.any(axis=-1)

    def reach(self, steps: int) -> int | None:
        """One position a step."""
        return steps
