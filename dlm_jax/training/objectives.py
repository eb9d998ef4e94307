"""Objectives as the values that gin files set; the vocabulary fills in the rest."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.diffusion.autoregressive import AutoregressiveObjective
from dlm_jax.diffusion.objectives import DiffusionObjective, MaskedLanguageModelObjective
from dlm_jax.diffusion.process import AbsorbingProcess
from dlm_jax.diffusion.schedules import schedule_by_name
from dlm_jax.diffusion.time_sampling import time_sampling_by_name
from dlm_jax.errors import UserError
from dlm_jax.models.config import EncoderConfig

Objective = DiffusionObjective | MaskedLanguageModelObjective | AutoregressiveObjective


class ObjectiveConfig(Protocol):
    """A choice of objective before its vocabulary is known."""

    def build(self, vocabulary: Vocabulary) -> Objective:
        """Returns the objective for models of a vocabulary."""
        ...


def check_attention_pattern(objective: Objective, config: EncoderConfig) -> None:
    """Stops a model that would see what it has to predict, or not see what it is to read.

    Raises:
        UserError: the objective is not for models of this attention pattern.
    """
    wanted = objective.attention_pattern
    if config.attention_pattern != wanted:
        raise UserError(
            f"{type(objective).__name__} needs a model with {wanted} attention, and this one's is "
            f"{config.attention_pattern}: set train.attention_pattern='{wanted}'"
        )


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """Diffusive adaptation; the defaults are the paper's (method: T = 50, coupled pair, linear
    weight).

    Attributes:
        num_timesteps: T of the discrete process; None = continuous time.
        schedule: 'linear', 'cosine' or 'polynomial', of the fraction of tokens kept.
        weighting: of the loss at a time: 'linear', 'reciprocal' (the ELBO) or 'constant'.
        pairing: draws of an example: 'single', 'coupled', 'two_step', 'two_sample' or
            'fixed_ratio'.
        fixed_ratio: fraction of tokens absorbed under pairing='fixed_ratio'.
        time_sampling: 'low_discrepancy', 'iid' or 'importance'.
        label_smoothing: of the cross-entropy; the paper's 0.1 is for models without pretraining.
        prompt_corruption: 'none', 'drop' or 'joint', with probability `prompt_rate` an example.
        prompt_rate: see `prompt_corruption`.
    """

    num_timesteps: int | None = 50
    schedule: str = "linear"
    weighting: str = "linear"
    pairing: str = "coupled"
    fixed_ratio: float = 0.15
    time_sampling: str = "low_discrepancy"
    label_smoothing: float = 0.0
    prompt_corruption: str = "none"
    prompt_rate: float = 0.0

    def build(self, vocabulary: Vocabulary) -> DiffusionObjective:
        """Returns the objective whose absorbing state is the vocabulary's mask."""
        process = AbsorbingProcess(
            mask_id=vocabulary.mask_id,
            schedule=schedule_by_name(self.schedule),
            num_timesteps=self.num_timesteps,
            prompt_corruption=self.prompt_corruption,
            prompt_rate=self.prompt_rate,
            protected_ids=(vocabulary.bos_id,),
        )
        return DiffusionObjective(
            process=process,
            weighting=self.weighting,
            pairing=self.pairing,
            fixed_ratio=self.fixed_ratio,
            time_sampling=time_sampling_by_name(self.time_sampling),
            label_smoothing=self.label_smoothing,
        )


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModel:
    """Plain masked language modelling, to pretrain a model or to warm an imported one up.

    Attributes:
        mask_rate: fraction of the maskable tokens that are predicted.
        replacement: '80/10/10' (BERT: mask, random token, unchanged) or 'mask'.
    """

    mask_rate: float = 0.15
    replacement: Literal["80/10/10", "mask"] = "80/10/10"

    def build(self, vocabulary: Vocabulary) -> MaskedLanguageModelObjective:
        """Returns the objective; special tokens are never chosen and never written."""
        return MaskedLanguageModelObjective(
            mask_id=vocabulary.mask_id,
            vocab_size=vocabulary.size,
            mask_rate=self.mask_rate,
            replacement=self.replacement,
            special_ids=tuple(vocabulary.special_ids),
        )


@dataclasses.dataclass(frozen=True)
class Autoregressive:
    """Next-token prediction, for models with `train.attention_pattern='causal'`.

    Attributes:
        average: 'sequences' (each counts alike, as in `Diffusion`) or 'tokens'.
        label_smoothing: of the cross-entropy.
    """

    average: Literal["sequences", "tokens"] = "sequences"
    label_smoothing: float = 0.0

    def build(self, vocabulary: Vocabulary) -> AutoregressiveObjective:
        """Returns the objective; it reads nothing of the vocabulary."""
        del vocabulary
        return AutoregressiveObjective(self.average, self.label_smoothing)
