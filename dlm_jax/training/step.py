"""One optimizer step: noise, denoise, add up, divide once, update; one compiled function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import rounded_kernels
from dlm_jax.parallel.rules import constrain
from dlm_jax.training.objectives import Objective
from dlm_jax.training.scoring import score
from dlm_jax.training.spikes import SkipSpikes
from dlm_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Loss(Protocol):
    """What a step minimises, of one micro-batch."""

    def __call__(
        self, parameters: Any, batch: Batch, dropout_key: jax.Array, time_state: Any
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        """Returns the sum to differentiate, and (float32 sums, the next `time_state`).

        The sums have 'loss_sum', 'weight_sum' to divide it by, and 'tokens', the tokens (without
        padding) that went through the model.
        """
        ...


def denoising_loss(
    config: EncoderConfig, objective: Objective, *, seed: int, chunk: int | None = None
) -> Loss:
    """The loss of a denoiser under an objective.

    Args:
        config: shape of the encoder.
        objective: draws the noise and weighs the losses.
        seed: of the noise, which is a function of it and of the example's number alone.
        chunk: positions projected on the vocabulary at a time; None = by the vocabulary's size.
    """
    noise_key = jax.random.key(seed, impl="threefry2x32")
    dropout = config.dropout_rate > 0 or config.attention_dropout_rate > 0

    def loss(
        parameters: Any, batch: Batch, dropout_key: jax.Array, time_state: Any
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        with jax.named_scope("noise"):
            noised = objective.noise(batch, noise_key, time_state=time_state)
        denoiser = encoders.from_parameters(config, parameters)
        scores = score(denoiser, noised, chunk=chunk, dropout_key=dropout_key if dropout else None)
        loss_sum, weight_sum, metrics = objective.loss(noised, scores)
        new_time_state = objective.update_time_state(time_state, noised, scores.nll)
        metrics = {
            **metrics,
            "loss_sum": loss_sum,
            "weight_sum": weight_sum,
            "tokens": jnp.sum(noised.segment_ids > 0, dtype=jnp.float32),
        }
        return loss_sum, (metrics, new_time_state)

    return loss


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulation: int = 1,
    spikes: SkipSpikes | None = None,
    dtype: str = "float32",
) -> Step:
    """Builds the step function of a loss.

    Args:
        loss: of the parameters.
        optimizer: the optax transformation.
        seed: of dropout, which is a function of it and of the step alone.
        accumulation: micro-batches a step. Losses and gradients are added as sums and divided once
            by the summed weights, so the result does not depend on how the batch was cut; but for
            importance sampling of times, whose table each micro-batch finds as the one before
            left it.
        spikes: which steps change nothing though they are finite; None = none.
        dtype: what the kernels of layers are rounded to, and their gradients with them.

    Returns:
        `step(state, batch) -> (state, metrics)`; `metrics` are the loss's float32 sums with
        'grad_norm', 'finite' and, where there is a rule for it, 'spike'. A step that is a spike, or
        whose loss or gradient is not finite, leaves the state as it was and counts in
        `state.skipped`.
    """
    dropout_root = jax.random.key(seed + 1, impl="threefry2x32")
    summed = _summed_gradients(loss, accumulation, dtype)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(dropout_root, state.step)
        gradients, metrics, time_state = summed(state, batch, key)
        with jax.named_scope("optimizer"):
            return update(state, gradients, metrics, time_state)

    def update(
        state: TrainState, gradients: Any, metrics: Metrics, time_state: Any
    ) -> tuple[TrainState, Metrics]:
        weight_sum = jnp.maximum(metrics["weight_sum"], 1e-9)
        gradients = jax.tree.map(lambda g: g.astype(jnp.float32) / weight_sum, gradients)
        norm = optax.global_norm(gradients)
        good = finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss_sum"])
        metrics = {**metrics, "grad_norm": norm, "finite": finite.astype(jnp.float32)}
        recent = state.recent
        if spikes is not None:
            assert recent is not None
            spike, recent = spikes.judge(recent, metrics["loss_sum"] / weight_sum, norm, finite)
            good = finite & ~spike
            metrics["spike"] = spike.astype(jnp.float32)
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer_state, state.parameters
        )
        parameters = optax.apply_updates(state.parameters, updates)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(
                # The learning rate goes on with the step, also with one that is left out.
                lambda n, o: n if _is_schedule(n) else jnp.where(good, n, o),
                new,
                old,
                is_leaf=_is_schedule,
            )

        new_state = TrainState(
            step=state.step + 1,
            parameters=keep(parameters, state.parameters),
            optimizer_state=keep(optimizer_state, state.optimizer_state),
            skipped=state.skipped + jnp.where(good, 0, 1).astype(jnp.int32),
            time_state=keep(time_state, state.time_state),
            recent=recent,
        )
        return new_state, metrics

    return step


def _is_schedule(state: Any) -> bool:
    return isinstance(state, optax.ScaleByScheduleState)


def _summed_gradients(
    loss: Loss, accumulation: int, dtype: str
) -> Callable[[TrainState, Batch, jax.Array], tuple[Any, Metrics, Any]]:
    """Gradients and metrics of a batch as sums over its micro-batches, and the time sampler.

    Sums of several micro-batches are float32, whatever the gradients of each are.
    """
    gradients_of = jax.value_and_grad(loss, has_aux=True)

    def at_once(state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, Metrics, Any]:
        parameters = rounded_kernels(state.parameters, dtype)
        (_, (metrics, time_state)), gradients = gradients_of(
            parameters, batch, key, state.time_state
        )
        return gradients, metrics, time_state

    def in_turn(state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, Metrics, Any]:
        micro_batches = jax.tree.map(lambda x: _cut(x, accumulation), batch)

        def body(carry: Any, inputs: Any) -> tuple[Any, None]:
            sums, time_state = carry
            *sum_of_one, time_state = at_once(state._replace(time_state=time_state), *inputs)
            return (jax.tree.map(jnp.add, sums, tuple(sum_of_one)), time_state), None

        first = jax.tree.map(lambda x: x[0], micro_batches)
        *shapes, _ = jax.eval_shape(at_once, state, first, key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), tuple(shapes))
        keys = jax.random.split(key, accumulation)
        (sums, time_state), _ = jax.lax.scan(body, (zeros, state.time_state), (micro_batches, keys))
        return *sums, time_state

    return at_once if accumulation == 1 else in_turn


def _cut(x: jax.Array, accumulation: int) -> jax.Array:
    """[accumulation, rows / accumulation, ...]: every so many-th row of x [rows, ...].

    Neighbouring rows go to different micro-batches, so that each is spread over all devices of a
    mesh without moving a row.
    """
    micro_batches = x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1)
    return constrain(micro_batches, (None, "batch", "length", "embed")[: micro_batches.ndim])
