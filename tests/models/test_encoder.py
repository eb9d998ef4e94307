"""The encoder against formulas written in numpy, and the laws that packing and padding obey."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlm_jax.models.config import SIZES, EncoderConfig
from dlm_jax.models.encoder import (
    Encoder,
    abstract_parameters,
    from_parameters,
    logical_axes,
    parameters,
)

TEST = SIZES["test"]
POST = dataclasses.replace(TEST, type_vocab_size=2)
PRE = dataclasses.replace(TEST, norm_placement="pre", family="xlm-roberta-xl")
UNTIED = dataclasses.replace(TEST, tie_embeddings=False, type_vocab_size=0, position_offset=0)
CAUSAL = dataclasses.replace(POST, attention_pattern="causal")
VARIANTS = {"post": POST, "pre": PRE, "untied": UNTIED, "causal": CAUSAL}


@functools.cache
def random_parameters(config: EncoderConfig) -> dict:
    """Every array random, scales and biases included, so that none can be left out unnoticed."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.2, jnp.float32),
        abstract_parameters(config),
    )


@functools.cache
def jitted(config: EncoderConfig):
    """Logits of (parameters, tokens, positions, segments), compiled once for each shape."""

    def forward(tree: dict, tokens, positions, segments, key=None):
        encoder = from_parameters(config, tree)
        return encoder.logits(encoder.features(tokens, positions, segments, dropout_key=key))

    return jax.jit(forward)


def logits(config: EncoderConfig, tokens, positions, segments, key=None) -> np.ndarray:
    arrays = [jnp.asarray(array, jnp.int32) for array in (tokens, positions, segments)]
    return np.asarray(jitted(config)(random_parameters(config), *arrays, key))


