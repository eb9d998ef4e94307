"""The reverse process: predict, keep what is sure, mask the rest again, as one jitted loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.diffusion.counter_random import Purpose, random_words
from dlm_jax.errors import UserError
from dlm_jax.sampling.autoregressive import NextToken
from dlm_jax.sampling.canvas import Canvas
from dlm_jax.sampling.policy import Policy
from dlm_jax.sampling.position_rules import StepView
from dlm_jax.sampling.prediction import Denoiser, predict
from dlm_jax.sampling.tiling import Tiling, default_tiling
from dlm_jax.sampling.token_rules import Forbidden
from dlm_jax.sampling.trace import Trace


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generation:
    """What the reverse process wrote.

    Args:
      tokens: int32 [batch, length], the finished canvas; given tokens are as they were.
      scores: float32 [batch, length], log-probability (nats) of each written token at the step it
        was written; 0 at given positions, -inf where a mask is left, as in a row that ended early.
      nfe: int32 [batch], steps at which the row needed the denoiser: all S with the
        reparameterized rule (unless the row exits early), fewer with rules that never mask again
        and have filled the row; 0 for a row with nothing to write.
      trace: what happened at each step, or None.
    """

    tokens: jax.Array
    scores: jax.Array
    nfe: jax.Array
    trace: Trace | None


class _State(NamedTuple):
    step: jax.Array  # int32 [], steps done
    tokens: jax.Array
    scores: jax.Array
    masked: jax.Array
    nfe: jax.Array
    running: jax.Array  # bool [batch]
    memory: Any  # what a model keeps of the tokens it has read
    trace: Trace | None


def generate(
    denoiser: Denoiser | NextToken,
    canvas: Canvas,
    policy: Policy,
    key: jax.Array,
    *,
    mask_id: int,
    vocab_size: int | None = None,
    banned_ids: Collection[int] = (),
    trace: bool = False,
    tiling: Tiling | None = None,
) -> Generation:
    """Writes the editable positions of every row.

    The answer of a row depends on its tokens, its row id, the policy and the key only: not on the
    other rows, the number of them, nor the padding.

    Args:
      denoiser: any pytree with `features` and `logits`; or a causal model as `NextToken`, under
        `LeftToRight` and on a canvas with all that is to be written at the end of its rows.
      canvas: the rows; concrete arrays (the loop is compiled inside, once for each shape).
      policy: the sampler.
      key: typed key of implementation threefry2x32. Noise is a hash of (key, row id, step,
        position).
      mask_id: id of the absorbing state; never written.
      vocab_size: ids from here on are never written; None if every row of the table is a token.
      banned_ids: other ids that are never written, such as those of the special tokens, which the
        paper's decoding allows.
      trace: keep the canvas of every step.
      tiling: sizes of the pieces of work; by default right for the device.

    Returns:
      The finished rows.

    Raises:
      UserError: left-to-right decoding with fewer steps than a row has editable positions.
    """
    length = canvas.shape[1]
    reach = None if policy.steps is None else policy.positions.reach(policy.steps)
    if reach is not None:
        most = int(np.asarray(canvas.editable).sum(axis=-1).max())
        if most > reach:
            raise UserError(
                f"Policy.steps is {policy.steps}, too few for this decoding strategy: "
                f"a row has {most} positions to write."
            )
    steps = length if policy.steps is None else policy.steps
    return _generate(
        denoiser,
        canvas,
        key,
        policy.schedule.masked_counts(steps, length),
        policy.schedule.masked_fractions(steps).astype(np.float32),
        policy=policy,
        forbidden=Forbidden(mask_id, vocab_size, tuple(sorted(banned_ids))),
        traced=trace,
        tiling=tiling or default_tiling(),
    )


@functools.partial(jax.jit, static_argnames=("policy", "forbidden", "traced", "tiling"))
def _generate(
    denoiser: Denoiser | NextToken,
    canvas: Canvas,
    key: jax.Array,
    masked_counts: jax.Array,
    masked_fractions: jax.Array,
    *,
    policy: Policy,
    forbidden: Forbidden,
    traced: bool,
    tiling: Tiling,
) -> Generation:
    max_steps = masked_counts.shape[0] - 1
    num_editable = canvas.editable.sum(axis=-1).astype(jnp.int32)
    budget = num_editable if policy.steps is None else jnp.full_like(num_editable, policy.steps)

    def advance(state: _State) -> _State:
        step = state.step + 1
        words = random_words(
            key, Purpose.TOKEN_SAMPLING, step, canvas.row_ids[:, None], canvas.positions
        )
        wanted = policy.positions.reads(state.masked, canvas.editable) & state.running[:, None]
        arguments = (state.tokens, wanted, policy.tokens, words, forbidden, tiling)
        if isinstance(denoiser, NextToken):
            predicted, memory = denoiser.predict(state.memory, *arguments)
        else:
            predicted, memory = predict(denoiser, canvas, *arguments), None
        view = StepView(
            tokens=state.tokens,
            scores=state.scores,
            masked=state.masked,
            editable=canvas.editable,
            predicted=predicted,
            masked_after=masked_counts[step][num_editable],
            masked_fraction=masked_fractions[step],
            steps_left=budget - state.step,
            words=random_words(
                key, Purpose.POSITION_SAMPLING, step, canvas.row_ids[:, None], canvas.positions
            ),
        )
        evaluated = wanted.any(axis=-1)
        after = _apply(state, view, policy, budget, evaluated, forbidden.mask_id)
        return after._replace(memory=memory)

    start = _start(canvas, forbidden.mask_id, max_steps if traced else None)
    if isinstance(denoiser, NextToken):
        start = start._replace(memory=denoiser.prefill(canvas, tiling))
    final = jax.lax.while_loop(lambda state: state.running.any(), advance, start)
    return Generation(final.tokens, final.scores, final.nfe, final.trace)


def _start(canvas: Canvas, mask_id: int, traced_steps: int | None) -> _State:
    tokens = jnp.where(canvas.editable, mask_id, canvas.tokens)
    running = canvas.editable.any(axis=-1)
    return _State(
        step=jnp.int32(0),
        tokens=tokens,
        scores=jnp.where(canvas.editable, -jnp.inf, jnp.float32(0.0)),
        masked=canvas.editable,
        nfe=jnp.zeros(running.shape, jnp.int32),
        running=running,
        trace=None if traced_steps is None else Trace.empty(tokens, canvas, traced_steps),
        memory=None,
    )


def _apply(
    state: _State,
    view: StepView,
    policy: Policy,
    budget: jax.Array,
    evaluated: jax.Array,
    mask_id: int,
) -> _State:
    """Writes and masks again what the position rule decides, in the rows that still run."""
    running = state.running[:, None]
    decision = policy.positions.decide(view)
    write, remask = decision.write & running, decision.remask & running
    tokens = jnp.where(write, view.predicted.tokens, jnp.where(remask, mask_id, state.tokens))
    scores = jnp.where(write, view.predicted.log_probs, jnp.where(remask, -jnp.inf, state.scores))
    masked = (state.masked & ~write) | remask
    step = state.step + 1
    going_on = state.running & (step < budget)
    if decision.stop is not None:
        going_on &= ~decision.stop
    if policy.early_exit:
        going_on &= ~policy.positions.settled(masked, view.masked_after)
    trace = state.trace
    if trace is not None:
        trace = trace.record(state.step, tokens, scores, write, remask)
    return _State(
        step=step,
        tokens=tokens,
        scores=scores,
        masked=masked,
        nfe=state.nfe + evaluated,
        running=going_on,
        trace=trace,
        memory=state.memory,
    )
