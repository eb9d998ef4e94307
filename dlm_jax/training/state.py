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
        parameters: float32 tree that the optimizer changes: that of the model, or without what is
            `frozen`.
        optimizer_state: optax's tree.
        skipped: int32 [], steps that changed nothing, because their loss or gradient was not finite
            or a spike.
        time_state: the importance table of the time sampler, or None.
        recent: what recent steps were like, where spikes are skipped; None where they are not.
        frozen: the model's other parts, by their name in its tree; None where there are none.
    """

    step: jax.Array
    parameters: Any
    optimizer_state: Any
    skipped: jax.Array
    time_state: Any = None
    recent: Recent | None = None
    frozen: Any = None

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

    def model(self) -> Any:
        """The parameters of the whole model, trained and frozen."""
        return whole(self.parameters, self.frozen)

    def training(self) -> dict[str, Any]:
        """Everything but the model and the recent steps, as one tree to save."""
        return {
            "step": self.step,
            "optimizer_state": self.optimizer_state,
            "skipped": self.skipped,
            "time_state": self.time_state,
        }

    def filled(self, model: Any, training: dict[str, Any]) -> TrainState:
        """A state of this one's structure from what `model()` and `training()` took apart."""
        if self.frozen is None:
            return TrainState(parameters=model, **training)
        return TrainState(
            parameters={name: model[name] for name in self.parameters},
            frozen={name: model[name] for name in self.frozen},
            **training,
        )


def whole(parameters: Any, frozen: Any) -> Any:
    """One tree of the parts that are trained and of those that are not."""
    return parameters if frozen is None else {**frozen, **parameters}
