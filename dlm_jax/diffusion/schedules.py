"""Noise schedules: the fraction of tokens α(t) that the forward process has kept at time t."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from dlm_jax.errors import UserError, nearest

_HALF_PI = math.pi / 2


class Schedule(Protocol):
    """α: [0, 1] -> [0, 1] with α(0) = 1 and α(1) = 0; all methods are elementwise in float32."""

    def alpha(self, t: jax.Array) -> jax.Array:
        """Fraction of tokens kept at time t."""

    def alpha_derivative(self, t: jax.Array) -> jax.Array:
        """dα/dt, never positive."""

    def mask_probability(self, t: jax.Array) -> jax.Array:
        """1 - α(t), without the cancellation for small t; exactly 0 at 0 and 1 at 1."""

    def unmasking_probability(self, t: jax.Array, step: jax.Array | float) -> jax.Array:
        """(α(t - step) - α(t)) / (1 - α(t)) for 0 < step <= t.

        The probability under the reverse process that a token masked at t is revealed by t - step,
        and the weight of the discrete-time NELBO (Austin et al. 2021, absorbing D3PM).
        """

    def nelbo_weight(self, t: jax.Array) -> jax.Array:
        """-α'(t) / (1 - α(t)) for t > 0, the weight of the continuous-time NELBO.

        Source: Shi et al. 2024 (MD4) eq. 5; Sahoo et al. 2024 (MDLM) eq. 10.
        """


@dataclasses.dataclass(frozen=True)
class Linear:
    """α(t) = 1 - t."""

    def alpha(self, t: jax.Array) -> jax.Array:
        """Fraction of tokens kept at time t."""
        return 1.0 - t

    def alpha_derivative(self, t: jax.Array) -> jax.Array:
        """dα/dt."""
        return -jnp.ones_like(t)

    def mask_probability(self, t: jax.Array) -> jax.Array:
        """1 - α(t)."""
        return t

    def unmasking_probability(self, t: jax.Array, step: jax.Array | float) -> jax.Array:
        """(α(t - step) - α(t)) / (1 - α(t))."""
        return step / t

    def nelbo_weight(self, t: jax.Array) -> jax.Array:
        """-α'(t) / (1 - α(t))."""
        return 1.0 / t


@dataclasses.dataclass(frozen=True)
class Cosine:
    """α(t) = 1 - cos(π/2 · (1 - t)), the cosine schedule of MD4 (Shi et al. 2024)."""

    def alpha(self, t: jax.Array) -> jax.Array:
        """Fraction of tokens kept at time t."""
        late = 2.0 * jnp.sin(_HALF_PI / 2 * (1.0 - t)) ** 2
        return jnp.where(t < 0.5, 1.0 - jnp.sin(_HALF_PI * t), late)

    def alpha_derivative(self, t: jax.Array) -> jax.Array:
        """dα/dt."""
        return -_HALF_PI * jnp.sin(_HALF_PI * (1.0 - t))

    def mask_probability(self, t: jax.Array) -> jax.Array:
        """1 - α(t)."""
        return jnp.sin(_HALF_PI * t)

    def unmasking_probability(self, t: jax.Array, step: jax.Array | float) -> jax.Array:
        """(α(t - step) - α(t)) / (1 - α(t)), by the difference formula of the sine."""
        half_angle = _HALF_PI / 2 * jnp.asarray(step)
        # sin a - sin b = 2 cos((a + b) / 2) sin((a - b) / 2), and cos x = sin(π/2 - x).
        middle = jnp.sin(_HALF_PI * (1.0 - t) + half_angle)
        return 2.0 * middle * jnp.sin(half_angle) / jnp.sin(_HALF_PI * t)

    def nelbo_weight(self, t: jax.Array) -> jax.Array:
        """-α'(t) / (1 - α(t))."""
        return _HALF_PI * jnp.sin(_HALF_PI * (1.0 - t)) / jnp.sin(_HALF_PI * t)


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """α(t) = 1 - t**exponent."""

    exponent: float = 2.0

    def __post_init__(self) -> None:
        """Raises UserError unless the exponent lies in [0.1, 10]."""
        if not 0.1 <= self.exponent <= 10:
            raise UserError(f"Polynomial.exponent={self.exponent!r} must lie between 0.1 and 10")

    def alpha(self, t: jax.Array) -> jax.Array:
        """Fraction of tokens kept at time t."""
        return -jnp.expm1(self.exponent * jnp.log(t))

    def alpha_derivative(self, t: jax.Array) -> jax.Array:
        """dα/dt."""
        return -self.exponent * t ** (self.exponent - 1.0)

    def mask_probability(self, t: jax.Array) -> jax.Array:
        """1 - α(t)."""
        return t**self.exponent

    def unmasking_probability(self, t: jax.Array, step: jax.Array | float) -> jax.Array:
        """(α(t - step) - α(t)) / (1 - α(t))."""
        return -jnp.expm1(self.exponent * jnp.log1p(-step / t))

    def nelbo_weight(self, t: jax.Array) -> jax.Array:
        """-α'(t) / (1 - α(t))."""
        return self.exponent / t


def schedule_by_name(name: str, exponent: float = 2.0) -> Schedule:
    """The schedule called 'linear', 'cosine' or 'polynomial' (which alone uses `exponent`).

    Raises:
      UserError: no schedule has this name.
    """
    schedules: dict[str, Schedule] = {"linear": Linear(), "cosine": Cosine()}
    if name == "polynomial":
        return Polynomial(exponent)
    if name not in schedules:
        names = (*schedules, "polynomial")
        raise UserError(
            f"schedule={name!r} is none of {', '.join(names)}{nearest(str(name), names)}"
        )
    return schedules[name]
