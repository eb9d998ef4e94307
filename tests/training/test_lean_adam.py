"""Adam from a smaller state, against optax and against the formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlm_jax.errors import UserError
from dlm_jax.training.lean_adam import scale_by_lean_adam
from dlm_jax.training.optimizers import AdamW

SHAPES = {"table": (256, 128), "stack": (2, 128, 4, 160), "bias": (300,), "narrow": (200, 16)}
SETTINGS = {"learning_rate": 0.01, "warmup_steps": 0, "weight_decay": 0.1}


def _gradients(seed: int) -> dict[str, jax.Array]:
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()
    }


def _run(optimizer: optax.GradientTransformation, steps: int = 4):
    parameters = _gradients(99)
    state = optimizer.init(parameters)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(_gradients(step), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return parameters, state


def test_whole_float32_moments_are_those_of_optax() -> None:
    ours = _run(scale_by_lean_adam(0.9, 0.98, 1e-8, mu_dtype="float32", factored=False))[0]
    theirs = _run(optax.scale_by_adam(0.9, 0.98, 1e-8))[0]
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_a_bfloat16_first_moment_changes_updates_by_its_rounding() -> None:
    exact, _ = _run(AdamW(**SETTINGS).build(10))
    lean, state = _run(AdamW(**SETTINGS, first_moment="bfloat16").build(10))
    moments = optax.tree.get(state, "mu")
    assert {leaf.dtype for leaf in jax.tree.leaves(moments)} == {jnp.dtype("bfloat16")}
    for name in SHAPES:
        # Four updates of at most about the learning rate, each off by less than one in 128.
        np.testing.assert_allclose(lean[name], exact[name], atol=4 * 0.01 / 128)


def test_a_factored_second_moment_follows_the_formula() -> None:
    settings = {"mu_dtype": "float32", "factored": True}
    _, state = _run(scale_by_lean_adam(0.0, 0.5, 1e-8, **settings), steps=2)
    first, second = (np.square(_gradients(step)["table"]) for step in range(2))
    rows = 0.25 * first.mean(1) + 0.5 * second.mean(1)
    columns = 0.25 * first.mean(0) + 0.5 * second.mean(0)
    # The table's longest dimension is its first: `nu` is the mean over it.
    np.testing.assert_allclose(state.nu["table"], columns[None], rtol=1e-5)
    np.testing.assert_allclose(state.nu_columns["table"], rows[:, None], rtol=1e-5)
    updates, _ = scale_by_lean_adam(0.0, 0.5, 0.0, **settings).update(_gradients(3), state)
    gradient = np.asarray(_gradients(3)["table"])
    rows = 0.5 * rows + 0.5 * np.square(gradient).mean(1)
    columns = 0.5 * columns + 0.5 * np.square(gradient).mean(0)
    estimate = rows[:, None] * columns / rows.mean() / (1 - 0.5**3)
    np.testing.assert_allclose(updates["table"], gradient / np.sqrt(estimate), rtol=1e-4)


def test_a_second_moment_of_rank_one_is_factored_without_loss() -> None:
    random = np.random.default_rng(0)
    scale = random.uniform(0.1, 3, (256, 1)) * random.uniform(0.1, 3, (1, 128))
    gradients = {"table": jnp.asarray(scale, jnp.float32)}
    updates = []
    for factored in (False, True):
        optimizer = scale_by_lean_adam(0.9, 0.98, 1e-8, mu_dtype="float32", factored=factored)
        updates.append(optimizer.update(gradients, optimizer.init(gradients))[0]["table"])
    np.testing.assert_allclose(updates[1], updates[0], rtol=1e-4)


def test_the_leanest_state_takes_little_more_than_two_bytes_a_parameter() -> None:
    large = {"table": jnp.zeros((2048, 512)), "stack": jnp.zeros((2, 512, 1024))}
    optimizer = AdamW(first_moment="bfloat16", second_moment="factored").build(10)
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, large))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert 2.0 < size / sum(leaf.size for leaf in jax.tree.leaves(large)) < 2.02


def test_small_arrays_keep_their_whole_second_moment_and_zeros_do_no_harm() -> None:
    optimizer = scale_by_lean_adam(0.9, 0.98, 1e-8, mu_dtype="bfloat16", factored=True)
    zeros = jax.tree.map(jnp.zeros_like, _gradients(0))
    updates, state = optimizer.update(zeros, optimizer.init(zeros))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))
    shapes = {name: state.nu[name].shape for name in SHAPES}
    assert shapes == {
        "table": (1, 128),
        "stack": (2, 128, 4, 1),
        "bias": (300,),
        "narrow": (200, 16),
    }
    assert {name: state.nu_columns[name].shape for name in SHAPES} == {
        "table": (256, 1),
        "stack": (2, 1, 4, 160),
        "bias": (),
        "narrow": (),
    }


@pytest.mark.parametrize("name", ["first_moment", "second_moment"])
def test_unknown_settings_are_a_sentence(name) -> None:
    with pytest.raises(UserError, match=f"AdamW.{name} is 'factord'.*it can be "):
        AdamW(**{name: "factord"})
