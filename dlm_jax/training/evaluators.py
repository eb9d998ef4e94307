"""What the training loop asks of an evaluator; the evaluators themselves stand a floor above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.errors import UserError

if TYPE_CHECKING:
    from dlm_jax.data.vocabularies import Vocabulary
    from dlm_jax.models.config import EncoderConfig
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


@runtime_checkable
class ModelDependent(Protocol):
    """An evaluator some of whose settings depend on the kind of the model."""

    def resolved(self, config: EncoderConfig) -> Self:
        """The same for a model, with what was left to it filled in.

        Raises:
            UserError: a setting is not for such models.
        """
        ...


@runtime_checkable
class TrainingDependent(Protocol):
    """An evaluator some of whose settings are not for a run that is being trained."""

    def check_before_training(self) -> None:
        """Called before a run is trained whose steps it is to measure.

        Raises:
            UserError: it needs what such a run does not have, and says what.
        """
        ...


@runtime_checkable
class Measuring(Protocol):
    """An evaluator whose figures can be told from those of others before it runs."""

    def measures(self, description: ModelDescription) -> Sequence[str]:
        """What it gives the figures of, in words; no two evaluators may share one."""
        ...


def check_figures(evaluators: Sequence[Evaluator], description: ModelDescription) -> None:
    """Stops a run in which an evaluator would write over the figures of another.

    Raises:
        UserError: two evaluators give figures of the same names.
    """
    owners: dict[str, str] = {}
    for evaluator in evaluators:
        name = type(evaluator).__name__
        measured = evaluator.measures(description) if isinstance(evaluator, Measuring) else ()
        for what in recorded(evaluator, dict.fromkeys(measured, {})):
            if what in owners:
                raise UserError(
                    f"{owners[what]} and {name} both measure the {what}, and the figures of the "
                    "second would replace those of the first: keep one of them, and compare "
                    "settings by dlm sweep"
                )
            owners[what] = name


def check_evaluators(evaluators: Sequence[Evaluator], config: EncoderConfig) -> None:
    """Stops a run whose evaluation would fail hours later.

    Raises:
        UserError: a setting of an evaluator is not for models like this one.
    """
    for evaluator in evaluators:
        if isinstance(evaluator, ModelDependent):
            evaluator.resolved(config)


def check_before_training(evaluators: Sequence[Evaluator]) -> None:
    """Stops a run whose evaluators need what it does not have while it is trained.

    Raises:
        UserError: an evaluator says so.
    """
    for evaluator in evaluators:
        if isinstance(evaluator, TrainingDependent):
            evaluator.check_before_training()


def recorded(
    evaluator: Evaluator, found: Mapping[str, Mapping[str, float]]
) -> dict[str, Mapping[str, float]]:
    """The figures of an evaluator under the names that a run keeps them by.

    Figures of other examples than those of validation never pass for them: `eval/<task>@test`.

    Args:
        evaluator: its `split`, where it has one, says which examples it measured.
        found: {'eval/<task>': figures}.
    """
    split = getattr(evaluator, "split", "validation")
    suffix = "" if split == "validation" else f"@{split}"
    return {f"{name}{suffix}": values for name, values in found.items()}
