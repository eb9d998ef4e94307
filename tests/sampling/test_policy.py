from __future__ import annotations

import itertools

import pytest

from dlm_jax.errors import UserError
from dlm_jax.sampling.policy import Policy
from dlm_jax.sampling.position_rules import LeftToRight, RandomUnmasking, Reparameterized
from dlm_jax.sampling.schedule import UnmaskingSchedule
from dlm_jax.sampling.token_rules import Argmax, Categorical


def test_every_name_of_the_grammar():
    noises = {
        "deterministic": 0.0,
        "stochastic1.0": 1.0,
        "stochastic5": 5.0,
        "stochastic0.25": 0.25,
    }
    for routing, noise, shape in itertools.product(
        ("cond", "uncond"), noises, ("cosine", "linear")
    ):
        policy = Policy.parse(f"reparam-{routing}-{noise}-{shape}", steps=50)
        assert policy.positions == Reparameterized(routing == "cond", noises[noise])
        assert policy.schedule == UnmaskingSchedule(shape, "masked")
        assert policy.tokens == Argmax() and policy.steps == 50 and not policy.early_exit
    assert Policy.parse("cmlm").positions == RandomUnmasking()
    assert Policy.parse("left-to-right", steps=None).positions == LeftToRight()
    assert Policy.parse("cmlm", temperature=0.3).tokens == Categorical(0.3)
    assert Policy.parse("cmlm", early_exit=True).early_exit
    denoised = Policy.parse("reparam-cond-deterministic-linear", schedule_reading="denoised")
    assert denoised.schedule == UnmaskingSchedule("linear", "denoised")


def test_equal_policies_are_one_key():
    name = "reparam-uncond-stochastic1.0-cosine"
    assert hash(Policy.parse(name)) == hash(Policy.parse(name))
    assert len({Policy.parse(name), Policy.parse(name), Policy.parse("cmlm")}) == 2


@pytest.mark.parametrize(
    ("strategy", "hint"),
    [
        ("reparam-uncond-deterministic-cosin", "did you mean reparam-uncond-deterministic-cosine"),
        ("reparam-uncond-stochastic-cosine", "stochastic<scale>"),
        ("reparam-uncond-stochastic1.2.3-cosine", "stochastic<scale>"),
        ("clm", "did you mean cmlm"),
        ("", "left-to-right"),
    ],
)
def test_unknown_strategies_are_named(strategy, hint):
    with pytest.raises(UserError, match=hint):
        Policy.parse(strategy)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": None}, "steps is None"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"schedule_reading": "mask"}, "did you mean masked"),
    ],
)
def test_values_out_of_range_are_named(settings, hint):
    with pytest.raises(UserError, match=hint):
        Policy.parse("cmlm", **settings)
