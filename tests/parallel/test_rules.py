"""Logical names, the specs they become, and the errors of unknown ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from dlm_jax.errors import UserError
from dlm_jax.parallel.mesh import MESH_AXES, MeshConfig, make_mesh
from dlm_jax.parallel.rules import (
    ACTIVATION_RULES,
    PARAMETER_RULES,
    ShardingRules,
    active_rules,
    constrain,
    parameter_shardings,
    partition_spec,
    use_rules,
)

SHAPE = {"data": 2, "fsdp": 2, "tensor": 2}


def test_rules_name_the_eight_logical_axes_and_only_mesh_axes() -> None:
    names = ["batch", "embed", "heads", "kv", "layers", "length", "mlp", "vocab"]
    for rules in (PARAMETER_RULES, ACTIVATION_RULES):
        assert sorted(rules) == names
        for target in rules.values():
            assert set([target] if isinstance(target, str) else target or ()) <= set(MESH_AXES)


@pytest.mark.parametrize(
    ("axes", "rules", "spec"),
    [
        (("vocab", "embed"), PARAMETER_RULES, P(("tensor", "fsdp"), None)),
        (("layers", "embed", None, "heads", "kv"), PARAMETER_RULES,
         P(None, "fsdp", None, "tensor", None)),
        (("batch", "length", "embed"), ACTIVATION_RULES, P(("data", "fsdp"), None, None)),
        (("batch", "length", "mlp"), ACTIVATION_RULES, P(("data", "fsdp"), None, "tensor")),
        ((), ACTIVATION_RULES, P()),
    ],
)  # fmt: skip
def test_specs_follow_the_rules(axes, rules, spec) -> None:
    assert partition_spec(axes, SHAPE, rules) == spec


def test_a_dimension_that_does_not_divide_stays_whole() -> None:
    four = {"data": 1, "fsdp": 1, "tensor": 4}
    axes = ("vocab", "embed")
    assert partition_spec(axes, four, PARAMETER_RULES, (250002, 768)) == P(None, "fsdp")
    split = P(("tensor", "fsdp"), None)
    assert partition_spec(axes, four, PARAMETER_RULES, (250880, 768)) == split


def test_a_mesh_axis_splits_one_dimension_of_an_array() -> None:
    rules = {"rows": ("data", "fsdp"), "columns": ("fsdp", "tensor")}
    assert partition_spec(("rows", "columns"), SHAPE, rules) == P(("data", "fsdp"), "tensor")
    # 6 rows are not divided by four devices, so all of the columns' axes are free.
    assert partition_spec(("rows", "columns"), SHAPE, rules, (6, 8)) == P(None, ("fsdp", "tensor"))


def test_rules_of_the_user_replace_entries_and_hold_inside_their_context() -> None:
    rules = ShardingRules(parameters={"mlp": ["fsdp", "tensor"]}, activations={"length": "tensor"})
    assert rules.parameters == {**PARAMETER_RULES, "mlp": ("fsdp", "tensor")}
    assert rules.activations == {**ACTIVATION_RULES, "length": "tensor"}
    assert active_rules().activations == ACTIVATION_RULES
    with use_rules(rules):
        assert active_rules() is rules
    assert active_rules() == ShardingRules()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parameters": {"emebd": None}}, r"parameters has a logical axis 'emebd'.*mean embed\?"),
        ({"activations": {"mlp": "tensr"}}, r"activations: .*'mlp' -> 'tensr'.*mean tensor\?"),
        ({"parameters": {"mlp": ["fsdp", "model"]}}, "'model' that is none of data, fsdp, tensor"),
    ],
)
def test_unknown_names_in_the_rules_of_the_user_are_a_sentence(values, message) -> None:
    with pytest.raises(UserError, match=message):
        ShardingRules(**values)


def test_names_must_be_as_many_as_dimensions() -> None:
    with pytest.raises(ValueError, match="embed"):
        partition_spec(("batch", "embed"), SHAPE, ACTIVATION_RULES, (4,))


@pytest.mark.parametrize("meshed", [False, True])
def test_an_unknown_logical_name_is_an_error_with_or_without_a_mesh(meshed) -> None:
    x = jnp.ones((2, 3))
    with pytest.raises(UserError, match=r"'bacth' .*did you mean batch\?"):
        if meshed:
            partition_spec(("bacth", None), SHAPE, ACTIVATION_RULES)
        else:
            constrain(x, ("bacth", "embed"))


def test_a_rule_to_an_unknown_mesh_axis_is_an_error() -> None:
    with pytest.raises(UserError, match=r"'batch' -> 'dta' .*did you mean data\?"):
        partition_spec(("batch",), SHAPE, {"batch": "dta"})


def test_on_one_device_constrain_is_the_identity() -> None:
    x = jnp.ones((2, 3))
    assert constrain(x, ("batch", "embed")) is x
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert constrain(x, ("batch", "embed")) is x


def test_parameter_shardings_keep_the_tree() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tree = {"a": {"kernel": ("embed", "mlp")}, "bias": ("vocab",)}
    shardings = parameter_shardings(tree, mesh)
    assert shardings["a"]["kernel"].spec == P("fsdp", "tensor")
    assert shardings["bias"].spec == P(("tensor", "fsdp"))
    with pytest.raises(UserError, match="'mpl'"):
        parameter_shardings({"kernel": ("embed", "mpl")}, mesh)
