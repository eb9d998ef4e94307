from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.sampling import Policy, generate, make_canvas, remask_counts
from dlm_jax.sampling.position_rules import Reparameterized, StepView, lowest
from dlm_jax.sampling.token_rules import Prediction

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = [(20, 9), (33, 7), (64, 40), (12, 12), (5, 1)]  # tokens, of which editable


def random_rows(seed):
    rng = np.random.default_rng(seed)
    tokens, editable = [], []
    for length, count in ROWS:
        tokens.append(rng.integers(4, 29, length).tolist())
        marks = np.zeros(length, bool)
        marks[rng.choice(length, count, replace=False)] = True
        editable.append(marks.tolist())
    return tokens, editable


@pytest.mark.parametrize(
    ("routing", "shape", "reading", "steps"),
    [
        ("uncond", "cosine", "masked", 10),
        ("uncond", "linear", "masked", 7),
        ("cond", "cosine", "masked", 7),
        ("cond", "linear", "masked", 10),
        ("uncond", "cosine", "denoised", 10),
        ("uncond", "cosine", "masked", 1),
    ],
)
def test_every_step_equals_the_simulation(
    toy, key, reference, vocabulary, routing, shape, reading, steps
):
    tokens, editable = random_rows(steps)
    canvas = make_canvas(tokens, editable, pad_id=vocabulary.pad_id)
    policy = Policy.parse(
        f"reparam-{routing}-deterministic-{shape}", steps=steps, schedule_reading=reading
    )
    result = generate(toy, canvas, policy, key, mask_id=vocabulary.mask_id, trace=True)
    for row, (ids, marks) in enumerate(zip(tokens, editable, strict=True)):
        expected = reference.simulate(
            toy,
            ids,
            marks,
            steps=steps,
            conditional=routing == "cond",
            cosine=shape == "cosine",
            denoised=reading == "denoised",
        )
        size = len(ids)
        np.testing.assert_array_equal(result.trace.tokens[:, row, :size], expected.tokens)
        scores = np.where(marks, np.asarray(result.trace.scores[:, row, :size]), 0.0)
        np.testing.assert_array_equal(scores, expected.scores)
        left = (np.asarray(result.trace.tokens[:, row]) == vocabulary.mask_id).sum(axis=-1)
        assert left.tolist() == expected.masked
        counts = policy.schedule.masked_counts(steps, sum(marks))[1:, -1]
        assert (left == counts).all() if routing == "uncond" else (left <= counts).all()
    np.testing.assert_array_equal(result.tokens, result.trace.tokens[-1])
    np.testing.assert_array_equal(result.scores, result.trace.scores[-1])
    assert result.nfe.tolist() == [steps] * len(ROWS)


def test_the_ids_at_editable_positions_are_not_read(toy, key, vocabulary):
    tokens, editable = random_rows(6)
    other = [
        [ids[0] if mark else token for token, mark in zip(ids, marks, strict=True)]
        for ids, marks in zip(tokens, editable, strict=True)
    ]
    assert other != tokens
    policy = Policy.parse("reparam-uncond-deterministic-cosine", steps=10)
    first, second = (
        generate(
            toy,
            make_canvas(rows, editable, pad_id=vocabulary.pad_id),
            policy,
            key,
            mask_id=vocabulary.mask_id,
            trace=True,
        )
        for rows in (tokens, other)
    )
    np.testing.assert_array_equal(first.tokens, second.tokens)


def test_remasking_happens_and_kept_tokens_stay(toy, key, vocabulary):
    tokens, editable = random_rows(3)
    canvas = make_canvas(tokens, editable, pad_id=vocabulary.pad_id)
    policy = Policy.parse("reparam-uncond-deterministic-cosine", steps=10)
    trace = generate(toy, canvas, policy, key, mask_id=vocabulary.mask_id, trace=True).trace
    assert remask_counts(trace).sum() > 20
    before = np.concatenate([np.asarray(trace.start)[None], np.asarray(trace.tokens)[:-1]])
    after, committed = np.asarray(trace.tokens), np.asarray(trace.committed)
    remasked = np.asarray(trace.remasked)
    mask = vocabulary.mask_id
    assert (before[committed] == mask).all() and (after[committed] != mask).all()
    assert (before[remasked] != mask).all() and (after[remasked] == mask).all()
    still = ~committed & ~remasked
    np.testing.assert_array_equal(before[still], after[still])
    kept_scores = np.asarray(trace.scores)[1:][still[1:]]
    np.testing.assert_array_equal(kept_scores, np.asarray(trace.scores)[:-1][still[1:]])


