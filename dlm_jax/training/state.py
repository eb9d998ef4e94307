"""What a training step reads and writes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dlm_jax.training.spikes import Recent


class TrainState(NamedTuple):
    """A pytree; everything in it is saved, and a restored one continues bit for bit.

    Attributes:
        step: int32 [], number of finished optimizer steps.
        parameters: float32 tree of the model, which the optimizer changes.
        optimizer_state: optax's tree.
        skipped: int32 [], steps that changed nothing, because their loss or gradient was not finite
            or a spike.
        time_state: the importance table of the time sampler, or None.
        recent: what recent steps were like, where spikes are skipped; None where they are not.
    """

    step: jax.Array
    parameters: Any
    optimizer_state: Any
    skipped: jax.Array
    time_state: Any = None
    recent: Recent | None = None

    @classmethod
    def create(
        cls,
        parameters: Any,
        optimizer: optax.GradientTransformation,
        time_state: Any = None,
        recent: Recent | None = None,
    ) -> TrainState:
        """Returns the state before the first step."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            parameters=parameters,
            optimizer_state=optimizer.init(parameters),
            skipped=jnp.zeros((), jnp.int32),
            time_state=time_state,
            recent=recent,
        )

    def training(self) -> dict[str, Any]:
        """Everything but the parameters and the recent steps, as one tree to save."""
        return {
            "step": self.step,
            "optimizer_state": self.optimizer_state,
            "skipped": self.skipped,
            "time_state": self.time_state,
        }
