"""One kind of training, as the rest of a run sees it: a state, and the step that changes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.training.objectives import Objective
from dlm_jax.training.sharding import abstract_state, placed_parameters, shardings_of
from dlm_jax.training.spikes import SkipSpikes
from dlm_jax.training.state import TrainState
from dlm_jax.training.step import Loss, Step, denoising_loss, make_step

Weights = Callable[[Any], Any]
"""Reads parameters onto a tree of abstract leaves with shardings."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What differs between kinds of training; made within the sharding rules of the run.

    Attributes:
        abstract: the state as `jax.ShapeDtypeStruct` leaves with shardings.
        create: makes the state before the first step; not called where a run resumes.
        step: the step, not jitted.
        spikes: which steps change nothing though they are finite; None = none.
        flops_per_token: forward FLOPs of a token; 0 where they are not known.
    """

    abstract: TrainState
    create: Callable[[], TrainState]
    step: Step
    spikes: SkipSpikes | None = None
    flops_per_token: float = 0.0

    @classmethod
    def of(
        cls,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        parameters: Any,
        create: Callable[[], Any],
        *,
        seed: int,
        accumulation: int = 1,
        time_state: Any = None,
        spikes: SkipSpikes | None = None,
        dtype: str = "float32",
        flops_per_token: float = 0.0,
    ) -> Stage:
        """The stage of a loss.

        Args:
            loss: of the parameters.
            optimizer: the optax transformation.
            parameters: what it changes, as abstract leaves with shardings.
            create: makes the arrays of `parameters`, on their shardings.
            seed: of dropout.
            accumulation: micro-batches a step.
            time_state: arrays of the time sampler, or None.
            spikes: which steps change nothing though they are finite; None = none.
            dtype: what the kernels of layers are rounded to, and their gradients with them.
            flops_per_token: forward FLOPs of a token.
        """
        recent = spikes.empty() if spikes else None
        abstract = abstract_state(parameters, optimizer, time_state, recent)

        def first() -> TrainState:
            arrays = create()
            # Jitted with shardings: no device ever holds the moments of a parameter that it has a
            # part of.
            state = jax.jit(
                lambda p: TrainState.create(p, optimizer, time_state, recent)._replace(
                    parameters=None
                ),
                out_shardings=shardings_of(abstract._replace(parameters=None)),
            )(arrays)
            return state._replace(parameters=arrays)

        step = make_step(
            loss, optimizer, seed=seed, accumulation=accumulation, spikes=spikes, dtype=dtype
        )
        return cls(abstract, first, step, spikes, flops_per_token)

    def saved(self, state: TrainState) -> dict[str, Any]:
        """JSON that belongs to a checkpoint of the state beside its arrays; waits for its step."""
        if self.spikes is None or state.recent is None:
            return {}
        return {"recent": self.spikes.to_json(state.recent)}

    def resumed(
        self, parameters: Any, training: dict[str, Any], saved: dict[str, Any]
    ) -> TrainState:
        """The state of a checkpoint.

        Args:
            parameters: arrays of `abstract.parameters`.
            training: arrays of `abstract.training()`.
            saved: what `saved` gave.
        """
        state = TrainState(parameters=parameters, **training)
        if self.spikes is None or self.abstract.recent is None:
            return state
        recent = self.spikes.from_json(saved.get("recent"), self.abstract.recent)
        return state._replace(recent=recent)


def adaptation(
    config: EncoderConfig,
    weights: Weights | None,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    length: int,
    seed: int,
    accumulation: int = 1,
    chunk: int | None = None,
    spikes: SkipSpikes | None = None,
) -> Stage:
    """Diffusive adaptation: all parameters of an encoder, under an objective.

    A run trains it, and a plan compiles its step: for that nothing needs to be on the mesh's
    devices, which need not be there.

    Args:
        config: shape of the encoder.
        weights: reads its parameters; None = random ones.
        objective: draws the noise and weighs the losses.
        optimizer: the optax transformation.
        mesh: of the run.
        length: tokens a row.
        seed: of noise, dropout and random weights.
        accumulation: micro-batches a step.
        chunk: positions projected on the vocabulary at a time.
        spikes: which steps change nothing though they are finite; None = none.
    """
    parameters = placed_parameters(config, mesh)
    return Stage.of(
        denoising_loss(config, objective, seed=seed, chunk=chunk),
        optimizer,
        parameters,
        lambda: first_parameters(config, weights, parameters, seed),
        seed=seed,
        accumulation=accumulation,
        time_state=objective.init_time_state(),
        spikes=spikes,
        dtype=config.dtype,
        flops_per_token=config.flops_per_token(length),
    )


def first_parameters(
    config: EncoderConfig, weights: Weights | None, abstract: Any, seed: int
) -> Any:
    """An encoder's parameters on their shardings.

    Args:
        config: its shape.
        weights: reads them; None = random ones.
        abstract: abstract leaves with the shardings.
        seed: of random weights.
    """
    if weights is not None:
        return weights(abstract)

    def initialise() -> Any:
        return encoders.parameters(encoders.Encoder(config, rngs=nnx.Rngs(seed)))

    return jax.jit(initialise, out_shardings=shardings_of(abstract))()
