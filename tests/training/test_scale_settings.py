"""Mesh, rules, kernels and optimizer state are bound in gin, and the record loads to the same."""

from __future__ import annotations

import pytest

from dlm_jax import config
from dlm_jax.cli.configurables import CONFIGURABLES, ENTRIES
from dlm_jax.errors import UserError
from dlm_jax.parallel.mesh import MeshConfig
from dlm_jax.parallel.rules import PARAMETER_RULES, ShardingRules
from dlm_jax.training.optimizers import AdamW

SETTINGS = """
train.task = 'some_v1.task'
train.mesh = @MeshConfig()
MeshConfig.fsdp = 16
MeshConfig.dcn_data = 2
train.sharding = @ShardingRules()
ShardingRules.parameters = {'mlp': ('tensor', 'fsdp'), 'heads': None}
ShardingRules.activations = {'length': 'tensor'}
train.remat_policy = ('qkv', 'attention_out')
train.attention = 'xla'
train.optimizer = @AdamW()
AdamW.first_moment = 'bfloat16'
AdamW.second_moment = 'factored'
"""
ARGUMENTS = {"other_entries": ENTRIES, "supplied": ["run_dir"], "importer": str}


def test_all_of_them_can_be_bound_and_recorded(tmp_path) -> None:
    file = tmp_path / "run.gin"
    file.write_text(SETTINGS)
    loaded = config.load([file], [], "train", CONFIGURABLES, **ARGUMENTS)
    assert loaded.value("train.mesh") == MeshConfig(fsdp=16, dcn_data=2)
    rules = loaded.value("train.sharding")
    assert isinstance(rules, ShardingRules)
    assert rules.parameters == {**PARAMETER_RULES, "mlp": ("tensor", "fsdp"), "heads": None}
    assert rules.activations["length"] == "tensor"
    assert loaded.value("train.remat_policy") == ("qkv", "attention_out")
    lean = AdamW(first_moment="bfloat16", second_moment="factored")
    assert loaded.value("train.optimizer") == lean
    folder = tmp_path / "record"
    folder.mkdir()
    record = config.record(loaded, folder)
    again = config.load([record], [], "train", CONFIGURABLES, **ARGUMENTS)
    assert again.values() == loaded.values()


def test_a_value_that_no_optimizer_state_has_is_a_sentence(tmp_path) -> None:
    file = tmp_path / "run.gin"
    file.write_text(SETTINGS.replace("'factored'", "'factord'"))
    with pytest.raises(UserError, match="factord.*did you mean factored"):
        config.load([file], [], "train", CONFIGURABLES, **ARGUMENTS)
