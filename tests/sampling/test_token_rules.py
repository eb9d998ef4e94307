from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.diffusion.counter_random import random_words
from dlm_jax.errors import UserError
from dlm_jax.sampling.token_rules import (
    Argmax,
    Categorical,
    Forbidden,
    Peak,
    merge,
    peak,
    token_rule,
)


def test_argmax_scores_are_the_float64_log_probabilities(reference):
    rng = np.random.default_rng(1)
    for size, scale in ((30, 2.0), (700, 6.0), (34483, 1e-3), (34483, 10.0)):
        logits = (rng.normal(size=(4, size)) * scale).astype(np.float32)
        tokens, log_probs = jax.jit(Argmax().choose)(jnp.asarray(logits), (None, None))
        expected = reference.log_softmax(logits)
        np.testing.assert_array_equal(tokens, expected.argmax(axis=-1))
        np.testing.assert_allclose(log_probs, expected.max(axis=-1), rtol=2e-6)


def test_peaks_of_parts_merge_into_the_peak_of_the_whole(reference):
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(6, 34483)) * 10).astype(np.float32)
    logits[1, 5:9] = logits[1, 20_000:20_004] = 60.0  # equal in two parts, and within one
    logits[2, :4096] = -np.inf
    logits[3, [9, 34_000]] = 55.0, 95.0  # all but sure

    @jax.jit
    def in_parts(logits):
        top = Peak.lowest(logits.shape[:1])
        for start in range(0, logits.shape[1], 2048):
            part = logits[:, start : start + 2048]
            top = merge(top, peak(part, start + jnp.arange(part.shape[1], dtype=jnp.int32)))
        return Argmax().of_peak(top)

    tokens, log_probs = in_parts(jnp.asarray(logits))
    expected = reference.log_softmax(logits)
    np.testing.assert_array_equal(tokens, expected.argmax(axis=-1))
    rest = np.exp(np.delete(logits[3], 34_000).astype(np.float64) - 95.0).sum()
    np.testing.assert_allclose(log_probs[3], -np.log1p(rest), rtol=1e-5)
    others = np.arange(6) != 3
    np.testing.assert_allclose(log_probs[others], expected.max(axis=-1)[others], rtol=2e-6)


def test_sure_predictions_are_still_told_apart():
    gaps = np.linspace(18, 60, 40, dtype=np.float32)
    logits = np.stack([gaps, np.zeros_like(gaps)], axis=-1)
    log_probs = np.asarray(Argmax().choose(jnp.asarray(logits), (None, None)).log_probs)
    np.testing.assert_allclose(log_probs, -np.log1p(np.exp(-gaps.astype(np.float64))), rtol=1e-5)
    assert (np.diff(log_probs) > 0).all()


def test_equal_logits_take_the_first_id():
    logits = jnp.zeros((3, 300)).at[1, 7].set(2.0).at[1, 299].set(2.0).at[2, 299].set(1.0)
    assert Argmax().choose(logits, (None, None)).tokens.tolist() == [0, 7, 299]


def test_forbidden_ids_have_no_probability():
    logits = jnp.zeros((2, 12)).at[:, 5].set(100.0).at[:, 11].set(50.0)
    banned = Forbidden(mask_id=5, vocab_size=10).ban(logits)
    assert np.flatnonzero(np.isneginf(banned[0])).tolist() == [5, 10, 11]
    tokens, log_probs = Argmax().choose(banned, (None, None))
    assert tokens.tolist() == [0, 0]
    np.testing.assert_allclose(log_probs, np.log(1 / 9), rtol=1e-6)
    banned = Forbidden(mask_id=5, vocab_size=None, others=(0, 3)).ban(logits)
    assert np.flatnonzero(np.isneginf(banned[0])).tolist() == [0, 3, 5]


def test_draws_follow_the_tempered_law_and_are_scored_untempered(reference, key):
    rng = np.random.default_rng(2)
    logits = (rng.normal(size=12) * 2).astype(np.float32)
    draws = 40_000
    words = random_words(key, 99, 0, np.arange(draws, dtype=np.uint32), np.uint32(0))
    batch = jnp.broadcast_to(jnp.asarray(logits), (draws, 12))
    for temperature in (0.5, 2.0):
        tokens, log_probs = jax.jit(Categorical(temperature).choose)(batch, words)
        expected = np.exp(reference.log_softmax(logits / temperature)) * draws
        seen = np.bincount(np.asarray(tokens), minlength=12)
        chi_square = ((seen - expected) ** 2 / expected).sum()
        assert chi_square < 31.3  # 0.1% point of 11 degrees of freedom
        np.testing.assert_allclose(
            log_probs, reference.log_softmax(logits)[np.asarray(tokens)], rtol=2e-6
        )


def test_temperature_chooses_the_rule():
    assert token_rule(0) == Argmax() and token_rule(0.7) == Categorical(0.7)
    with pytest.raises(UserError, match="must be above 0"):
        Categorical(0.0)


def test_the_coldest_draw_is_the_argmax_and_the_hottest_is_even(key):
    logits = jnp.asarray([3.0, -jnp.inf, 20.0, 19.9, -50.0], jnp.float32)
    draws = 400
    words = random_words(key, 99, 0, np.arange(draws, dtype=np.uint32), np.uint32(0))
    batch = jnp.broadcast_to(logits, (draws, 5))
    for temperature in (1e-6, 1e-38, 1e-300):
        tokens, log_probs = Categorical(temperature).choose(batch, words)
        assert set(np.asarray(tokens).tolist()) == {2} and np.isfinite(log_probs).all()
    for temperature in (1e9, 1e300):
        tokens, _ = Categorical(temperature).choose(batch, words)
        counts = np.bincount(np.asarray(tokens), minlength=5)
        assert counts[1] == 0 and counts[[0, 2, 3, 4]].min() > 60
