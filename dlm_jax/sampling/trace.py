"""What happened at each step of the reverse process, and when each token was decided."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.sampling.canvas import Canvas


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """The canvas after every step; a pytree of device arrays.

    Args:
      start: int32 [batch, length], the canvas before the first step, masks in place.
      editable: bool [batch, length].
      segment_ids: int32 [batch, length], 0 on padding.
      tokens: int32 [steps, batch, length] after each step.
      scores: float32 [steps, batch, length]; -inf on masks, 0 at given positions.
      committed: bool [steps, batch, length]: a token was written in this step.
      remasked: bool [steps, batch, length]: a written token was masked again in this step.
      steps_taken: int32 [], steps that were run; later entries are empty.
    """

    start: jax.Array
    editable: jax.Array
    segment_ids: jax.Array
    tokens: jax.Array
    scores: jax.Array
    committed: jax.Array
    remasked: jax.Array
    steps_taken: jax.Array

    @classmethod
    def empty(cls, start: jax.Array, canvas: Canvas, steps: int) -> Trace:
        """A trace with room for `steps` steps from the canvas `start` [batch, length]."""
        shape = (steps, *start.shape)
        return cls(
            start=start,
            editable=canvas.editable,
            segment_ids=canvas.segment_ids,
            tokens=jnp.zeros(shape, jnp.int32),
            scores=jnp.zeros(shape, jnp.float32),
            committed=jnp.zeros(shape, bool),
            remasked=jnp.zeros(shape, bool),
            steps_taken=jnp.int32(0),
        )

    def record(
        self,
        index: jax.Array,
        tokens: jax.Array,
        scores: jax.Array,
        committed: jax.Array,
        remasked: jax.Array,
    ) -> Trace:
        """The trace with step `index` (from 0) filled in; arrays are [batch, length]."""
        return dataclasses.replace(
            self,
            tokens=self.tokens.at[index].set(tokens),
            scores=self.scores.at[index].set(scores),
            committed=self.committed.at[index].set(committed),
            remasked=self.remasked.at[index].set(remasked),
            steps_taken=index + 1,
        )


def reveal_steps(trace: Trace) -> np.ndarray:
    """The step at which the final token of each position was written.

    Returns:
      int32 [batch, length], from 1; 0 at given positions and where a mask is left.
    """
    committed = np.asarray(trace.committed)
    steps = np.arange(1, len(committed) + 1)[:, None, None]
    last_commit = (steps * committed).max(axis=0)
    last_remask = (steps * np.asarray(trace.remasked)).max(axis=0)
    return np.where(last_commit > last_remask, last_commit, 0).astype(np.int32)


def remask_counts(trace: Trace) -> np.ndarray:
    """How many times each position was masked again, int32 [batch, length]."""
    return np.asarray(trace.remasked).sum(axis=0, dtype=np.int32)
