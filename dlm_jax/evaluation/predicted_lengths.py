"""Lengths of answers for the examples of an evaluation, and how the length predictor sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dlm_jax.api import DiffusionLanguageModel
from dlm_jax.evaluation.generation import Example
from dlm_jax.sampling.length_calibration import LengthCalibration
from dlm_jax.sampling.length_prediction import Beam


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Which lengths are tried.

    Attributes:
      tried: on every answer, tokens.
      log_priors: logarithms of their frequencies, where they are known.
      beams: those of each example by its number, where they are predicted.
      calibration: of the predicted ones.
    """

    tried: Sequence[int] = ()
    log_priors: Sequence[float] | None = None
    beams: Mapping[int, Beam] = dataclasses.field(default_factory=dict)
    calibration: LengthCalibration | None = None

    @property
    def longest(self) -> int | None:
        """The longest of those that are tried on every answer."""
        return max(self.tried, default=None)


@dataclasses.dataclass(frozen=True)
class PredictedLengths:
    """What the predictor says of each example, from its prompt alone.

    Attributes:
      log_probs: by the example's number, float32 [classes]; entry c is that of c + 1 tokens.
    """

    log_probs: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, model: DiffusionLanguageModel, examples: Sequence[Example]) -> PredictedLengths:
        """Reads the prompts of examples, which must fit into a row of the model.

        Raises:
          UserError: the model has no length predictor, or one of another model.
        """
        rows = model.length_log_probs([example.prompt_ids for example in examples])
        return cls({example.index: row for example, row in zip(examples, rows)})

    def likeliest(self, example: Example, longest: int) -> int:
        """The likeliest length of an answer, in tokens, that a row of `longest` has room for.

        An example that was dropped for its length has none, and is given one token.
        """
        row = self.log_probs.get(example.index)
        return 1 if row is None else min(int(row.argmax()) + 1, longest - 2)

    def lengths(
        self, model: DiffusionLanguageModel, examples: Sequence[Example], size: int
    ) -> Lengths:
        """The `size` likeliest lengths of each example that its prompt leaves room for, and the
        predictions beside the lengths of the references."""
        rows = np.stack([self.log_probs[example.index] for example in examples])
        beams = model.beams([example.prompt_ids for example in examples], rows, size)
        true = np.array([len(example.target_ids) for example in examples])
        return Lengths(
            beams={example.index: beam for example, beam in zip(examples, beams)},
            calibration=LengthCalibration(rows, true),
        )
