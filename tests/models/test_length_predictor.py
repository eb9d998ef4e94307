"""The length predictor: its published sizes, PyTorch's layer, and what must not change a score."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlm_jax.models import length_predictor as predictors
from dlm_jax.models.config import SIZES
from dlm_jax.models.length_predictor import LengthPredictor, length_classes

CONFIG = dataclasses.replace(SIZES["test"], norm_placement="pre", layer_norm_epsilon=1e-3)


@pytest.fixture(scope="module")
def weights():
    """Every array random, scales and biases included."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.3, jnp.float32),
        predictors.abstract_parameters(CONFIG),
    )


def prompts(lengths, width):
    random = np.random.default_rng(1)
    features = random.normal(size=(len(lengths), width, CONFIG.embed_dim)).astype(np.float32)
    segments = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
    return jnp.asarray(features), jnp.asarray(segments)


# Exact: attention 4d(d+1), feed-forward 2df+f+d, two norms 4d, then d·f+f and f·514+514.
@pytest.mark.parametrize(
    ("size", "millions", "exact"),
    [
        ("base", 11.0, 11_029_762),
        ("large", 18.9, 18_900_482),
        ("xl", 110, 110_164_994),
        ("xxl", 277, 276_926_978),
    ],
)
def test_sizes_are_the_papers(size, millions, exact) -> None:
    count = predictors.num_parameters(SIZES[size])
    assert count == exact
    assert count / 1e6 == pytest.approx(millions, rel=0.005)
    assert predictors.abstract_parameters(SIZES[size])["classes"]["bias"].shape == (514,)


def test_scores_are_those_of_pytorchs_layer_and_its_mean(weights) -> None:
    torch = pytest.importorskip("torch")
    lengths, width = [7, 1, 4], 9
    features, segments = prompts(lengths, width)
    ours = predictors.from_parameters(CONFIG, weights)(features, segments)

    embed, layer = CONFIG.embed_dim, weights["layer"]
    theirs = torch.nn.TransformerEncoderLayer(
        embed, CONFIG.num_heads, CONFIG.mlp_dim, batch_first=True
    )
    tensor = lambda x: torch.from_numpy(np.array(x, np.float32))  # noqa: E731
    qkv, out = layer["attention"]["qkv"], layer["attention"]["out"]
    state = {
        "self_attn.in_proj_weight": tensor(qkv["kernel"]).reshape(embed, 3 * embed).T,
        "self_attn.in_proj_bias": tensor(qkv["bias"]).reshape(3 * embed),
        "self_attn.out_proj.weight": tensor(out["kernel"]).reshape(embed, embed).T,
        "self_attn.out_proj.bias": tensor(out["bias"]),
        "linear1.weight": tensor(layer["mlp"]["up"]["kernel"]).T,
        "linear1.bias": tensor(layer["mlp"]["up"]["bias"]),
        "linear2.weight": tensor(layer["mlp"]["down"]["kernel"]).T,
        "linear2.bias": tensor(layer["mlp"]["down"]["bias"]),
        "norm1.weight": tensor(layer["attention_norm"]["scale"]),
        "norm1.bias": tensor(layer["attention_norm"]["bias"]),
        "norm2.weight": tensor(layer["mlp_norm"]["scale"]),
        "norm2.bias": tensor(layer["mlp_norm"]["bias"]),
    }
    theirs.load_state_dict(state)
    theirs.eval()
    with torch.no_grad():
        padding = tensor(segments) == 0
        x = theirs(tensor(features), src_key_padding_mask=padding)
        x = torch.stack([row[:n].mean(0) for row, n in zip(x, lengths)])
        for name, activation in (("hidden", torch.tanh), ("classes", lambda x: x)):
            x = activation(x @ tensor(weights[name]["kernel"]) + tensor(weights[name]["bias"]))
    assert ours.dtype == jnp.float32 and ours.shape == (3, CONFIG.max_positions)
    np.testing.assert_allclose(ours, x.numpy(), atol=2e-5)


def test_padding_and_neighbours_change_no_score_and_an_empty_row_is_finite(weights) -> None:
    predictor = predictors.from_parameters(CONFIG, weights)
    features, segments = prompts([5, 0], 8)
    both = predictor(features, segments)
    assert np.isfinite(both).all()
    alone = predictor(features[:1, :5], segments[:1, :5])
    np.testing.assert_allclose(both[0], alone[0], atol=1e-5)


def test_matrices_start_as_pytorchs_do_at_any_width() -> None:
    for size in ("test", "tiny"):
        config = SIZES[size]
        found = predictors.parameters(LengthPredictor(config, rngs=nnx.Rngs(0)))
        for matrix, inputs in (
            (found["hidden"]["kernel"], config.embed_dim),
            (found["classes"]["kernel"], config.mlp_dim),
            (found["layer"]["attention"]["qkv"]["kernel"], config.embed_dim),
            (found["layer"]["attention"]["out"]["kernel"], config.embed_dim),
        ):
            assert float(matrix.std()) == pytest.approx((3 * inputs) ** -0.5, rel=0.05)


def test_dropout_drops_only_with_a_key_and_a_rate(weights) -> None:
    features, segments = prompts([5, 3], 8)
    plain = predictors.from_parameters(CONFIG, weights)(features, segments)
    dropping = predictors.from_parameters(CONFIG, weights, dropout_rate=0.5)
    np.testing.assert_array_equal(dropping(features, segments), plain)
    key = jax.random.key(0, impl="threefry2x32")
    assert np.abs(dropping(features, segments, dropout_key=key) - plain).max() > 0.1


def test_classes_count_tokens_without_the_end_of_sequence() -> None:
    # Tokens with </s>: nothing, </s> alone, one token, …; and more than any class.
    tokens = jnp.array([0, 1, 2, 3, 66, 67, 68, 500])
    assert length_classes(tokens, 66).tolist() == [0, 0, 0, 1, 64, 65, 65, 65]


def test_a_bfloat16_model_gives_float32_scores() -> None:
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    predictor = LengthPredictor(config, rngs=nnx.Rngs(0))
    features, segments = prompts([5], 8)
    assert predictor(features.astype(jnp.bfloat16), segments).dtype == jnp.float32
