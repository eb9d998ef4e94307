"""Left-to-right decoding of a causal model against a loop over prefixes written by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.errors import UserError
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import abstract_parameters, from_parameters
from dlm_jax.sampling import Policy, generate, infilling_canvas
from dlm_jax.sampling.autoregressive import NextToken, strategy_for
from dlm_jax.sampling.canvas import up_to_end
from dlm_jax.sampling.tiling import Tiling

PROMPTS = [[5, 9, 4], [11], [19, 8, 7, 6, 5, 20], [25, 4], [], [8, 4] * 35, [7] * 63]
ROOM = 9
# What ends a row: an id that the model writes here and there.
END = 25


@pytest.fixture(scope="module")
def model(vocabulary):
    config = EncoderConfig(
        vocab_size=vocabulary.size,
        embed_dim=16,
        num_layers=2,
        num_heads=2,
        mlp_dim=32,
        max_positions=132,
        attention_pattern="causal",
    )
    random = np.random.default_rng(4)

    def draw(path, leaf):
        # Initial weights of 0.02 would predict the same token everywhere.
        name = jax.tree_util.keystr(path[-1:])
        if "scale" in name or "bias" in name:
            return jnp.full(leaf.shape, float("scale" in name))
        return jnp.asarray(random.normal(size=leaf.shape) * 0.4, jnp.float32)

    tree = jax.tree_util.tree_map_with_path(draw, abstract_parameters(config))
    return from_parameters(config, tree)


@jax.jit
def all_logits(model, tokens):
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model.logits(model.features(tokens, places, jnp.ones_like(tokens)))


def by_hand(model, prompt, vocabulary, room):
    """Ids up to the end or the end of the room, and their log-probabilities: the whole prefix is
    encoded anew for every token."""
    row, scores = [vocabulary.bos_id, *prompt], []
    for _ in range(room):
        padded = np.full((1, 128), vocabulary.pad_id)
        padded[0, : len(row)] = row
        logits = np.array(all_logits(model, padded)[0, len(row) - 1], np.float64)
        logits[vocabulary.mask_id] = -np.inf
        row.append(int(logits.argmax()))
        scores.append(logits.max() - np.log(np.exp(logits).sum()))
        if row[-1] == END:
            break
    return row[1 + len(prompt) :], scores


def canvas_of(prompts, vocabulary, room=ROOM, **settings):
    parts = [[prompt, room] for prompt in prompts]
    return infilling_canvas(parts, vocabulary, ended=False, **settings)


@pytest.mark.usefixtures("quick_compilation")
def test_greedy_decoding_equals_a_loop_over_prefixes(model, vocabulary, key):
    canvas = canvas_of(PROMPTS, vocabulary)
    policy = Policy.parse("autoregressive", eos_id=END)
    result = generate(NextToken(model), canvas, policy, key, mask_id=vocabulary.mask_id)
    counted = up_to_end(result.tokens, canvas, END)
    lengths = []
    for row, prompt in enumerate(PROMPTS):
        ids, scores = by_hand(model, prompt, vocabulary, ROOM + 1)
        place = slice(1 + len(prompt), 1 + len(prompt) + len(ids))
        np.testing.assert_array_equal(result.tokens[row, place], ids)
        np.testing.assert_allclose(result.scores[row, place], scores, atol=2e-5)
        assert int(result.nfe[row]) == len(ids)
        # One more place than room is for </s>: what else stands there is no part of the answer.
        ended = ids[-1] == END
        counted_places = np.flatnonzero(counted[row])
        np.testing.assert_array_equal(
            counted_places, np.arange(place.start, place.stop - (not ended))
        )
        # What follows </s> was never written.
        rest = np.asarray(result.tokens[row])[np.asarray(canvas.editable[row])][len(ids) :]
        assert (rest == vocabulary.mask_id).all()
        lengths.append(len(ids))
    assert len(set(lengths)) > 3 and (min(lengths), max(lengths)) == (1, ROOM + 1)


def test_a_row_depends_on_no_neighbour_padding_or_room(model, vocabulary, key):
    policy = Policy.parse("autoregressive", eos_id=END, temperature=0.7)
    answers = []
    for prompts, settings in (
        (PROMPTS, {}),
        ([PROMPTS[2]], {"row_ids": [2]}),
        ([[4] * 20] * 17 + [PROMPTS[2]], {"row_ids": [*range(10, 27), 2], "room": 40}),
    ):
        canvas = canvas_of(prompts, vocabulary, **settings)
        result = generate(NextToken(model), canvas, policy, key, mask_id=vocabulary.mask_id)
        row = prompts.index(PROMPTS[2])
        written = np.asarray(canvas.editable[row])
        answers.append([np.asarray(x[row])[written][:ROOM] for x in (result.tokens, result.scores)])
    assert len(set(answers[0][0].tolist())) > 2
    for tokens, scores in answers[1:]:
        np.testing.assert_array_equal(tokens, answers[0][0])
        np.testing.assert_array_equal(scores, answers[0][1])


@pytest.mark.usefixtures("quick_compilation")
def test_the_whole_batch_at_once_writes_the_same(model, vocabulary, key):
    canvas = canvas_of(PROMPTS, vocabulary)
    policy = Policy.parse("autoregressive", eos_id=END)
    results = [
        generate(NextToken(model), canvas, policy, key, mask_id=vocabulary.mask_id, tiling=tiling)
        for tiling in (Tiling(block_tokens=None, head_pieces=(512,)), Tiling())
    ]
    np.testing.assert_array_equal(results[0].tokens, results[1].tokens)
    np.testing.assert_array_equal(results[0].nfe, results[1].nfe)
    np.testing.assert_allclose(results[0].scores, results[1].scores, atol=2e-5)


def test_each_kind_of_model_has_its_strategies():
    assert strategy_for(causal=True, asked="auto") == "autoregressive"
    assert strategy_for(causal=False, asked="left-to-right") == "left-to-right"
    with pytest.raises(UserError, match="'cmlm' needs a model that sees both sides"):
        strategy_for(causal=True, asked="cmlm")
    with pytest.raises(UserError, match="'autoregressive' needs a causal model"):
        strategy_for(causal=False, asked="autoregressive")
