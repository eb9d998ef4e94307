"""One kind of training, as the rest of a run sees it: a state, and the step that changes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.training.objectives import Objective
from dlm_jax.training.sharding import abstract_state, placed_parameters, shardings_of
from dlm_jax.training.state import TrainState
from dlm_jax.training.step import Loss, Step, denoising_loss, make_step


@dataclasses.dataclass(frozen=True)
class Stage:
    """What differs between kinds of training; made within the mesh and the rules of the run.

    Attributes:
        abstract: the state as `jax.ShapeDtypeStruct` leaves with shardings.
        create: makes the state before the first step; not called where a run resumes.
        step: the step, not jitted.
        flops_per_token: forward FLOPs of a token; 0 where they are not known.
    """

    abstract: TrainState
    create: Callable[[], TrainState]
    step: Step
    flops_per_token: float = 0.0

    @classmethod
    def of(
        cls,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        parameters: Any,
        create: Callable[[], tuple[Any, Any]],
        *,
        seed: int,
        accumulation: int = 1,
        time_state: Any = None,
        frozen: Any = None,
        flops_per_token: float = 0.0,
    ) -> Stage:
        """The stage of a loss.

        Args:
            loss: of the whole model's parameters.
            optimizer: the optax transformation.
            parameters: what it changes, as abstract leaves with shardings.
            create: makes the arrays of `parameters` and of `frozen`, on their shardings.
            seed: of dropout.
            accumulation: micro-batches a step.
            time_state: arrays of the time sampler, or None.
            frozen: the rest of the model, as abstract leaves with shardings; or None.
            flops_per_token: forward FLOPs of a token.
        """
        abstract = abstract_state(parameters, optimizer, time_state, frozen)

        def first() -> TrainState:
            trained, rest = create()
            # Jitted with shardings: no device ever holds the moments of a parameter that it has a
            # part of.
            training = jax.jit(
                lambda p: TrainState.create(p, optimizer, time_state).training(),
                out_shardings=shardings_of(abstract.training()),
            )(trained)
            return TrainState(parameters=trained, frozen=rest, **training)

        step = make_step(loss, optimizer, seed=seed, accumulation=accumulation)
        return cls(abstract, first, step, flops_per_token)


def adaptation(
    config: EncoderConfig,
    weights: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    length: int,
    seed: int,
    accumulation: int = 1,
    chunk: int | None = None,
) -> Stage:
    """Diffusive adaptation: all parameters of an encoder, under an objective.

    Args:
        config: shape of the encoder.
        weights: its parameters on this host; None = random ones.
        objective: draws the noise and weighs the losses.
        optimizer: the optax transformation.
        mesh: of the run.
        length: tokens a row.
        seed: of noise, dropout and random weights.
        accumulation: micro-batches a step.
        chunk: positions projected on the vocabulary at a time.
    """
    parameters = placed_parameters(config, mesh)
    return Stage.of(
        denoising_loss(config, objective, seed=seed, chunk=chunk),
        optimizer,
        parameters,
        lambda: (first_parameters(config, weights, parameters, seed), None),
        seed=seed,
        accumulation=accumulation,
        time_state=objective.init_time_state(),
        flops_per_token=config.flops_per_token(length),
    )


def first_parameters(config: EncoderConfig, weights: Any, abstract: Any, seed: int) -> Any:
    """An encoder's parameters on their shardings.

    Args:
        config: its shape.
        weights: arrays on this host; None = random ones.
        abstract: abstract leaves with the shardings.
        seed: of random weights.
    """
    shardings = shardings_of(abstract)
    if weights is None:

        def initialise() -> Any:
            return encoders.parameters(encoders.Encoder(config, rngs=nnx.Rngs(seed)))

        return jax.jit(initialise, out_shardings=shardings)()
    if jax.process_count() == 1:
        return jax.device_put(weights, shardings)
    return jax.tree.map(_from_every_host, weights, shardings)


def _from_every_host(leaf: Any, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """A global array of which each host has read the whole."""
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
