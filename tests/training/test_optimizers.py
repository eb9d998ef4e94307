"""Learning rates against their formulas, and AdamW against an independent numpy step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.errors import UserError
from dlm_jax.training.optimizers import AdamW


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", lambda n: 1.0),
        ("inverse_sqrt", lambda n: (10 / (10 + n)) ** 0.5),
        ("cosine", lambda n: 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * n / 90))),
        ("linear", lambda n: 1 - 0.9 * n / 90),
    ],
)
def test_learning_rates(schedule, after):
    rates = AdamW(
        learning_rate=2.0, schedule=schedule, warmup_steps=10, final_fraction=0.1
    ).learning_rates(100)
    for count in range(10):
        np.testing.assert_allclose(rates(count), 2.0 * (count + 1) / 10, rtol=1e-6)
    for count in range(9, 100, 7):  # the peak once, and the last step, 99, at the end
        np.testing.assert_allclose(rates(count), 2.0 * after(count - 9), rtol=1e-5)
    if schedule in ("cosine", "linear"):
        np.testing.assert_allclose(rates(99), 0.2, rtol=1e-5)


def test_warmup_as_a_fraction():
    rates = AdamW(learning_rate=1.0, warmup_steps=0.1).learning_rates(200)
    np.testing.assert_allclose(
        [rates(0), rates(9), rates(19), rates(50)], [0.05, 0.5, 1.0, 1.0], rtol=1e-6
    )


def test_adamw_step_equals_the_formula():
    config = AdamW(learning_rate=0.01, warmup_steps=0, weight_decay=0.1, max_grad_norm=0.5)
    optimizer = config.build(10)
    rng = np.random.default_rng(0)
    p = rng.normal(size=(3, 2)).astype(np.float32)
    m = v = np.zeros_like(p)
    parameters = {"kernel": jnp.asarray(p)}
    state = optimizer.init(parameters)
    for step in range(1, 4):
        g = rng.normal(size=(3, 2)).astype(np.float32)
        updates, state = optimizer.update({"kernel": jnp.asarray(g)}, state, parameters)
        parameters = jax.tree.map(jnp.add, parameters, updates)
        g = g * min(1.0, 0.5 / np.sqrt((g**2).sum()))
        m = 0.9 * m + 0.1 * g
        v = 0.98 * v + 0.02 * g**2
        direction = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.98**step)) + 1e-8)
        p = p - 0.01 * (direction + 0.1 * p)
        np.testing.assert_allclose(parameters["kernel"], p, rtol=2e-5, atol=1e-6)


def test_decay_can_spare_biases_and_norms():
    parameters = {
        "layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((3, 2)), "scale": jnp.ones(2)}
    }
    optimizer = AdamW(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, decay="matrices").build(
        10
    )
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = optimizer.update(zeros, optimizer.init(parameters), parameters)
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["layer"]["bias"], 0)
    np.testing.assert_array_equal(updates["layer"]["scale"], 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, not 0.0"),
        ({"decay": "some"}, "'all' or 'matrices', not 'some'"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must not be negative"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(UserError, match=message):
        AdamW(**values)


def test_warmup_longer_than_the_run():
    with pytest.raises(UserError, match="warmup_steps is 20, more than the 10 steps"):
        AdamW(warmup_steps=20).build(10)
