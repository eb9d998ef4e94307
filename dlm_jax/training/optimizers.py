"""Optimizers and learning-rate schedules, from optax, with the names that gin files use."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from dlm_jax.errors import UserError, nearest
from dlm_jax.training.lean_adam import scale_by_lean_adam

SCHEDULES = ("constant", "inverse_sqrt", "cosine", "linear")
FIRST_MOMENTS = ("float32", "bfloat16")
SECOND_MOMENTS = ("full", "factored")


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW with warm-up and gradient clipping; the defaults are the paper's (A.3).

    Attributes:
        learning_rate: the peak, reached at the end of the warm-up.
        schedule: what follows the warm-up: 'constant' (what the paper's runs did), 'inverse_sqrt',
            'cosine' or 'linear' (both to `final_fraction` of the peak at the last step).
        warmup_steps: linear warm-up from zero; a value below 1 is a fraction of all steps.
        final_fraction: end of the cosine and linear schedules, as a fraction of the peak.
        weight_decay: decoupled decay, times the learning rate.
        decay: 'all' parameters (what the paper's runs did) or only 'matrices' (no biases and
            norms).
        b1: decay of the first moment.
        b2: decay of the second moment.
        epsilon: added to the root of the second moment.
        max_grad_norm: global norm to which gradients are clipped; 0 turns it off.
        first_moment: dtype in which the first moment is kept, 'float32' or 'bfloat16'.
        second_moment: 'full', a number for each parameter, or 'factored', one for each row and each
            column of a matrix (as in Adafactor). With both settings at their leanest the state
            takes 2 bytes a parameter instead of 8; see `scale_by_lean_adam`.
    """

    learning_rate: float = 5e-5
    schedule: Literal["constant", "inverse_sqrt", "cosine", "linear"] = "constant"
    warmup_steps: float = 0.01
    final_fraction: float = 0.0
    weight_decay: float = 0.01
    decay: Literal["all", "matrices"] = "all"
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    first_moment: Literal["float32", "bfloat16"] = "float32"
    second_moment: Literal["full", "factored"] = "full"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"AdamW.schedule is {self.schedule!r}{nearest(self.schedule, SCHEDULES)}; "
                f"it can be {', '.join(SCHEDULES)}"
            )
        for name, known in (("first_moment", FIRST_MOMENTS), ("second_moment", SECOND_MOMENTS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(
                    f"AdamW.{name} is {value!r}{nearest(str(value), known)}; "
                    f"it can be {', '.join(known)}"
                )
        if self.decay not in ("all", "matrices"):
            raise UserError(f"AdamW.decay must be 'all' or 'matrices', not {self.decay!r}")
        if self.learning_rate <= 0:
            raise UserError(f"AdamW.learning_rate must be positive, not {self.learning_rate}")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise UserError(f"AdamW.{name} must not be negative, not {getattr(self, name)}")

    def learning_rates(self, total_steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the number of finished steps."""
        warmup = self.warmup_steps
        steps = max(1, round(warmup * total_steps if 0 < warmup < 1 else warmup))
        if steps > total_steps:
            raise UserError(f"AdamW.warmup_steps is {steps}, more than the {total_steps} steps")
        peak, rest = self.learning_rate, max(1, total_steps - steps)
        after: optax.Schedule
        if self.schedule == "constant":
            after = optax.constant_schedule(peak)
        elif self.schedule == "cosine":
            after = optax.cosine_decay_schedule(peak, rest, alpha=self.final_fraction)
        elif self.schedule == "linear":
            after = optax.linear_schedule(peak, peak * self.final_fraction, rest)
        else:

            def after(count: Any) -> Any:
                # join_schedules also evaluates it before the boundary, at negative counts.
                return peak * (steps / (jnp.maximum(count, 0) + steps)) ** 0.5

        # The first step already moves: a rate of zero would waste its batch.
        rise = optax.linear_schedule(peak / steps, peak, max(1, steps - 1))
        # The last step of the warm-up is at the peak, where the rest begins, and the last step of
        # all, after `total_steps - 1` others, at its end.
        return optax.join_schedules([rise, after], [steps - 1])

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """Returns the optax transformation for a run of `total_steps` optimizer steps."""
        mask = None
        if self.decay == "matrices":
            mask = _is_matrix
        rates = self.learning_rates(total_steps)
        if (self.first_moment, self.second_moment) == ("float32", "full"):
            adam = optax.adamw(
                rates,
                b1=self.b1,
                b2=self.b2,
                eps=self.epsilon,
                weight_decay=self.weight_decay,
                mask=mask,
            )
        else:
            adam = optax.chain(
                scale_by_lean_adam(
                    self.b1,
                    self.b2,
                    self.epsilon,
                    mu_dtype=self.first_moment,
                    factored=self.second_moment == "factored",
                ),
                optax.add_decayed_weights(self.weight_decay, mask),
                optax.scale_by_learning_rate(rates),
            )
        if not self.max_grad_norm:
            return adam
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), adam)


def _is_matrix(parameters: Any) -> Any:
    """True for kernels and embeddings, by name: stacked biases have two dimensions as well."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding"), parameters
    )
