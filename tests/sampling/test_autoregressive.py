"""Left-to-right decoding of a causal model against a loop over prefixes written by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.errors import UserError
from dlm_jax.sampling import Policy, generate, infilling_canvas
from dlm_jax.sampling.autoregressive import NextToken, strategy_for
from dlm_jax.sampling.canvas import up_to_end

PROMPTS = [[5, 9, 4], [11], [19, 8, 7, 6, 5, 20], [25, 4], []]
ROOM = 9


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyCausalModel:
    """Random logits, a different row of `table` [codes, vocab] for each prefix."""

    table: jax.Array

    def features(self, tokens, positions, segment_ids):
        weight = (positions * 7 + 3) % 11 + 1
        codes = jnp.cumsum(tokens * weight, axis=-1) * 13 + positions * 31
        return (codes % self.table.shape[0])[..., None].astype(jnp.float32)

    def logits(self, features):
        return self.table[features[..., 0].astype(jnp.int32)]


@pytest.fixture(scope="module")
def model(vocabulary):
    table = np.random.default_rng(0).normal(size=(509, vocabulary.size)) * 2
    table[:, vocabulary.eos_id] += 2.0  # rows should end here and there
    return ToyCausalModel(jnp.asarray(table, jnp.float32))


def by_hand(model, prompt, vocabulary, room):
    """Ids up to `</s>` or the end of the room, and their log-probabilities."""
    table = np.array(model.table, np.float64)
    table[:, vocabulary.mask_id] = -np.inf
    row, scores = [vocabulary.bos_id, *prompt], []
    for _ in range(room):
        places = np.arange(len(row))
        code = (np.cumsum(np.array(row) * ((places * 7 + 3) % 11 + 1)) * 13 + places * 31)[-1]
        logits = table[code % len(table)]
        row.append(int(logits.argmax()))
        scores.append(logits.max() - np.log(np.exp(logits).sum()))
        if row[-1] == vocabulary.eos_id:
            break
    return row[1 + len(prompt) :], scores


def canvas_of(prompts, vocabulary, room=ROOM, **settings):
    parts = [[prompt, room] for prompt in prompts]
    return infilling_canvas(parts, vocabulary, ended=False, **settings)


def test_greedy_decoding_equals_a_loop_over_prefixes(model, vocabulary, key):
    canvas = canvas_of(PROMPTS, vocabulary)
    policy = Policy.parse("autoregressive", eos_id=vocabulary.eos_id)
    result = generate(NextToken(model), canvas, policy, key, mask_id=vocabulary.mask_id)
    counted = up_to_end(result.tokens, canvas, vocabulary.eos_id)
    lengths = []
    for row, prompt in enumerate(PROMPTS):
        ids, scores = by_hand(model, prompt, vocabulary, ROOM + 1)
        place = slice(1 + len(prompt), 1 + len(prompt) + len(ids))
        np.testing.assert_array_equal(result.tokens[row, place], ids)
        np.testing.assert_allclose(result.scores[row, place], scores, rtol=1e-5)
        assert int(result.nfe[row]) == len(ids)
        # One more place than room is for </s>: what else stands there is no part of the answer.
        ended = ids[-1] == vocabulary.eos_id
        assert counted[row].sum() == len(ids) - (not ended)
        assert np.flatnonzero(counted[row])[0] == place.start if counted[row].any() else True
        # What follows </s> was never written.
        rest = np.asarray(result.tokens[row])[np.asarray(canvas.editable[row])][len(ids) :]
        assert (rest == vocabulary.mask_id).all()
        lengths.append(len(ids))
    assert min(lengths) < ROOM + 1 == max(lengths)


def test_a_row_depends_on_no_neighbour_padding_or_room(model, vocabulary, key):
    policy = Policy.parse("autoregressive", eos_id=vocabulary.eos_id, temperature=0.7)
    answers = []
    for prompts, settings in (
        (PROMPTS, {}),
        ([PROMPTS[2]], {"row_ids": [2]}),
        ([[4] * 80, PROMPTS[2]], {"row_ids": [9, 2], "batch_size": 3, "room": 40}),
    ):
        canvas = canvas_of(prompts, vocabulary, **settings)
        result = generate(NextToken(model), canvas, policy, key, mask_id=vocabulary.mask_id)
        row = prompts.index(PROMPTS[2])
        written = np.asarray(canvas.editable[row])
        answers.append([np.asarray(x[row])[written][:ROOM] for x in (result.tokens, result.scores)])
    for tokens, scores in answers[1:]:
        np.testing.assert_array_equal(tokens, answers[0][0])
        np.testing.assert_array_equal(scores, answers[0][1])


def test_each_kind_of_model_has_its_strategies():
    assert strategy_for(causal=True, asked="auto") == "autoregressive"
    assert strategy_for(causal=False, asked="left-to-right") == "left-to-right"
    with pytest.raises(UserError, match="'cmlm' needs a model that sees both sides"):
        strategy_for(causal=True, asked="cmlm")
    with pytest.raises(UserError, match="'autoregressive' needs a causal model"):
        strategy_for(causal=False, asked="autoregressive")
