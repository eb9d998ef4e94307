"""Parameter counts, cost formulas and validation of encoder shapes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from dlm_jax.errors import UserError
from dlm_jax.models.config import SIZES, EncoderConfig
from dlm_jax.models.encoder import abstract_parameters, from_parameters

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens/parameter_counts.json").read_text())


def counted(vocab: int, d: int, layers: int, mlp: int, rows: int, types: int) -> int:
    """Parameters of a tied encoder, weight by weight."""
    embeddings = vocab * d + rows * d + types * d
    layer = 4 * (d * d + d) + (d * mlp + mlp) + (mlp * d + d) + 2 * (2 * d)
    head = (d * d + d) + 2 * d + vocab
    one_more_norm = 2 * d
    return embeddings + one_more_norm + layers * layer + head


INDEPENDENT = {
    "test": counted(96, 32, 2, 64, 66, 1),
    "tiny": counted(30522, 128, 2, 512, 512, 2),
    "base": counted(250002, 768, 12, 3072, 514, 1),
    "large": counted(250002, 1024, 24, 4096, 514, 1),
    "xl": counted(250880, 2560, 36, 10240, 514, 1),
    "xxl": counted(250880, 4096, 48, 16384, 514, 1),
}


@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_size_has_the_golden_parameter_count(size: str) -> None:
    config = SIZES[size]
    leaves = jax.tree.leaves(abstract_parameters(config))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    in_the_tree = sum(math.prod(leaf.shape) for leaf in leaves)
    assert in_the_tree == config.num_parameters() == INDEPENDENT[size] == GOLDENS[size]


@pytest.mark.parametrize(
    ("size", "unit", "digits", "published"),
    [("base", 1e6, 0, 278), ("large", 1e6, 0, 560), ("xl", 1e9, 2, 3.48), ("xxl", 1e9, 2, 10.71)],
)
def test_counts_round_to_the_published_ones(
    size: str, unit: float, digits: int, published: float
) -> None:
    assert round(SIZES[size].num_parameters() / unit, digits) == published


def test_untied_tables_count_twice_and_absent_types_not_at_all() -> None:
    config = SIZES["test"]
    untied = dataclasses.replace(config, tie_embeddings=False)
    assert untied.num_parameters() == config.num_parameters() + 96 * 32
    typeless = dataclasses.replace(config, type_vocab_size=0, tie_embeddings=False)
    assert typeless.num_parameters() == untied.num_parameters() - 32
    for variant in (untied, typeless):
        leaves = jax.tree.leaves(abstract_parameters(variant))
        assert sum(math.prod(leaf.shape) for leaf in leaves) == variant.num_parameters()


def product_flops(jaxpr: Jaxpr) -> int:
    """Operations of every matrix product that a traced program executes."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            shared = math.prod(left[axis] for axis in contracted)
            total += 2 * shared * math.prod(equation.outvars[0].aval.shape)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            if isinstance(inner, Jaxpr):
                total += times * product_flops(inner)
    return total


def test_flops_per_token_equal_those_of_the_traced_program() -> None:
    config = dataclasses.replace(SIZES["test"], num_layers=3)
    batch, length = 2, 24
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)

    def forward(tree: dict, tokens: jax.Array) -> jax.Array:
        encoder = from_parameters(config, tree)
        segments = jnp.ones_like(tokens)
        return encoder.logits(encoder.features(tokens, tokens, segments))

    traced = jax.make_jaxpr(forward)(abstract_parameters(config), ids)
    assert product_flops(traced.jaxpr) == batch * length * config.flops_per_token(length)


def test_max_length_leaves_out_the_rows_before_the_offset() -> None:
    assert SIZES["base"].max_length == 512
    assert SIZES["tiny"].max_length == 512


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embed_dim": 33}, ("embed_dim=33", "num_heads=2")),
        ({"num_layers": 0}, ("num_layers=0",)),
        ({"num_layers": 2.0}, ("num_layers=2.0",)),
        ({"scan_unroll": 0}, ("scan_unroll=0",)),
        ({"vocab_size": True}, ("vocab_size=True",)),
        ({"max_positions": 2}, ("max_positions=2", "3")),
        ({"dropout_rate": 1.0}, ("dropout_rate=1.0",)),
        ({"attention_dropout_rate": "0.1"}, ("attention_dropout_rate='0.1'",)),
        ({"layer_norm_epsilon": 0}, ("layer_norm_epsilon=0",)),
        ({"tie_embeddings": 1}, ("tie_embeddings=1",)),
        ({"norm_placement": "pree"}, ("norm_placement='pree'", "did you mean pre?")),
        ({"activation": "gelo"}, ("activation='gelo'", "did you mean gelu?")),
        ({"dtype": "bfloat"}, ("dtype='bfloat'", "did you mean bfloat16?")),
        ({"remat_policy": "mininal"}, ("remat_policy='mininal'", "did you mean minimal?")),
        ({"family": "xlmr"}, ("family='xlmr'", "xlm-roberta")),
    ],
)
def test_a_wrong_value_is_a_sentence_with_key_and_value(change: dict, words: tuple) -> None:
    with pytest.raises(UserError) as raised:
        dataclasses.replace(SIZES["test"], **change)
    message = str(raised.value)
    assert all(word in message for word in words)
    assert message.endswith(".") and "\n" not in message


def test_a_config_rebuilds_from_its_own_fields() -> None:
    for config in SIZES.values():
        assert EncoderConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
