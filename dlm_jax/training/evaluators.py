"""What the training loop asks of an evaluator; the evaluators themselves stand a floor above."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder

if TYPE_CHECKING:
    from dlm_jax.data.vocabularies import Vocabulary
    from dlm_jax.models.encoder import Encoder


class Evaluator(Protocol):
    """Measures a model between two steps of training, or after it."""

    def __call__(
        self,
        denoiser: Encoder,
        vocabulary: Vocabulary,
        description: ModelDescription,
        folder: RunFolder,
        step: int,
    ) -> dict[str, dict[str, float]]:
        """Returns {split: {metric: value}}, with splits such as 'eval/<task>'."""
        ...
