"""A wild batch leaves the state as it was, is counted, and does not blind the rule for the next."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlm_jax.errors import UserError
from dlm_jax.training.spikes import SkipSpikes
from dlm_jax.training.stage import Stage
from dlm_jax.training.state import TrainState
from dlm_jax.training.step import make_step

RULE = SkipSpikes(window=8, factor=4.0)
ADAM = optax.adam(0.05)
OFFSET = 0.5


def _squares(parameters, batch, dropout_key, time_state):
    """Least squares with an offset that is not trained."""
    errors = batch["x"] @ parameters["kernel"] + OFFSET - batch["y"]
    loss = jnp.sum(errors**2)
    weight = jnp.float32(errors.size)
    return loss, ({"loss_sum": loss, "weight_sum": weight, "tokens": weight}, time_state)


@pytest.fixture(scope="module")
def stage():
    mesh = jax.make_mesh((1,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    abstract = {"kernel": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=everywhere)}

    def create():
        return jax.device_put({"kernel": np.zeros(3, np.float32)}, everywhere)

    return Stage.of(_squares, ADAM, abstract, create, seed=0, spikes=RULE)


def _batch(number, wild=()):
    rng = np.random.default_rng(number)
    x = rng.normal(size=(16, 3)).astype(np.float32)
    y = x @ np.float32([1, -2, 3]) + rng.normal(size=16).astype(np.float32)
    return {"x": x, "y": 100 * y if number in wild else y}


def _same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_wild_batch_changes_nothing_and_training_goes_on(stage):
    step, state, spikes = jax.jit(stage.step), stage.create(), []
    for number in range(12):
        before = state
        state, metrics = step(state, _batch(number, wild=(8, 9)))
        spikes.append(float(metrics["spike"]))
        if spikes[-1]:
            _same(state.parameters, before.parameters)
            _same(state.optimizer_state, before.optimizer_state)
        else:
            assert (state.parameters["kernel"] != before.parameters["kernel"]).all()
    assert spikes == [0.0] * 8 + [1.0, 1.0] + [0.0] * 2
    assert (int(state.step), int(state.skipped)) == (12, 2)


def test_the_learning_rate_goes_on_with_steps_that_are_left_out():
    """Four steps of which the third is left out end where plain descent without it ends."""
    rates = optax.linear_schedule(0.4, 0.0, 4)

    def loss(parameters, batch, dropout_key, time_state):
        del dropout_key
        total = parameters["w"] * batch["gradient"].sum()
        one = jnp.float32(1)
        return total, ({"loss_sum": total, "weight_sum": one, "tokens": one}, time_state)

    optimizer = optax.sgd(rates)
    state = TrainState.create({"w": jnp.float32(0)}, optimizer)
    step = jax.jit(make_step(loss, optimizer, seed=0))
    for gradient in (1.0, 1.0, np.nan, 1.0):
        state, _ = step(state, {"gradient": jnp.float32([[gradient]])})
    assert float(state.parameters["w"]) == pytest.approx(-(0.4 + 0.3 + 0.1), rel=1e-6)
    assert int(state.skipped) == 1


def test_saved_and_resumed_among_spikes_to_the_bit(stage):
    step, state = jax.jit(stage.step), stage.create()
    for number in range(12):
        if number == 9:
            saved = json.loads(json.dumps(stage.saved(state)))
            other = stage.resumed(state.parameters, state.training(), saved)
            _same(other, state)
        state, _ = step(state, _batch(number, wild=(8, 9)))
        if number >= 9:
            other, _ = step(other, _batch(number, wild=(8, 9)))
    _same(other, state)


def test_a_run_without_the_rule_can_begin_to_have_it(stage):
    state = stage.create()
    other = stage.resumed(state.parameters, state.training(), {})
    _same(other.recent, RULE.empty())


def test_the_limit_is_the_mean_and_the_deviations_of_the_window():
    rng = np.random.default_rng(0)
    recent, kept = RULE.empty(), []
    judge = jax.jit(RULE.judge)
    for number in range(40):
        loss, norm = np.float32(rng.exponential(size=2))
        finite = number != 20
        found, recent = judge(recent, loss, norm, finite)
        past = np.array(kept[-RULE.window :])
        expected = False
        if len(kept) >= RULE.window // 2:
            limits = past.mean(0) + RULE.factor * past.std(0)
            expected = finite and bool((limits < [loss, norm]).any())
            loss, norm = np.minimum(limits, [loss, norm])
        assert bool(found) == expected
        if finite:
            kept.append((loss, norm))
    assert int(recent.seen) == 39


def test_a_loss_that_has_risen_for_good_is_accepted():
    recent, judge, refused = RULE.empty(), jax.jit(RULE.judge), 0
    for number in range(60):
        level = 2.0 + 0.1 * (-1) ** number + (20.0 if number >= 20 else 0.0)
        found, recent = judge(recent, jnp.float32(level), jnp.float32(1.0), True)
        refused += int(found)
        if number == 59:
            assert not found
    assert 1 <= refused <= 2 * RULE.window


@pytest.mark.parametrize(("field", "value"), [("window", 3), ("factor", 0.0)])
def test_impossible_rules(field, value):
    with pytest.raises(UserError, match=f"SkipSpikes.{field}"):
        SkipSpikes(**{field: value})
