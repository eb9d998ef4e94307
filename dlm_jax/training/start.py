"""What a run starts from: its own folder, a checkpoint, or random weights of a shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from dlm_jax.checkpoints.loading import find_model
from dlm_jax.checkpoints.run_folder import RunFolder
from dlm_jax.data.vocabularies import Vocabulary, load_vocabulary
from dlm_jax.errors import UserError
from dlm_jax.models.config import EncoderConfig


@dataclasses.dataclass(frozen=True)
class Start:
    """The model before the first step of a process.

    Attributes:
        config: its shape.
        vocabulary: its tokenizer.
        read: reads its weights onto abstract leaves with shardings (`FoundModel.read`); None where
            they are new or resumed.
        origin: where the first weights of the run came from.
        notes: sentences on what the import had to make up or leave out.
    """

    config: EncoderConfig
    vocabulary: Vocabulary
    read: Callable[[Any], Any] | None
    origin: str
    notes: tuple[str, ...] = ()

    @classmethod
    def find(
        cls,
        folder: RunFolder,
        initial_checkpoint: str | None,
        model: EncoderConfig | None,
        vocabulary: str | None,
        overrides: dict[str, Any],
        seed: int,
    ) -> Start:
        """Finds it in the run's folder, in a checkpoint, or in a shape and a vocabulary.

        Args:
            folder: of the run; with a checkpoint in it, that wins.
            initial_checkpoint: as in `train`.
            model: as in `train`.
            vocabulary: as in `train`.
            overrides: fields of the configuration that the run sets.
            seed: of weights that a checkpoint lacks.

        Raises:
            UserError: nothing, or too much, says what the model is.
        """
        if folder.is_run and any(folder.checkpoints.glob("[0-9]*")):
            # A resumed run does not need the weights it began with, which may be gone by now.
            known = folder.description()
            pattern = overrides.get("attention_pattern", known.config.attention_pattern)
            if pattern != known.config.attention_pattern:
                raise UserError(
                    f"train.attention_pattern is {pattern!r}, and the model of run {folder.path} "
                    f"is {known.config.attention_pattern!r}: name a new run_dir, and this run as "
                    "its initial_checkpoint"
                )
            config = dataclasses.replace(known.config, **overrides)
            return cls(config, load_vocabulary(folder.vocabulary), None, known.origin)
        if initial_checkpoint is not None:
            if model is not None:
                raise UserError(
                    "train.model and train.initial_checkpoint are both set: the checkpoint brings "
                    "its own shape"
                )
            found = find_model(initial_checkpoint, vocabulary=vocabulary, seed=seed)
            config = dataclasses.replace(found.description.config, **overrides)
            return cls(config, found.vocabulary, found.read, initial_checkpoint, found.notes)
        if model is None or vocabulary is None:
            raise UserError(
                "train needs initial_checkpoint (weights to start from), or model and vocabulary "
                "(random weights)"
            )
        tokenizer = load_vocabulary(vocabulary)
        if tokenizer.size > model.vocab_size:
            raise UserError(
                f"EncoderConfig.vocab_size is {model.vocab_size}, fewer than the "
                f"{tokenizer.size} pieces of {vocabulary}"
            )
        return cls(dataclasses.replace(model, **overrides), tokenizer, None, "random weights")
