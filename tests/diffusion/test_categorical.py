from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlm_jax.diffusion.categorical import exponential, race, sample_categorical
from dlm_jax.diffusion.counter_random import Purpose, random_words

sample = jax.jit(sample_categorical)
first_arrival = jax.jit(race)


def split_words(values: list[int]) -> tuple[jax.Array, jax.Array]:
    """Python integers below 2**64 as (upper, lower) uint32 words."""
    array = np.array(values, np.uint64)
    high = (array >> np.uint64(32)).astype(np.uint32)
    return jnp.asarray(high), jnp.asarray(array.astype(np.uint32))


def words_for(key: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    ids = np.arange(number, dtype=np.uint32)
    return random_words(key, Purpose.TOKEN_SAMPLING, 0, ids, 0)


def test_exponential_is_the_inverse_cdf():
    values = [0, 1, 3 << 20, 1 << 32, 12345678901234567, 1 << 63, 2**64 - 1]
    result = np.asarray(exponential(*split_words(values)))
    expected = [-np.log1p(-((v + 0.5) / 2**64)) for v in values[:-1]]
    np.testing.assert_allclose(result[:-1], expected, rtol=3e-7)
    assert 16 < result[-1] < 17


@pytest.mark.parametrize("size", [1, 3, 50, 101])
def test_law(size, key):
    """Chi-square against the exact probabilities, for sizes that do and do not fill the blocks."""
    logits = np.random.default_rng(size).normal(size=size).astype(np.float32) * 1.5
    probabilities = np.exp(logits.astype(float))
    probabilities /= probabilities.sum()
    draws = np.asarray(sample(jnp.asarray(logits), words_for(key, 60_000)))
    counts = np.bincount(draws, minlength=size)
    assert counts.size == size
    if size > 1:
        assert stats.chisquare(counts, 60_000 * probabilities).pvalue > 1e-3


def test_law_of_a_batch_of_rows(key):
    """Rows with their own logits: the law of each row, and independence between rows."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7)), jnp.float32)
    words = tuple(word.reshape(20_000, 2) for word in words_for(key, 40_000))
    draws = np.asarray(sample(logits, words))
    assert draws.shape == (20_000, 2)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    joint = np.histogram2d(*draws.T, bins=[np.arange(8)] * 2)[0]
    expected = np.outer(p[0], p[1])
    assert stats.chisquare(joint.ravel(), 20_000 * expected.ravel() / expected.sum()).pvalue > 1e-3


def test_excluded_categories_are_never_drawn(key):
    logits = np.full(40, -np.inf, np.float32)
    logits[[3, 38]] = [0.0, -1.0]
    draws = np.asarray(sample(jnp.asarray(logits), words_for(key, 5_000)))
    assert set(np.unique(draws)) == {3, 38}


def winning_words(probability: float, favourite_arrival: float) -> float:
    """Fraction of the 2**64 words of an unlikely category that win against a fixed favourite."""
    favourite = int(-np.expm1(-favourite_arrival) * 2**64)
    logits = jnp.array([0.0, np.log(probability)], jnp.float32)
    low, high = 0, 2**64
    while low < high:
        middle = (low + high) // 2
        wins = first_arrival(logits, *split_words([favourite, middle])) == 1
        low, high = (middle + 1, high) if wins else (low, middle)
    return low / 2**64


@pytest.mark.parametrize("probability", [1e-3, 1e-6, 1e-9, 1e-12])
def test_tail_mass_is_exact(probability):
    """The unlikely category wins against an arrival at e when its own is below p·e, no sooner."""
    for arrival in (0.01, 0.5, 1.0, 5.0):
        expected = -np.expm1(-probability * arrival)
        assert winning_words(probability, arrival) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("odds", [1e-9, 0.3])
def test_tail_mass_over_all_favourites(odds):
    """Integrated over the favourite's arrivals (Gauss-Laguerre) the mass is odds/(1 + odds)."""
    arrivals, weights = np.polynomial.laguerre.laggauss(12)
    mass = sum(w * winning_words(odds, e) for e, w in zip(arrivals, weights))
    assert mass == pytest.approx(odds / (1 + odds), rel=2e-5)


def test_default_gumbel_noise_ends_where_ours_goes_on(key):
    """Against an average favourite, a token below e**-16.7 cannot win under JAX's default noise."""
    default = float(jax.random.gumbel(key, (4_000_000,), jnp.float32).max())
    ours = -float(jnp.log(exponential(*split_words([0])))[0])
    assert default < 16.7 < -np.log(1e-9) < 44 < ours


def test_million_unlikely_tokens_keep_their_mass(key):
    """250k tokens of probability 1e-8 each beside a favourite: together they are 0.25%."""
    size, draws = 250_000, 20_000
    logits = jnp.full(size, np.log(1e-8), jnp.float32).at[123].set(0.0)
    result = np.asarray(sample(logits, words_for(key, draws)))
    mass = (size - 1) * 1e-8
    hits = (result != 123).sum()
    assert stats.binomtest(int(hits), draws, mass / (1 + mass)).pvalue > 1e-3
    assert hits > 20
