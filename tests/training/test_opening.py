"""What a run says before its first step."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.loader import Loader
from dlm_jax.data.table import Truncation
from dlm_jax.data.tasks import TextTask
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.models.config import SIZES
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.opening import opening
from dlm_jax.training.state import TrainState

RECORDS = [{"inputs": "a question", "targets": "an answer"}, {"inputs": "b", "targets": "c"}]


def _said(length: int) -> list[str]:
    task = TextTask("a_v1.b", {"train": lambda: RECORDS}, inputs="{inputs}", targets="{targets}")
    loader = Loader(
        task, ByteVocabulary(), batch_size=2, length=length, truncation=Truncation(), prefetch=0
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    data = SimpleNamespace(
        loader=loader, batch_size=2, length=length, sharding=SimpleNamespace(mesh=mesh)
    )
    state = TrainState.create({"w": jnp.zeros(3, np.float32)}, optax.sgd(0.1))
    description = ModelDescription(config=SIZES["test"])
    lines = opening(RunFolder("run"), description, (), state, data, 0, 10).splitlines()
    loader.close()
    return [line.removeprefix("data").strip() for line in lines if line.startswith("data")]


def test_what_a_row_is_too_short_for_is_told():
    whole, cuts = _said(12)
    assert whole == "a_v1.b (2 examples), 24 token positions a step"
    assert cuts == (
        "a_v1.b, at 12 tokens a row: of 2 records 1 prompts and 0 responses cut (9 tokens), "
        "0 dropped, 0 split"
    )
    assert len(_said(32)) == 1
