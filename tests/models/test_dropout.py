"""Statistics and determinism of the hashed dropout masks, and the exact GELU."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.models.activations import gelu
from dlm_jax.models.dropout import dropout, keep_mask, seed_words

SHAPE = (8, 128, 512)
ELEMENTS = math.prod(SHAPE)


def mask(seed: int, rate: float, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.asarray(keep_mask(seed_words(jax.random.key(seed)), shape, rate))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_of_kept_elements_is_the_rate_everywhere(rate: float) -> None:
    kept = mask(0, rate)
    spread = math.sqrt(rate * (1 - rate))
    assert abs(kept.mean() - (1 - rate)) < 5 * spread / math.sqrt(ELEMENTS)
    for axes in ((0, 1), (1, 2), (0, 2)):
        # Binomial shares along each axis: their variance shows clustering that the mean hides.
        shares = kept.mean(axes)
        each = ELEMENTS // shares.size
        ratio = ((shares - (1 - rate)) ** 2).mean() / (spread**2 / each)
        assert abs(ratio - 1) < 6 * math.sqrt(2 / shares.size), axes


def test_neighbours_rows_and_keys_are_uncorrelated() -> None:
    kept = mask(1, 0.5).astype(np.float64) * 2 - 1
    bound = 5 / math.sqrt(ELEMENTS / 2)
    for offset in (1, 2, 3, 64, 256):
        assert abs((kept[..., offset:] * kept[..., :-offset]).mean()) < bound
    for offset in (1, 2, 64):
        assert abs((kept[:, offset:] * kept[:, :-offset]).mean()) < bound
    assert abs((kept[1:] * kept[:-1]).mean()) < bound
    for seed in (2, 3, 1001):
        assert abs((kept * (mask(seed, 0.5) * 2.0 - 1)).mean()) < bound


def test_masks_are_determined_by_key_and_rows_are_numbered_from_the_first() -> None:
    np.testing.assert_array_equal(mask(4, 0.1), mask(4, 0.1))
    assert (mask(4, 0.1) != mask(5, 0.1)).mean() > 0.1
    seed = seed_words(jax.random.key(4))
    rows_before = 3 * SHAPE[1]
    block = keep_mask(seed, SHAPE[1:], 0.1, first_row=rows_before)
    np.testing.assert_array_equal(block, mask(4, 0.1)[3])


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_kept_elements_are_rescaled_and_gradients_pass_where_values_do(implementation) -> None:
    seed = seed_words(jax.random.key(3, impl=implementation))
    x = jnp.ones((64, 64))
    value, pullback = jax.vjp(lambda x: dropout(x, seed, 0.25), x)
    kept = np.asarray(keep_mask(seed, x.shape, 0.25))
    np.testing.assert_allclose(value, np.where(kept, 1 / 0.75, 0), rtol=1e-6)
    np.testing.assert_array_equal(pullback(jnp.ones_like(x))[0], value)


def test_gelu_is_x_times_the_normal_distribution_and_so_is_its_slope() -> None:
    points = np.linspace(-9, 9, 2001)
    cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in points])
    density = np.exp(-(points**2) / 2) / math.sqrt(2 * math.pi)
    x = jnp.asarray(points, jnp.float32)
    np.testing.assert_allclose(gelu(x), points * cdf, atol=1e-6)
    slope = jax.vmap(jax.grad(gelu))(x)
    np.testing.assert_allclose(slope, cdf + points * density, atol=1e-6)
