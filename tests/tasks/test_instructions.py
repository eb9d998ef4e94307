"""Mixtures of more and more instructions, and the tasks that stay out of them."""

from __future__ import annotations

import itertools
from importlib.util import find_spec

import pytest

from dlm_jax.data.tasks import get_task, import_task_modules, members

needs_reasoning_gym = pytest.mark.skipif(
    find_spec("reasoning_gym") is None, reason="the extra [quickstart] is not installed"
)


def test_a_smaller_mixture_is_within_a_larger_one_and_none_holds_an_unseen_task() -> None:
    (module,) = import_task_modules(["instructions"])
    smaller: set[str] = set()
    for count in module.MIXTURES:
        found = members(f"instructions_v1.trained_{count}")[1]
        names = {task.name for task, _ in found}
        assert len(names) == 2 * count
        assert {share for _, share in found} == {1 / (2 * count)}
        assert smaller < names
        smaller = names
    assert not smaller & {*module.HELD_OUT, *module.HELD_OUT_2_SHOT}
    held_out = {name.partition(".")[2] for name in module.HELD_OUT}
    assert not held_out & {name.partition(".")[2].removesuffix("_2_shot") for name in smaller}


@needs_reasoning_gym
def test_demonstrations_come_from_the_training_split_and_are_not_the_question() -> None:
    import_task_modules(["instructions"])
    task = get_task("instructions_v1.count_bits")
    trained = {f"{one.inputs} {one.targets}" for one in task.examples("train")}
    shown = get_task("instructions_v1.count_bits_2_shot")
    for plain, one in itertools.islice(zip(task.examples("test"), shown.examples("test")), 20):
        assert one.targets == plain.targets and one.inputs.endswith(" " + plain.inputs)
        front = one.inputs.removesuffix(plain.inputs)
        assert front.count("how many 1 bits") == 2 and plain.inputs not in front
        first, second = front.strip().split(" how many ")
        assert {first, f"how many {second}"} <= trained
