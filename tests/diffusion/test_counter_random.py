from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import stats

from dlm_jax.diffusion import counter_random


def test_words_are_threefry_of_the_counters(key):
    high = np.array([[1, 2, 2**32 - 1], [4, 5, 6]], np.uint32)
    low = np.array([[9], [2**31]], np.uint32)
    first, second = counter_random.random_words(key, 4, 17, high, low)
    data = jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, 4), 17))
    counters = np.concatenate([high.ravel(), np.broadcast_to(low, (2, 3)).ravel()])
    expected = np.asarray(threefry_2x32((data[0], data[1]), jnp.asarray(counters)))
    np.testing.assert_array_equal(np.asarray(first).ravel(), expected[:6])
    np.testing.assert_array_equal(np.asarray(second).ravel(), expected[6:])


def test_ids_above_2_31_are_one_id_as_int32_and_uint32(key):
    ids = np.array([0, 5, 2**31, 2**32 - 1], np.uint32)
    unsigned = counter_random.random_words(key, 1, 0, ids, 0)
    signed = counter_random.random_words(key, 1, 0, ids.astype(np.int32), 0)
    np.testing.assert_array_equal(unsigned, signed)
    assert len(np.unique(unsigned[0])) == 4


def test_purposes_draws_and_seeds_give_other_words(key):
    other_key = jax.random.key(1, impl="threefry2x32")
    ids = np.arange(64, dtype=np.uint32)
    streams = [
        counter_random.random_words(k, purpose, draw, ids, 0)
        for k, purpose, draw in [(key, 1, 0), (key, 1, 1), (key, 2, 0), (other_key, 1, 0)]
    ]
    words = np.concatenate([np.asarray(word) for stream in streams for word in stream])
    assert len(np.unique(words)) == words.size


def test_other_generators_are_refused():
    with pytest.raises(ValueError, match="threefry2x32"):
        counter_random.random_words(jax.random.key(0, impl="rbg"), 1, 0, 0, 0)


def test_uniform_at_the_edges():
    words = np.array([0, 1, 2**24 - 1, 2**24, 2**31, 2**32 - 1], np.uint32)
    expected = [0, 2**-32, (2**24 - 1) * 2**-32, 2**-8, 0.5, 1 - 2**-24]
    np.testing.assert_array_equal(counter_random.uniform(jnp.asarray(words)), expected)
    positive = np.asarray(counter_random.positive_uniform(jnp.asarray(words)))
    np.testing.assert_allclose(positive, (words.astype(float) + 1) * 2.0**-32, rtol=1e-7)
    assert positive[0] == 2.0**-32 and positive[-1] == 1.0


@pytest.mark.parametrize("probability", [2.0**-30, 1e-6, 1 / 300, 0.3, 1 - 2**-20, 1.0])
def test_uniform_falls_below_p_with_probability_p(probability):
    """By bisection over all 2**32 words: the number of words below p, exactly."""
    low, high = 0, 2**32
    while low < high:
        middle = (low + high) // 2
        below = counter_random.uniform(jnp.uint32(middle)) < np.float32(probability)
        low, high = (middle + 1, high) if below else (low, middle)
    assert low / 2**32 == pytest.approx(probability, rel=2e-7, abs=2**-32)


def test_uniform_is_uniform(key):
    words, others = counter_random.random_words(
        key, 3, 0, np.arange(200, dtype=np.uint32)[:, None], np.arange(500, dtype=np.uint32)
    )
    first, second = (np.asarray(counter_random.uniform(w)).ravel() for w in (words, others))
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    assert stats.kstest(second, "uniform").pvalue > 1e-3
    cells = np.histogram2d(first, second, bins=16)[0]
    assert stats.chisquare(cells.ravel()).pvalue > 1e-3


def test_multiply_high_is_the_upper_word_of_the_product():
    rng = np.random.default_rng(0)
    edges = np.array([0, 1, 2**16 - 1, 2**16, 2**32 - 1], np.uint64)
    a = np.concatenate([rng.integers(0, 2**32, 500, np.uint64), np.repeat(edges, 5)])
    b = np.concatenate([rng.integers(0, 2**32, 500, np.uint64), np.tile(edges, 5)])
    result = counter_random.multiply_high(
        jnp.asarray(a.astype(np.uint32)), jnp.asarray(b.astype(np.uint32))
    )
    np.testing.assert_array_equal(result, (a * b) >> np.uint64(32))
