"""Updates that are left out because their loss or gradient is far above those of recent steps."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.errors import UserError


class Recent(NamedTuple):
    """What the recent steps were like; a part of the training state.

    Attributes:
        losses: float32 [window], in a ring.
        norms: float32 [window], of the gradients, in the same ring.
        seen: int32 [], steps that have been noted.
    """

    losses: jax.Array
    norms: jax.Array
    seen: jax.Array


@dataclasses.dataclass(frozen=True)
class SkipSpikes:
    """Leaves out an update whose loss or gradient norm is `factor` standard deviations above the
    mean of the last `window` steps; the rule and its defaults are OLMo's (`SkipStepOptimizer`).

    A step that is left out counts as one: its batch is not seen again. It enters the window as if
    it had been just at the limit. So one wild step does not blind the rule for the next ones, and
    a loss that has risen for good is accepted after some steps.

    Attributes:
        window: steps that the mean and the standard deviation are taken over; nothing is left out
            before half of them have been seen.
        factor: standard deviations above the mean.
    """

    window: int = 128
    factor: float = 6.0

    def __post_init__(self) -> None:
        if self.window < 4:
            raise UserError(f"SkipSpikes.window must be at least 4, not {self.window}")
        if self.factor <= 0:
            raise UserError(f"SkipSpikes.factor must be positive, not {self.factor}")

    def empty(self) -> Recent:
        """Before the first step."""
        losses, norms = (jnp.zeros(self.window, jnp.float32) for _ in range(2))
        return Recent(losses, norms, jnp.zeros((), jnp.int32))

    def judge(
        self, recent: Recent, loss: jax.Array, norm: jax.Array, finite: jax.Array
    ) -> tuple[jax.Array, Recent]:
        """Compares a step with the recent ones.

        Args:
            recent: the steps before it.
            loss: float32 [], per weight.
            norm: float32 [], of the gradient.
            finite: bool []; a step that is not finite is not noted, and is no spike.

        Returns:
            Whether the step is a spike, bool [], and the recent steps with it.
        """
        known = jnp.minimum(recent.seen, self.window)
        limits = [self._limit(values, known) for values in (recent.losses, recent.norms)]
        enough = known >= self.window // 2
        spike = finite & enough & ((loss > limits[0]) | (norm > limits[1]))

        def note(values: jax.Array, value: jax.Array, limit: jax.Array) -> jax.Array:
            value = jnp.where(enough, jnp.minimum(value, limit), value)
            return values.at[recent.seen % self.window].set(value)

        noted = Recent(
            note(recent.losses, loss, limits[0]),
            note(recent.norms, norm, limits[1]),
            recent.seen + 1,
        )
        return spike, jax.tree.map(lambda new, old: jnp.where(finite, new, old), noted, recent)

    def _limit(self, values: jax.Array, known: jax.Array) -> jax.Array:
        filled = jnp.arange(self.window) < known
        count = jnp.maximum(known, 1)
        mean = jnp.sum(values, where=filled) / count
        variance = jnp.sum((values - mean) ** 2, where=filled) / count
        return mean + self.factor * jnp.sqrt(variance)

    def to_json(self, recent: Recent) -> dict[str, Any]:
        """The recent steps as JSON; float32 values survive it bit for bit."""
        return {name: np.asarray(value).tolist() for name, value in recent._asdict().items()}

    def from_json(self, saved: dict[str, Any] | None, abstract: Recent) -> Recent:
        """Reads them onto the shardings of `abstract`.

        A checkpoint that was saved without the rule, or with another window, begins a new one: it
        can be switched on for a run that already goes on.
        """
        known = saved if saved is not None and len(saved["losses"]) == self.window else None

        def place(name: str, leaf: jax.Array) -> jax.Array:
            value = np.zeros(leaf.shape) if known is None else np.asarray(known[name])
            value = value.astype(leaf.dtype)
            return jax.make_array_from_callback(
                leaf.shape, leaf.sharding, lambda index: value[index]
            )

        return Recent(*(place(name, leaf) for name, leaf in abstract._asdict().items()))
