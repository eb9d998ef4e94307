"""A row's answer, to the last bit, does not depend on its neighbours, its padding or its place."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import abstract_parameters, from_parameters
from dlm_jax.sampling import Policy, generate, response_canvas
from dlm_jax.sampling.prediction import predict, predict_lanes
from dlm_jax.sampling.tiling import Tiling
from dlm_jax.sampling.token_rules import Argmax, Forbidden
from dlm_jax.sampling.vocabulary_tiles import predict_by_tiles

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PROMPTS = [[5] * 9, [11, 7, 23] * 5, [4], [19] * 30, [6, 25] * 12]
LENGTHS = [12, 30, 7, 20, 25]
WATCHED = 1


@pytest.fixture(scope="module")
def encoder(vocabulary):
    config = EncoderConfig(
        vocab_size=vocabulary.size,
        embed_dim=32,
        num_layers=2,
        num_heads=2,
        mlp_dim=64,
        max_positions=130,
        position_offset=2,
        type_vocab_size=1,
        norm_placement="post",
        layer_norm_epsilon=1e-5,
        pad_id=1,
        family="xlm-roberta",
    )
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        # Initial weights of 0.02 would predict the same token everywhere.
        name = jax.tree_util.keystr(path[-1:])
        if "scale" in name or "bias" in name:
            return jnp.full(leaf.shape, float("scale" in name))
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32)

    tree = jax.tree_util.tree_map_with_path(draw, abstract_parameters(config))
    return from_parameters(config, tree)


def batches(vocabulary):
    """The watched row alone, in two batches, and beside a row that needs twice the width."""

    def canvas(rows, extra=0, **settings):
        prompts = [PROMPTS[row] for row in rows] + [[8] * 70] * extra
        lengths = [LENGTHS[row] for row in rows] + [15] * extra
        ids = [100 + row for row in rows] + [7] * extra
        return response_canvas(prompts, lengths, vocabulary, row_ids=ids, **settings)

    return {
        "alone": (canvas([1]), 0),
        "in a batch": (canvas([0, 1, 2, 3, 4]), 1),
        "at another place, with padding rows": (canvas([4, 2, 1], batch_size=5), 2),
        "beside longer rows": (canvas([3, 1], extra=1), 1),
    }


@pytest.mark.parametrize(
    ("strategy", "temperature"),
    [("reparam-uncond-deterministic-cosine", 0.0), ("reparam-cond-stochastic1.0-linear", 0.8)],
)
def test_a_row_is_the_same_in_every_company(encoder, key, vocabulary, strategy, temperature):
    policy = Policy.parse(strategy, steps=9, temperature=temperature)
    size = len(PROMPTS[WATCHED]) + LENGTHS[WATCHED] + 2
    seen = {}
    for name, (canvas, row) in batches(vocabulary).items():
        if temperature and canvas.shape[1] > 64:
            continue  # one more compilation would show nothing new
        result = generate(encoder, canvas, policy, key, mask_id=vocabulary.mask_id)
        tokens = np.asarray(result.tokens[row, :size])
        seen[name] = (tokens, np.asarray(result.scores[row, :size]), int(result.nfe[row]))
    tokens, scores, nfe = seen["alone"]
    assert len(set(tokens[-LENGTHS[WATCHED] - 1 : -1].tolist())) > 2 and nfe == 9
    for name, other in seen.items():
        np.testing.assert_array_equal(tokens, other[0], err_msg=name)
        np.testing.assert_array_equal(scores, other[1], err_msg=name)
        assert other[2] == nfe


def test_noise_belongs_to_the_row_id(encoder, key, vocabulary):
    policy = Policy.parse("reparam-cond-stochastic1.0-linear", steps=9, temperature=0.8)
    canvas = response_canvas([PROMPTS[1]] * 5, LENGTHS[1], vocabulary, row_ids=[3, 8, 3, 9, 8])
    tokens = np.asarray(generate(encoder, canvas, policy, key, mask_id=29).tokens)
    np.testing.assert_array_equal(tokens[0], tokens[2])
    np.testing.assert_array_equal(tokens[1], tokens[4])
    assert (tokens[0] != tokens[1]).any() and (tokens[0] != tokens[3]).any()


@pytest.mark.usefixtures("quick_compilation")
def test_pieces_of_any_size_predict_what_the_whole_canvas_does(encoder, reference, vocabulary):
    canvas, _ = batches(vocabulary)["beside longer rows"]
    tokens = jnp.where(canvas.editable, vocabulary.mask_id, canvas.tokens)
    inputs = (canvas.positions, canvas.segment_ids)
    rng = np.random.default_rng(0)
    wanted = jnp.asarray(rng.random(canvas.shape) < 0.3) & (canvas.segment_ids > 0)
    wanted = wanted.at[0].set(False)
    whole = jax.jit(lambda x: encoder.logits(encoder.features(x, *inputs)))
    logits = np.array(whole(tokens), np.float64)
    logits[..., vocabulary.mask_id] = -np.inf
    expected = reference.log_softmax(logits)
    words = (jnp.zeros(canvas.shape, jnp.uint32),) * 2
    tilings = (Tiling(128, (7,), None), Tiling(128, (20, 3), 16), Tiling(None, (40,)))
    for tiling in tilings:
        tokens_found, log_probs = jax.jit(predict, static_argnums=(4, 6, 7))(
            encoder, canvas, tokens, wanted, Argmax(), words, Forbidden(29, None), tiling
        )
        chosen = np.asarray(wanted)
        np.testing.assert_array_equal(tokens_found[chosen], expected.argmax(-1)[chosen])
        np.testing.assert_allclose(log_probs[chosen], expected.max(-1)[chosen], rtol=2e-5)
        assert (np.asarray(log_probs)[~chosen] == 0).all()


class Head(NamedTuple):
    table: jax.Array
    bias: jax.Array

    def logits(self, features: jax.Array) -> jax.Array:
        return jnp.einsum("...e,ve->...v", self.head_features(features), self.table) + self.bias

    def head_features(self, features: jax.Array) -> jax.Array:
        return jnp.square(features)

    def output_embedding(self) -> tuple[jax.Array, jax.Array]:
        return self.table, self.bias


@pytest.fixture(scope="module")
def head():
    table = jax.random.normal(jax.random.key(2), (3001, 96))
    return Head(table, jax.random.normal(jax.random.key(4), (3001,)))


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(1), (600, 96))


def test_the_head_gives_a_position_the_same_bits_in_pieces_of_any_size(head, features):
    # What lets a large batch use large pieces while a row alone uses small ones.
    words = (jnp.zeros((1, 600), jnp.uint32),) * 2
    lanes = jax.jit(predict_lanes, static_argnums=(3, 5, 6))
    tiles = jax.jit(predict_by_tiles, static_argnums=(3, 4, 5, 6))
    rule, forbidden = Argmax(), Forbidden(29, None)

    def predicted(count: int, pieces: tuple[int, ...], tile: int | None) -> list[np.ndarray]:
        wanted = jnp.arange(600) < count
        if tile:
            parts = tiles(head, features, wanted, rule, forbidden, pieces, tile)
        else:
            tiling = Tiling(None, pieces)
            parts = lanes(head, features[None], wanted[None], rule, words, forbidden, tiling)
        return [np.asarray(part).reshape(-1)[:count] for part in parts]

    for tile in (None, 512):
        tokens, log_probs = predicted(600, (512,), tile)
        for count, pieces in ((600, (256, 64)), (600, (64,)), (460, (256, 64)), (5, (256, 64))):
            fewer = predicted(count, pieces, tile)
            np.testing.assert_array_equal(fewer[0], tokens[:count])
            np.testing.assert_array_equal(fewer[1], log_probs[:count])


@pytest.mark.parametrize("tile", [256, 1000, 3000, 3001, 4096])
def test_tiles_of_the_vocabulary_predict_what_the_whole_does(head, features, reference, tile):
    wanted = jax.random.bernoulli(jax.random.key(5), 0.2, (600,))
    forbidden = Forbidden(mask_id=7, vocab_size=2040, others=(0, 2000))  # bans whole tiles of 256
    run = jax.jit(predict_by_tiles, static_argnums=(3, 4, 5, 6))
    found = run(head, features, wanted, Argmax(), forbidden, (128, 64), tile)
    inputs = np.asarray(features, np.float64) ** 2
    logits = inputs @ np.asarray(head.table, np.float64).T + np.asarray(head.bias)
    logits[:, [0, 7, 2000]] = logits[:, 2040:] = -np.inf
    expected, chosen = reference.log_softmax(logits), np.asarray(wanted)
    np.testing.assert_array_equal(np.asarray(found.tokens)[chosen], expected.argmax(-1)[chosen])
    np.testing.assert_allclose(
        np.asarray(found.log_probs)[chosen], expected.max(-1)[chosen], rtol=1e-4, atol=1e-6
    )
    assert not np.asarray(found.tokens)[~chosen].any()
    assert not np.asarray(found.log_probs)[~chosen].any()


def test_blocks_cover_the_canvas_and_stay_small():
    tiling = Tiling(block_tokens=128)
    assert tiling.widths(64) == (32, 48, 64) and tiling.widths(100) == (32, 48, 64, 80, 96, 100)
    assert tiling.widths(16) == (16,)
    assert set(range(64, 513, 64)) <= set(tiling.widths(512))
    assert [tiling.rows(width) for width in (16, 64, 128, 512)] == [8, 2, 1, 1]
    assert Tiling(block_tokens=None).widths(512) == (512,)
