"""How well predicted lengths agree with true ones, and how far their probabilities hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

BINS = 10


@dataclasses.dataclass(frozen=True)
class Bin:
    """Predictions of similar confidence.

    Attributes:
      confidence: their mean confidence.
      accuracy: share of them that are right.
      count: how many there are.
    """

    confidence: float
    accuracy: float
    count: int


def reliability(
    confidences: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, bins: int = BINS
) -> list[Bin]:
    """Confidence against accuracy in bins of equal width; empty bins are left out.

    Args:
      confidences: [examples], in [0, 1].
      right: [examples], whether each prediction was right.
      bins: how many bins [0, 1] is cut into.
    """
    given, hits = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    # The last bin is closed at both ends.
    numbers = np.minimum((given * bins).astype(int), bins - 1)
    found = []
    for number in np.unique(numbers):
        members = numbers == number
        found.append(Bin(float(given[members].mean()), float(hits[members].mean()), members.sum()))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (Guo et al. 2017, equation 5), a fraction of 1."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / total


@dataclasses.dataclass(frozen=True)
class LengthCalibration:
    """Predicted distributions over lengths beside the lengths of the references.

    Attributes:
      log_probs: float32 [examples, classes]; entry c is that of c + 1 tokens.
      lengths: int [examples], tokens of each reference without `</s>`.
    """

    log_probs: np.ndarray
    lengths: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """int64 [examples]: the likeliest length of each answer."""
        return self.log_probs.argmax(axis=-1) + 1

    @property
    def confidences(self) -> np.ndarray:
        """float64 [examples]: the probability of that length."""
        return np.exp(self.log_probs.max(axis=-1).astype(np.float64))

    @property
    def true_log_probs(self) -> np.ndarray:
        """float64 [examples]: log-probability of the true length, nats."""
        rows = np.arange(len(self.lengths))
        return self.log_probs[rows, self._true_classes].astype(np.float64)

    @property
    def _true_classes(self) -> np.ndarray:
        # int [examples]; what is longer than all classes counts as the longest.
        return np.clip(self.lengths, 1, self.log_probs.shape[-1]) - 1

    def figures(self, beam: int) -> dict[str, float]:
        """The figures, means with their standard errors as `<name>_se`.

        Args:
          beam: how many of the likeliest lengths `length_in_beam` asks for.

        Returns:
          `length_mae` (tokens), `length_exact`, `length_within_1` and `_2` and `length_in_beam`
          (shares of the examples), `length_nll` (nats), `length_ece` (fraction of 1) and, unless
          all lengths are equal, `length_correlation` (Pearson).
        """
        errors = np.abs(self.predicted - self.lengths)
        # How many classes a beam takes before the true one: of equal ones the shorter first.
        true = self.true_log_probs[:, None]
        shorter = np.arange(self.log_probs.shape[-1]) < self._true_classes[:, None]
        rank = ((self.log_probs > true) | ((self.log_probs == true) & shorter)).sum(axis=-1)
        means = {
            "length_mae": errors,
            "length_exact": errors == 0,
            "length_within_1": errors <= 1,
            "length_within_2": errors <= 2,
            "length_in_beam": rank < beam,
            "length_nll": -self.true_log_probs,
        }
        figures: dict[str, float] = {}
        for name, values in means.items():
            figures |= _mean(name, np.asarray(values, np.float64))
        bins = reliability(self.confidences, errors == 0)
        figures["length_ece"] = calibration_error(bins)
        if len(set(self.lengths.tolist())) > 1 and len(set(self.predicted.tolist())) > 1:
            figures["length_correlation"] = float(np.corrcoef(self.predicted, self.lengths)[0, 1])
        return figures

    def records(self) -> list[dict[str, float]]:
        """For each example: the predicted length and its probability, the true one and its
        log-probability."""
        columns = (self.predicted, self.confidences, self.lengths, self.true_log_probs)
        return [
            {
                "predicted_length": int(predicted),
                "length_confidence": round(float(confidence), 6),
                "true_length": int(true),
                "true_length_log_probability": round(max(float(log_prob), -1e6), 6),
            }
            for predicted, confidence, true, log_prob in zip(*columns)
        ]


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    mean = {name: float(values.mean())}
    if len(values) < 2:
        return mean
    return {**mean, f"{name}_se": float(values.std(ddof=1)) / math.sqrt(len(values))}
