"""How many positions are still masked after each step of the reverse process."""

from __future__ import annotations

import dataclasses

import numpy as np

from dlm_jax.errors import UserError, nearest

SHAPES = ("cosine", "linear")
READINGS = ("masked", "denoised")


@dataclasses.dataclass(frozen=True)
class UnmaskingSchedule:
    """Number of masks that remain after step s of S, among N editable positions.

    Args:
      shape: 'cosine' or 'linear'.
      reading: what the published formula counts. 'masked', as the released code of Ye et al. 2023
        (arXiv 2308.12219) computes it: floor(N·cos(πs/2S)) or floor(N·(1 - s/S)) positions stay
        masked, a slow start. 'denoised', the words of its appendix A.1: with t = S - s,
        floor(N·cos(πt/2S)) or floor(N·(1 - t/S)) positions are denoised, a fast start for cosine.

    Raises:
      UserError: unknown shape or reading.
    """

    shape: str = "cosine"
    reading: str = "masked"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("shape", self.shape, SHAPES),
            ("reading", self.reading, READINGS),
        ):
            if value not in known:
                raise UserError(
                    f"UnmaskingSchedule.{name} is '{value}', which is none of {', '.join(known)}"
                    f"{nearest(value, known)}."
                )

    def masked_fractions(self, steps: int) -> np.ndarray:
        """float64 [steps + 1]: fraction ρ of the editable positions masked after step 0 … steps."""
        step = np.arange(steps + 1)
        if self.reading == "masked":
            return self._falling(step, steps)
        return 1.0 - self._falling(steps - step, steps)

    def masked_counts(self, steps: int, most: int) -> np.ndarray:
        """Masks that remain, for every number of editable positions.

        Args:
          steps: S, steps of the reverse process.
          most: largest number of editable positions.

        Returns:
          int32 [steps + 1, most + 1]; entry [s, n] is the count after step s among n positions.
          In float64, because float32 rounds some products up to the next integer.
        """
        editable = np.arange(most + 1)
        step = np.arange(steps + 1)
        if self.reading == "masked":
            masked = np.floor(np.multiply.outer(self._falling(step, steps), editable))
        else:
            denoised = np.floor(np.multiply.outer(self._falling(steps - step, steps), editable))
            masked = editable - denoised
        return masked.astype(np.int32)

    def _falling(self, numerator: np.ndarray, steps: int) -> np.ndarray:
        if self.shape == "cosine":
            return np.cos(np.pi * numerator / (2 * steps))
        return 1.0 - numerator / steps
