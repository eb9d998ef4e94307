"""Evaluators between two steps of training, on one host or on many."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.models import encoder as encoders
from dlm_jax.parallel import multihost
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.evaluators import Evaluator, recorded
from dlm_jax.training.sharding import parameter_shardings
from dlm_jax.training.state import TrainState

Evaluate = Callable[[TrainState, int], dict[str, dict[str, float]]]


def evaluation(
    evaluators: Sequence[Evaluator],
    description: ModelDescription,
    vocabulary: Vocabulary,
    folder: RunFolder,
) -> Evaluate | None:
    """Returns a function of a state and its step that gives {split: metrics}; None without
    evaluators.

    Evaluators know one host. So in a run of several, each host gathers the parameters onto its own
    devices, evaluates its share of the examples and gets the others' results; process 0 alone
    leaves files.
    """
    if not evaluators:
        return None

    def evaluate(state: TrainState, step: int) -> dict[str, dict[str, float]]:
        results: dict[str, dict[str, float]] = {}
        with _own_parameters(description, state.parameters) as parameters, _own(folder) as place:
            denoiser = encoders.from_parameters(description.config, parameters)
            for evaluator in evaluators:
                found = evaluator(denoiser, vocabulary, description, place, step)
                for split, values in recorded(evaluator, found).items():
                    results.setdefault(split, {}).update(values)
        return results

    return evaluate


@contextlib.contextmanager
def _own_parameters(description: ModelDescription, parameters: Any) -> Iterator[Any]:
    """Parameters on the devices of this host, in a mesh of its own where there are other hosts."""
    if jax.process_count() == 1:
        # A copy: the next step gives the state's own buffers away.
        yield jax.tree.map(jnp.copy, parameters)
        return
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1), jax.local_devices())

    def gather(leaf: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.Array:
        # One leaf at a time: no device holds more than the largest one besides its own part.
        whole = np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    shardings = parameter_shardings(description.config, mesh)
    gathered = jax.tree.map(gather, parameters, shardings)
    with jax.set_mesh(mesh):
        yield gathered


@contextlib.contextmanager
def _own(folder: RunFolder) -> Iterator[RunFolder]:
    """The run's folder for process 0, one that is thrown away for the others."""
    if multihost.is_main():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dlm-evaluation-") as scratch:
        yield RunFolder(scratch, folder.path)