def test_conditional_routing_masks_only_what_fell():
    """All eight cases of (low, repeated token, lower score) at written positions."""
    view = StepView(
        tokens=jnp.array([[4, 4, 4, 4, 4, 4, 4, 4]]),
        scores=jnp.array([[-1.0, -3.0, -1.0, -3.0, -0.5, -0.05, -0.5, -0.05]]),
        masked=jnp.zeros((1, 8), bool),
        editable=jnp.ones((1, 8), bool),
        predicted=Prediction(
            tokens=jnp.array([[4, 4, 5, 5, 4, 4, 5, 5]]),
            log_probs=jnp.array([[-2.0, -2.0, -2.0, -2.0, -0.1, -0.1, -0.1, -0.1]]),
        ),
        masked_after=jnp.array([4]),
        masked_fraction=jnp.float32(0.5),
        steps_left=jnp.array([3]),
        words=(jnp.zeros((1, 8), jnp.uint32),) * 2,
    )
    conditional = Reparameterized(conditional=True).decide(view)
    assert conditional.remask.tolist() == [[True] + [False] * 7]
    unconditional = Reparameterized(conditional=False).decide(view)
    assert unconditional.remask.tolist() == [[True] * 4 + [False] * 4]


def test_exactly_k_lowest_and_the_first_wins_a_tie():
    keys = jnp.array([[0.0, -1.0, -1.0, -1.0, -2.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    among = jnp.array([[True] * 5, [False, True, True, True, True]])
    assert lowest(keys, jnp.array([3, 2]), among).tolist() == [
        [False, True, True, False, True],
        [False, True, True, False, False],
    ]
    none = lowest(keys, jnp.array([0, 4]), among)
    assert none.sum(axis=-1).tolist() == [0, 4] and not none[1, 0]


def noisy_view(fraction, words, confidence):
    shape = confidence.shape
    return StepView(
        tokens=jnp.full(shape, 29),
        scores=jnp.full(shape, -jnp.inf),
        masked=jnp.ones(shape, bool),
        editable=jnp.ones(shape, bool),
        predicted=Prediction(jnp.full(shape, 4), confidence),
        masked_after=jnp.full(shape[0], shape[1] - 1),
        masked_fraction=jnp.float32(fraction),
        steps_left=jnp.full(shape[0], 3),
        words=words,
    )


def test_position_noise_has_the_gumbel_law_and_anneals():
    """With Gumbel noise of scale 1, the position written first is a draw from softmax(conf)."""
    draws, confidence = 20_000, np.log([0.5, 0.3, 0.15, 0.05]).astype(np.float32)
    rng = np.random.default_rng(4)
    words = tuple(
        jnp.asarray(rng.integers(0, 2**32, (draws, 4), dtype=np.uint32)) for _ in range(2)
    )
    batch = jnp.broadcast_to(jnp.asarray(confidence), (draws, 4))
    rule = Reparameterized(noise_scale=2.0)
    first = jax.jit(lambda fraction: rule.decide(noisy_view(fraction, words, batch)).write)
    counts = np.asarray(first(0.5)).sum(axis=0)
    assert counts.sum() == draws
    expected = np.exp(confidence.astype(np.float64)) * draws
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # 0.1% point, 3 degrees of freedom
    ordered = [np.asarray(first(fraction)).sum(axis=0)[0] for fraction in (0.5, 0.1, 0.02, 0.0)]
    assert ordered == sorted(ordered) and ordered[-1] == draws


def test_stochastic_decoding_fills_the_canvas_and_differs_by_key(toy, vocabulary):
    tokens, editable = random_rows(5)
    canvas = make_canvas(tokens, editable, pad_id=vocabulary.pad_id)
    policy = Policy.parse("reparam-uncond-stochastic2.0-cosine", steps=10)
    results = [
        np.asarray(
            generate(
                toy,
                canvas,
                policy,
                jax.random.key(seed, impl="threefry2x32"),
                mask_id=vocabulary.mask_id,
            ).tokens
        )
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()
    assert all((result != vocabulary.mask_id).all() for result in results)
