from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.errors import UserError
from dlm_jax.sampling import (
    Policy,
    generate,
    infilling_canvas,
    make_canvas,
    response_canvas,
    reveal_steps,
)
from dlm_jax.sampling.tiling import Tiling

pytestmark = pytest.mark.usefixtures("quick_compilation")

EVERY_STRATEGY = [
    ("reparam-uncond-deterministic-cosine", 0.0),
    ("reparam-cond-stochastic1.0-linear", 1.0),
    ("cmlm", 0.0),
    ("left-to-right", 1.0),
]


def test_unmasking_step_of_cmlm_is_uniform(toy, key, vocabulary):
    rows, width, steps = 64, 60, 5
    canvas = make_canvas([[5] * width] * rows, [[True] * width] * rows, pad_id=1)
    policy = Policy.parse("cmlm", steps=steps)
    trace = generate(toy, canvas, policy, key, mask_id=vocabulary.mask_id, trace=True).trace
    counts = np.bincount(reveal_steps(trace)[:, :width].ravel(), minlength=steps + 1)
    assert counts[0] == 0 and counts.sum() == rows * width
    expected = rows * width / steps
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 18.5  # 0.1% point, 4 degrees
    assert not trace.remasked.any()


def test_left_to_right_writes_in_order_and_stops_each_row(toy, key, vocabulary):
    canvas = infilling_canvas([[[5], 3, [6], 2], [[7], 1], [[8, 9]]], vocabulary)
    policy = Policy.parse("left-to-right", steps=None)
    result = generate(toy, canvas, policy, key, mask_id=vocabulary.mask_id, trace=True)
    assert reveal_steps(result.trace)[0, :9].tolist() == [0, 0, 1, 2, 3, 0, 4, 5, 0]
    assert result.nfe.tolist() == [5, 1, 0]
    assert int(result.trace.steps_taken) == 5
    fixed = Policy.parse("left-to-right", steps=8)
    again = generate(toy, canvas, fixed, key, mask_id=vocabulary.mask_id)
    np.testing.assert_array_equal(again.tokens, result.tokens)
    assert again.nfe.tolist() == [5, 1, 0]
    with pytest.raises(UserError, match="a row has 5 positions"):
        generate(
            toy, canvas, Policy.parse("left-to-right", steps=4), key, mask_id=vocabulary.mask_id
        )


@pytest.mark.parametrize(("strategy", "temperature"), EVERY_STRATEGY)
def test_what_may_not_be_written_is_not_and_what_is_given_stays(
    reference, key, vocabulary, strategy, temperature
):
    rng = np.random.default_rng(8)
    table = rng.normal(size=(509, vocabulary.size)).astype(np.float32)
    table[:, vocabulary.mask_id] += 50  # the model would always like a mask best
    table[:, 25:29] += 20  # and then rows of the table that are no tokens
    table[:, [0, 2]] += 10  # and then special tokens
    loud = reference.ToyDenoiser(jnp.asarray(table))
    canvas = infilling_canvas(
        [[4, [5, 6, 7], 6, [8], 1], [[9] * 20, 12], [[5, 4, 3]]], vocabulary, batch_size=4
    )
    policy = Policy.parse(strategy, steps=12, temperature=temperature)
    result = generate(
        loud,
        canvas,
        policy,
        key,
        mask_id=vocabulary.mask_id,
        vocab_size=25,
        banned_ids={2, 0},
        trace=True,
    )
    editable = np.asarray(canvas.editable)
    tokens = np.asarray(result.tokens)
    assert (tokens[editable] < 25).all() and not np.isin(tokens[editable], [0, 2]).any()
    np.testing.assert_array_equal(tokens[~editable], np.asarray(canvas.tokens)[~editable])
    assert (np.asarray(result.trace.tokens)[:, ~editable] == tokens[~editable]).all()
    scores = np.asarray(result.scores)
    assert np.isfinite(scores).all() and (scores[editable] < 0).all()
    assert (scores[~editable] == 0).all()
    writable = [11, 12, 0, 0]
    if strategy == "left-to-right":
        assert result.nfe.tolist() == writable
    elif strategy == "cmlm":
        assert (result.nfe[:2] <= 12).all() and (result.nfe[2:] == 0).all()
    else:
        assert result.nfe.tolist() == [12, 12, 0, 0]


class Counting:
    """Counts how often the denoiser really ran and how often it was traced."""

    def __init__(self):
        self.traced = self.evaluated = 0

    def denoiser(self, toy):
        counter = self

        @jax.tree_util.register_pytree_node_class
        class Counted:
            def __init__(self, inner):
                self.inner = inner

            def tree_flatten(self):
                return (self.inner,), None

            @classmethod
            def tree_unflatten(cls, _, children):
                return cls(*children)

            def features(self, tokens, positions, segment_ids):
                counter.traced += 1
                jax.debug.callback(counter.count)
                return self.inner.features(tokens, positions, segment_ids)

            def logits(self, features):
                return self.inner.logits(features)

        return Counted(toy)

    def count(self):
        self.evaluated += 1


def test_early_exit_evaluates_less_and_answers_the_same(toy, key, vocabulary):
    strategy = "reparam-uncond-deterministic-cosine"
    canvas = response_canvas([[5] * 4, [6] * 70, [7] * 3], [3, 12, 1], vocabulary)
    counting = Counting()
    denoiser = counting.denoiser(toy)
    tiling = Tiling(block_tokens=32)  # one row a block

    def run(early_exit):
        counting.evaluated = 0
        policy = Policy.parse(strategy, steps=30, early_exit=early_exit)
        result = generate(denoiser, canvas, policy, key, mask_id=29, tiling=tiling)
        jax.block_until_ready(result)
        jax.effects_barrier()
        return result, counting.evaluated

    full, full_evaluations = run(False)
    short, short_evaluations = run(True)
    np.testing.assert_array_equal(full.tokens, short.tokens)
    np.testing.assert_array_equal(full.scores, short.scores)
    assert full.nfe.tolist() == [30] * 3 and full_evaluations == 90
    assert short_evaluations == int(short.nfe.sum())
    assert (short.nfe <= full.nfe).all()
    counts = Policy.parse(strategy, steps=30).schedule.masked_counts(30, 12)
    expected = [int((counts[:, n] > 0).sum()) for n in (3, 12, 1)]
    assert short.nfe.tolist() == expected and min(expected) < 30


def test_one_compilation_serves_every_call_of_a_shape(toy, key, vocabulary):
    counting = Counting()
    denoiser = counting.denoiser(toy)
    traces = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        prompts = [rng.integers(4, 29, rng.integers(1, 20)).tolist() for _ in range(5)]
        lengths = rng.integers(0, 20, 5).tolist()
        canvas = response_canvas(prompts, lengths, vocabulary, row_ids=range(seed, seed + 5))
        policy = Policy.parse("reparam-uncond-deterministic-linear", steps=6)
        generate(denoiser, canvas, policy, jax.random.fold_in(key, seed), mask_id=29)
        traces.append(counting.traced)
    assert traces[0] > 0 and len(set(traces)) == 1