def normalised(x: np.ndarray, norm: dict, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred / deviation * norm["scale"] + norm["bias"]


def gaussian_unit(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attended(
    x: np.ndarray, weights: dict, segments: np.ndarray, heads: int, causal: bool
) -> np.ndarray:
    """Attention of one row x [length, embed], a head and a query at a time."""
    length, width = x.shape
    qkv = np.einsum("le,ethk->tlhk", x, weights["qkv"]["kernel"])
    query, key, value = qkv + weights["qkv"]["bias"][:, None]
    output = np.zeros((length, width)) + weights["out"]["bias"]
    for head in range(heads):
        for place in range(length):
            visible = segments == segments[place]
            if causal:
                visible = visible & (np.arange(length) <= place)
            scores = key[visible, head] @ query[place, head] / math.sqrt(width // heads)
            shares = np.exp(scores - scores.max())
            context = shares @ value[visible, head] / shares.sum()
            output[place] += context @ weights["out"]["kernel"][head]
    return output


def numpy_logits(config: EncoderConfig, tree: dict, tokens, positions, segments) -> np.ndarray:
    """Logits [length, vocab] of one row, straight from the formulas, in float64."""
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    norm = functools.partial(normalised, epsilon=config.layer_norm_epsilon)
    tables = tree["embeddings"]
    x = tables["token"]["embedding"][tokens]
    x = x + tables["position"]["embedding"][positions + config.position_offset]
    if config.type_vocab_size:
        x = x + tables["token_type"]["embedding"][0]
    if config.norm_placement == "post":
        x = norm(x, tables["norm"])
    for index in range(config.num_layers):
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], tree["layers"])

        def attention_block(x, layer=layer):
            return attended(x, layer["attention"], segments, config.num_heads, config.causal)

        def mlp_block(x, layer=layer):
            up, down = layer["mlp"]["up"], layer["mlp"]["down"]
            return gaussian_unit(x @ up["kernel"] + up["bias"]) @ down["kernel"] + down["bias"]

        if config.norm_placement == "post":
            x = norm(x + attention_block(x), layer["attention_norm"])
            x = norm(x + mlp_block(x), layer["mlp_norm"])
        else:
            x = x + attention_block(norm(x, layer["attention_norm"]))
            x = x + mlp_block(norm(x, layer["mlp_norm"]))
    if config.norm_placement == "pre":
        x = norm(x, tree["final_norm"])
    head = tree["head"]
    x = gaussian_unit(x @ head["transform"]["kernel"] + head["transform"]["bias"])
    x = norm(x, head["norm"])
    table = tables["token"]["embedding"] if config.tie_embeddings else head["decoder"]["kernel"]
    return x @ table.T + head["bias"]


def packed_row(random: np.random.Generator, lengths: tuple[int, ...], total: int):
    tokens = np.ones(total, np.int32)
    positions, segments = np.zeros(total, np.int32), np.zeros(total, np.int32)
    start = 0
    for number, length in enumerate(lengths, start=1):
        place = slice(start, start + length)
        tokens[place] = random.integers(3, TEST.vocab_size, length)
        positions[place] = np.arange(length)
        segments[place] = number
        start += length
    return tokens, positions, segments


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_the_formulas(name: str) -> None:
    config = VARIANTS[name]
    row = packed_row(np.random.default_rng(1), (5, 8), 16)
    ours = logits(config, *(array[None] for array in row))[0]
    assert ours.dtype == np.float32
    expected = numpy_logits(config, random_parameters(config), *row)
    real = row[2] > 0
    np.testing.assert_allclose(ours[real], expected[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["post", "pre", "causal"])
def test_packed_examples_equal_the_same_examples_alone(name: str) -> None:
    config = VARIANTS[name]
    random = np.random.default_rng(2)
    tokens, positions, segments = packed_row(random, (5, 8, 3), 16)
    together = logits(config, tokens[None], positions[None], segments[None])[0]
    start = 0
    for length in (5, 8, 3):
        place = slice(start, start + length)
        alone = [array[None, place] for array in (tokens, positions)]
        separate = logits(config, *alone, np.ones((1, length)))[0]
        np.testing.assert_allclose(together[place], separate, atol=3e-5, rtol=1e-5)
        start += length


def test_an_example_is_untouched_by_what_else_is_in_its_row() -> None:
    random = np.random.default_rng(3)
    tokens, positions, segments = packed_row(random, (6, 7), 16)
    other = np.where(segments == 1, tokens, random.integers(3, TEST.vocab_size, 16))
    first, second = (
        logits(POST, ids[None], positions[None], segments[None])[0] for ids in (tokens, other)
    )
    np.testing.assert_array_equal(first[:6], second[:6])
    assert np.abs(first[6:13] - second[6:13]).max() > 1e-2


def test_in_a_causal_encoder_no_logit_depends_on_a_later_token() -> None:
    tokens, positions, segments = packed_row(np.random.default_rng(10), (9, 7), 16)
    before = logits(CAUSAL, tokens[None], positions[None], segments[None])[0]
    for place in range(16):
        changed = tokens.copy()
        changed[place] = (changed[place] - 2) % (TEST.vocab_size - 3) + 3
        after = logits(CAUSAL, changed[None], positions[None], segments[None])[0]
        np.testing.assert_array_equal(after[:place], before[:place])
        end = 9 if place < 9 else 16
        assert (np.abs(after[place:end] - before[place:end]).max(axis=-1) > 1e-4).all()
        np.testing.assert_array_equal(after[end:], before[end:])


def test_padding_changes_nothing_and_stays_finite() -> None:
    random = np.random.default_rng(4)
    tokens, positions, segments = packed_row(random, (9,), 9)
    short = logits(POST, tokens[None], positions[None], segments[None])[0]
    padded = [np.pad(array, (0, 7), constant_values=0)[None] for array in (tokens, positions)]
    long = logits(POST, *padded, np.pad(segments, (0, 7))[None])[0]
    np.testing.assert_allclose(long[:9], short, atol=3e-5, rtol=1e-5)
    assert np.isfinite(long).all()


def test_a_row_does_not_depend_on_the_other_rows() -> None:
    rows = [packed_row(np.random.default_rng(seed), (4, 9), 16) for seed in range(3)]
    batch = [np.stack(arrays) for arrays in zip(*rows)]
    together = logits(PRE, *batch)
    for index, row in enumerate(rows):
        alone = logits(PRE, *(array[None] for array in row))[0]
        np.testing.assert_allclose(together[index], alone, atol=3e-5, rtol=1e-5)


@functools.cache
def gradient(policy: str | tuple[str, ...]) -> tuple[dict, int]:
    """Gradients under dropout, and the bytes that the program needs beside them."""
    # Many layers, so that their residuals make up the memory. The policy is no part of the tree.
    config = dataclasses.replace(POST, num_layers=8, remat_policy=policy)
    row = [jnp.asarray(x)[None] for x in packed_row(np.random.default_rng(5), (60, 40), 128)]
    batch = [jnp.tile(array % 64, (4, 1)) for array in row]

    def loss(tree: dict) -> jax.Array:
        encoder = from_parameters(config, tree)
        features = encoder.features(*batch, dropout_key=jax.random.key(7))
        return (features * jnp.arange(config.embed_dim)).mean()

    tree = random_parameters(dataclasses.replace(config, remat_policy="none"))
    step = jax.jit(jax.grad(loss)).lower(tree).compile()
    return step(tree), step.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("policy", ["minimal", "dots", ("qkv", "attention_out"), "full"])
def test_rematerialisation_changes_no_gradient(policy: str | tuple[str, ...]) -> None:
    kept, again = gradient("none")[0], gradient(policy)[0]
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(again)):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_less_memory_is_needed_the_stricter_the_policy() -> None:
    policies = ("none", "minimal", "dots", ("qkv", "attention_out"), "full")
    none, minimal, dots, named, full = (gradient(policy)[1] for policy in policies)
    assert full < named < dots < minimal < none


@pytest.mark.parametrize("unroll", [2, 5])
def test_unrolling_the_layers_changes_no_logit(unroll: int) -> None:
    row = [array[None] for array in packed_row(np.random.default_rng(9), (7, 9), 16)]
    unrolled = dataclasses.replace(POST, scan_unroll=unroll)
    key = jax.random.key(4)
    np.testing.assert_allclose(
        logits(unrolled, *row, key), logits(POST, *row, key), atol=3e-5, rtol=1e-5
    )


def test_dropout_is_a_function_of_its_key() -> None:
    row = [array[None] for array in packed_row(np.random.default_rng(6), (16,), 16)]
    first, again, other = (logits(POST, *row, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    assert np.abs(first - logits(POST, *row)).max() > 1e-2


def test_without_rates_a_key_drops_nothing() -> None:
    still = dataclasses.replace(POST, dropout_rate=0.0, attention_dropout_rate=0.0)
    row = [array[None] for array in packed_row(np.random.default_rng(6), (16,), 16)]
    np.testing.assert_array_equal(logits(still, *row, jax.random.key(1)), logits(still, *row))


def test_bfloat16_computes_the_same_within_its_precision() -> None:
    narrow = dataclasses.replace(POST, dtype="bfloat16")
    row = [array[None] for array in packed_row(np.random.default_rng(8), (16,), 16)]
    wide_logits, narrow_logits = logits(POST, *row), logits(narrow, *row)
    assert narrow_logits.dtype == np.float32
    assert np.corrcoef(wide_logits.ravel(), narrow_logits.ravel())[0, 1] > 0.999
    encoder = from_parameters(narrow, random_parameters(narrow))
    assert encoder.features(*map(jnp.asarray, row)).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_round_trip_and_match_the_abstract_tree(name: str) -> None:
    config = VARIANTS[name]
    tree = parameters(Encoder(config, rngs=nnx.Rngs(0)))
    abstract = abstract_parameters(config)
    assert jax.tree.structure(tree) == jax.tree.structure(abstract)
    for leaf, shape in zip(jax.tree.leaves(tree), jax.tree.leaves(abstract)):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    back = parameters(from_parameters(config, tree))
    for leaf, same in zip(jax.tree.leaves(tree), jax.tree.leaves(back)):
        assert leaf is same


def test_initial_values_are_small_matrices_unit_scales_and_zero_biases() -> None:
    tree = parameters(Encoder(TEST, rngs=nnx.Rngs(0)))
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    for path, leaf in flat.items():
        if path.endswith("scale"):
            assert (leaf == 1).all(), path
        elif path.endswith("bias"):
            assert (leaf == 0).all(), path
        elif leaf.size > 1000:
            assert 0.018 < leaf.std() < 0.022, path
    kernel = flat["layers/mlp/up/kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_every_dimension_has_a_logical_name() -> None:
    for config in VARIANTS.values():
        axes = logical_axes(config)
        shapes = abstract_parameters(config)
        pairs = jax.tree.map(
            lambda names, leaf: (len(names), leaf.ndim),
            axes,
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        for names, dimensions in zip(*[iter(jax.tree.leaves(pairs))] * 2):
            assert names == dimensions
    qkv = logical_axes(TEST)["layers"]["attention"]["qkv"]["kernel"]
    assert qkv == ("layers", "embed", None, "heads", "kv")


def test_a_tree_of_another_shape_is_refused_by_name() -> None:
    tree = dict(random_parameters(TEST))
    tree["head"] = {**tree["head"], "bias": jnp.zeros(TEST.vocab_size + 1)}
    with pytest.raises(ValueError, match=r"head/bias has shape \(97,\), expected \(96,\)"):
        from_parameters(TEST, tree)
    del tree["head"]
    with pytest.raises(ValueError, match=r"head/\w+.* has shape None"):
        from_parameters(TEST, tree)
