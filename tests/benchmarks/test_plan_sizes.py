"""The steps that the page of sizes is made of are what `dlm plan` would read from gin files."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from dlm_jax.models.config import SIZES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plan_sizes(monkeypatch):
    """`benchmarks.plan_sizes`, which is no installed package."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("benchmarks.plan_sizes")


def test_a_step_is_that_of_train_with_its_defaults(plan_sizes):
    for size in plan_sizes.SIZES:
        step = plan_sizes.step(size, 8, micro_batches=2)
        assert step.config.num_parameters() == SIZES[size].num_parameters()
        assert (step.batch_size, step.length, step.accumulation) == (8, 512, 2)
        assert (step.config.dtype, step.config.remat_policy) == ("bfloat16", "full")
        assert step.config.dropout_rate == 0.0 and step.skip_spikes is None


def test_the_lean_optimizer_and_another_depth_are_taken(plan_sizes):
    from dlm_jax.planning.estimate import state_bytes

    lean = plan_sizes.step("base", 8, lean=True)
    assert state_bytes(lean) < 0.6 * state_bytes(plan_sizes.step("base", 8))
    assert plan_sizes.step("xxl", 8, layers=12).config.num_layers == 12
