"""Training steps to plan for, as gin files would give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel.mesh import MeshConfig
from dlm_jax.parallel.rules import ShardingRules
from dlm_jax.planning.request import TrainingStep, training_step
from dlm_jax.training.objectives import Diffusion
from dlm_jax.training.optimizers import AdamW


@pytest.fixture(scope="session")
def request_for() -> Callable[..., TrainingStep]:
    return _request_for


def _request_for(
    config: EncoderConfig,
    objective: Any = None,
    *,
    pairing: str = "coupled",
    batch_size: int = 8,
    length: int = 64,
    **values: Any,
) -> TrainingStep:
    defaults: dict[str, Any] = {
        "model": config,
        "initial_checkpoint": None,
        "dtype": None,
        "dropout_rate": None,
        "remat_policy": None,
        "attention": None,
        "attention_pattern": None,
        "objective": objective or Diffusion(pairing=pairing),
        "optimizer": AdamW(),
        "total_steps": 100,
        "batch_size": batch_size,
        "length": length,
        "gradient_accumulation_steps": 1,
        "head_chunk": None,
        "skip_spikes": None,
        "mesh": MeshConfig(),
        "sharding": ShardingRules(),
    }
    return training_step(defaults | values)
