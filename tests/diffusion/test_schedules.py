from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.diffusion.schedules import Cosine, Linear, Polynomial, schedule_by_name
from dlm_jax.errors import UserError

# Independent float64 formulas of the masked fraction 1 - α(t).
MASKED = {
    Linear(): lambda t: t,
    Cosine(): lambda t: np.cos(np.pi / 2 * (1 - t)),
    Polynomial(2.0): lambda t: t**2,
    Polynomial(0.5): lambda t: t**0.5,
    Polynomial(5.0): lambda t: t**5,
}
SCHEDULES = pytest.mark.parametrize("schedule", MASKED, ids=repr)


@SCHEDULES
def test_boundaries_are_exact(schedule):
    ends = jnp.array([0.0, 1.0], jnp.float32)
    np.testing.assert_array_equal(schedule.alpha(ends), [1, 0])
    np.testing.assert_array_equal(schedule.mask_probability(ends), [0, 1])


@SCHEDULES
def test_values_and_derivative(schedule):
    t = np.linspace(0.001, 0.999, 257)
    t32 = jnp.asarray(t, jnp.float32)
    masked = MASKED[schedule](np.asarray(t32, np.float64))
    np.testing.assert_allclose(schedule.mask_probability(t32), masked, rtol=2e-6)
    np.testing.assert_allclose(schedule.alpha(t32), 1 - masked, rtol=3e-5, atol=1e-7)
    slope = jax.vmap(jax.grad(lambda x: schedule.alpha(x)))(t32)
    np.testing.assert_allclose(schedule.alpha_derivative(t32), slope, rtol=1e-3, atol=5e-5)
    assert (np.asarray(schedule.alpha_derivative(t32)) <= 0).all()
    ratio = -np.asarray(schedule.alpha_derivative(t32)) / masked
    np.testing.assert_allclose(schedule.nelbo_weight(t32), ratio, rtol=1e-4, atol=1e-6)


@SCHEDULES
@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_unmasking_probability(schedule, steps):
    """Against float64, where the naive difference would lose all digits in float32."""
    index = np.arange(1, steps + 1)
    masked = MASKED[schedule](np.arange(steps + 1) / steps)
    expected = (masked[1:] - masked[:-1]) / masked[1:]
    result = schedule.unmasking_probability(jnp.asarray(index / steps, jnp.float32), 1 / steps)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-7)
    assert result[0] == pytest.approx(1, abs=2e-7)


@SCHEDULES
def test_time_near_zero_is_finite(schedule):
    t = jnp.float32(2.0**-32)
    assert math.isfinite(schedule.nelbo_weight(t))
    assert schedule.mask_probability(t) >= 0


def test_names():
    assert schedule_by_name("linear") == Linear()
    assert schedule_by_name("cosine") == Cosine()
    assert schedule_by_name("polynomial", 3.0) == Polynomial(3.0)
    with pytest.raises(UserError, match=r"'cosin' .*did you mean cosine"):
        schedule_by_name("cosin")
    with pytest.raises(UserError, match=r"exponent=0"):
        Polynomial(0)
