"""The partial order of an answer's spans: what respects it, and how often chance does."""

from __future__ import annotations

import itertools
import math

import pytest

from dlm_jax.errors import UserError
from dlm_jax.evaluation.dependency_graph import DependencyGraph


def graph(needs: dict[str, tuple[str, ...]]) -> DependencyGraph:
    return DependencyGraph("".join(f"(?P<{node}>[^;]+);" for node in needs), needs)


CHAIN = graph({"a": (), "b": ("a",), "c": ("b",)})
FORK = graph({"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")})
V = graph({"a": (), "b": (), "c": ("a", "b")})


def enumerated(graph, sizes, drawn, reveal, strict) -> float:
    """Deals the steps to the tokens in every distinguishable way."""
    steps = [step for step, count in enumerate(drawn) for _ in range(count)]
    owners = [node for node, size in sizes.items() for _ in range(size)]
    choose = max if reveal == "last" else min
    good = total = 0
    for dealt in itertools.permutations(steps):
        times = {
            node: choose(step for step, owner in zip(dealt, owners) if owner == node)
            for node in sizes
        }
        total += 1
        good += graph.ordered(times, strict=strict)
    return good / total


@pytest.mark.parametrize("reveal", ["last", "first"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("order", "sizes", "drawn"),
    [
        (CHAIN, (1, 1, 1), (1, 1, 1)),
        (CHAIN, (2, 1, 3), (1, 2, 0, 3, 1)),
        (FORK, (1, 2, 1, 1), (2, 2, 1, 2)),
        (FORK, (1, 1, 1, 1), (3, 0, 1)),
        (V, (2, 2, 2), (1, 1, 1, 1, 1, 1)),
        (V, (1, 3, 1), (6,)),
    ],
)
def test_chance_is_the_enumeration_of_all_dealings(order, sizes, drawn, reveal, strict) -> None:
    named = dict(zip(order.needs, sizes, strict=True))
    expected = enumerated(order, named, drawn, reveal, strict)
    assert order.chance(named, drawn, reveal=reveal, strict=strict) == pytest.approx(expected)


def test_chance_of_single_tokens_counts_linear_extensions() -> None:
    """A comb of three teeth: results in a chain, each with an idea of its own before it."""
    needs = {"i1": (), "r1": ("i1",), "i2": (), "r2": ("i2", "r1"), "i3": (), "r3": ("i3", "r2")}
    comb = graph(needs)
    extensions = sum(
        comb.ordered(dict(zip(needs, order))) for order in itertools.permutations(range(6))
    )
    assert extensions == 15  # perfect matchings of six points, 5!!
    once = dict.fromkeys(needs, 1)
    for reveal in ("last", "first"):
        for strict in (False, True):
            chance = comb.chance(once, [1] * 6, reveal=reveal, strict=strict)
            assert chance == pytest.approx(extensions / math.factorial(6))


def test_all_at_once_is_an_order_that_forgives_ties_and_no_strict_one() -> None:
    sizes = {"a": 2, "b": 1, "c": 4}
    assert CHAIN.chance(sizes, [7]) == 1.0
    assert CHAIN.chance(sizes, [7], strict=True) == 0.0
    free = graph({"a": (), "b": ()})
    assert free.chance({"a": 3, "b": 2}, [2, 2, 1], strict=True) == pytest.approx(1.0)


def test_verdicts_by_hand() -> None:
    assert FORK.ordered({"a": 1, "b": 3, "c": 2, "d": 3})
    assert not FORK.ordered({"a": 1, "b": 3, "c": 2, "d": 3}, strict=True)
    assert FORK.ordered({"a": 1, "b": 2, "c": 2, "d": 3}, strict=True)
    assert not FORK.ordered({"a": 2, "b": 2, "c": 1, "d": 3})
    assert FORK.violations({"a": 2, "b": 2, "c": 1, "d": 3}) == 1
    # d needs a through b and c: all five pairs are the wrong way round.
    assert FORK.violations({"a": 4, "b": 3, "c": 2, "d": 1}) == 5
    assert FORK.ancestors["d"] == {"a", "b", "c"}


def test_spans_are_those_of_the_groups() -> None:
    assert V.spans("x;yy;z;") == {"a": (0, 1), "b": (2, 4), "c": (5, 6)}
    assert V.spans("x;yy;z; and more") is None


@pytest.mark.parametrize(
    ("pattern", "needs", "message"),
    [
        ("(?P<a>x", {"a": ()}, "no regular expression"),
        ("(?P<a>x)", {"a": (), "b": ()}, "'b' must be both"),
        ("(?P<a>x)(?P<total>y)", {"a": (), "total": ("totl",)}, "'totl', .*did you mean total"),
        ("(?P<a>x)(?P<b>y)", {"a": ("b",), "b": ("a",)}, "needs itself"),
    ],
)
def test_mistakes_are_sentences(pattern, needs, message) -> None:
    with pytest.raises(UserError, match=message):
        DependencyGraph(pattern, needs)
    with pytest.raises(ValueError, match="tokens for nodes"):
        CHAIN.chance({"a": 1, "b": 1, "c": 1}, [1, 1])
