"""A sampler as a value: which hooks the reverse process composes, and for how many steps."""

from __future__ import annotations

import dataclasses
import math
import re

from dlm_jax.errors import UserError, nearest
from dlm_jax.sampling import autoregressive
from dlm_jax.sampling.position_rules import (
    LeftToRight,
    PositionRule,
    RandomUnmasking,
    Reparameterized,
)
from dlm_jax.sampling.schedule import UnmaskingSchedule
from dlm_jax.sampling.token_rules import Argmax, TokenRule, token_rule

_REPARAMETERIZED = re.compile(
    r"reparam-(?P<routing>uncond|cond)-(?P<noise>deterministic|stochastic(?P<scale>[0-9.]+))"
    r"-(?P<shape>cosine|linear)"
)
_EXAMPLES = (
    "reparam-uncond-deterministic-cosine",
    "reparam-uncond-deterministic-linear",
    "reparam-cond-deterministic-cosine",
    "reparam-cond-deterministic-linear",
    "reparam-uncond-stochastic1.0-cosine",
    "reparam-uncond-stochastic1.0-linear",
    "reparam-cond-stochastic1.0-cosine",
    "reparam-cond-stochastic1.0-linear",
    "cmlm",
    "left-to-right",
    autoregressive.STRATEGY,
)


@dataclasses.dataclass(frozen=True)
class Policy:
    """The hooks of the reverse process. Hashable: equal policies share one compilation.

    Args:
      positions: which positions are written and masked again.
      tokens: which token a position is given.
      schedule: how many positions stay masked after each step, for the rules that ask for it.
      steps: S, steps of the reverse process. None, for `LeftToRight` only: as many as the row has
        editable positions.
      early_exit: stop a row as soon as no later step can change it; False takes exactly S steps,
        as the paper does. Tokens and scores are the same.

    Raises:
      UserError: `steps` is not positive, or None with a rule that needs a number.
    """

    positions: PositionRule = Reparameterized()
    tokens: TokenRule = Argmax()
    schedule: UnmaskingSchedule = UnmaskingSchedule()
    steps: int | None = 10
    early_exit: bool = False

    def __post_init__(self) -> None:
        if self.steps is None and not isinstance(self.positions, LeftToRight):
            raise UserError(
                "Policy.steps is None, which only left-to-right decoding allows; give their number."
            )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"Policy.steps is {self.steps}, and must be at least 1.")

    @property
    def random(self) -> bool:
        """Whether another key can give another answer."""
        fixed = isinstance(self.positions, LeftToRight) or (
            isinstance(self.positions, Reparameterized) and not self.positions.noise_scale
        )
        return not (fixed and isinstance(self.tokens, Argmax))

    @classmethod
    def parse(
        cls,
        strategy: str,
        *,
        steps: int | None = 10,
        temperature: float = 0.0,
        schedule_reading: str = "masked",
        early_exit: bool = False,
        eos_id: int | None = None,
    ) -> Policy:
        """Builds a policy from the name of a strategy.

        Args:
          strategy: 'reparam-<uncond|cond>-<deterministic|stochastic<scale>>-<cosine|linear>',
            'cmlm', 'left-to-right' or, for causal models, 'autoregressive'.
          steps: see `Policy`; 'autoregressive' takes one for each token whatever is given.
          temperature: 0 takes the most probable token, else tokens are drawn at that temperature.
          schedule_reading: 'masked' or 'denoised', see `UnmaskingSchedule`.
          early_exit: see `Policy`.
          eos_id: id that ends a row, under 'autoregressive' only.

        Raises:
          UserError: unknown strategy, or a value out of range.
        """
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise UserError(
                f"The temperature is {temperature}, and must be a number from 0 upwards."
            )
        if strategy == autoregressive.STRATEGY:
            return cls(LeftToRight(eos_id), token_rule(temperature), steps=None)
        positions, shape = _parse_strategy(strategy)
        return cls(
            positions=positions,
            tokens=token_rule(temperature),
            schedule=UnmaskingSchedule(shape, schedule_reading),
            steps=steps,
            early_exit=early_exit,
        )


def _parse_strategy(strategy: str) -> tuple[PositionRule, str]:
    if strategy == "cmlm":
        return RandomUnmasking(), "linear"
    if strategy == "left-to-right":
        return LeftToRight(), "linear"
    match = _REPARAMETERIZED.fullmatch(strategy)
    scale = _noise_scale(match["scale"]) if match else None
    if match is None or scale is None:
        raise UserError(
            f"The decoding strategy '{strategy}' is none of reparam-<uncond|cond>-"
            "<deterministic|stochastic<scale>>-<cosine|linear>, cmlm, left-to-right and "
            f"{autoregressive.STRATEGY}"
            f"{nearest(strategy, _EXAMPLES)}."
        )
    return Reparameterized(match["routing"] == "cond", scale), match["shape"]


def _noise_scale(text: str | None) -> float | None:
    try:
        return float(text) if text else 0.0
    except ValueError:
        return None
