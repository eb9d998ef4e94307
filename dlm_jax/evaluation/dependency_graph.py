"""Which spans of a worked answer need which others, and how often chance respects that.

An answer is read by a regular expression with one named group for each node. Times at which its
nodes appear are a topological order if no node appears before one that it needs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

from dlm_jax.errors import UserError, nearest

REVEALS = ("last", "first")


@dataclasses.dataclass(frozen=True)
class DependencyGraph:
    """A partial order of the spans of an answer.

    Attributes:
      pattern: regular expression of a whole answer; every named group is a node.
      needs: for each node the nodes that it needs directly.

    Raises:
      UserError: `needs` and the groups differ, a needed node is unknown, or nodes need each other.
    """

    pattern: str
    needs: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        try:
            groups = set(re.compile(self.pattern).groupindex)
        except re.error as error:
            raise UserError(
                f"DependencyGraph.pattern is no regular expression ({error})"
            ) from error
        if groups != set(self.needs):
            odd = sorted(groups ^ set(self.needs))[0]
            raise UserError(
                f"DependencyGraph: {odd!r} must be both a group of the pattern and a key of needs"
            )
        for node, parents in self.needs.items():
            for parent in parents:
                if parent not in groups:
                    raise UserError(
                        f"DependencyGraph: {node!r} needs {parent!r}, which is no node"
                        f"{nearest(parent, groups)}"
                    )
        for node, before in self.ancestors.items():
            if node in before:
                raise UserError(f"DependencyGraph: {node!r} needs itself, directly or not")

    @functools.cached_property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """All that each node needs, directly or not."""
        found: dict[str, frozenset[str]] = {}
        for node in self.needs:
            seen: set[str] = set()
            waiting = list(self.needs[node])
            while waiting:
                parent = waiting.pop()
                if parent not in seen:
                    seen.add(parent)
                    waiting += self.needs[parent]
            found[node] = frozenset(seen)
        return found

    @property
    def edges(self) -> list[tuple[str, str]]:
        """All (needed node, node) pairs, direct ones only."""
        return [(parent, node) for node, parents in self.needs.items() for parent in parents]

    def spans(self, text: str) -> dict[str, tuple[int, int]] | None:
        """Returns [begin, end) of each node in an answer; None if it does not have this form."""
        found = re.fullmatch(self.pattern, text)
        return None if found is None else {node: found.span(node) for node in self.needs}

    def ordered(self, times: Mapping[str, int], *, strict: bool = False) -> bool:
        """Whether times of the nodes are a topological order.

        Args:
          times: when each node appeared.
          strict: a node that appears together with one it needs is too early. Otherwise what
            appears together counts as being in whatever order is right.
        """
        return all(times[a] < times[b] + (not strict) for a, b in self.edges)

    def violations(self, times: Mapping[str, int]) -> int:
        """Pairs in the wrong order, of those in which one needs the other, directly or not.

        A lower bound of Kendall's distance to the nearest topological order.
        """
        return sum(times[a] > times[b] for b, before in self.ancestors.items() for a in before)

    def chance(
        self,
        sizes: Mapping[str, int],
        drawn: Sequence[int],
        *,
        reveal: str = "last",
        strict: bool = False,
    ) -> float:
        """Probability that a random order of the same tokens is topological, exactly.

        The steps at which tokens appear are dealt to the tokens at random, every dealing equally
        likely: each step has as many tokens as before, but not the same ones. With one token a
        node and one token a step this is the number of linear extensions over n!.

        Args:
          sizes: tokens of each node, at least 1; no token is in two nodes.
          drawn: for each step the number of tokens that appear in it, those of no node included.
          reveal: 'last' or 'first': which of its tokens makes a node appear.
          strict: see `ordered`.

        Raises:
          ValueError: fewer tokens are drawn than the nodes have, or `reveal` is unknown.
        """
        if reveal not in REVEALS or sum(drawn) < sum(sizes.values()):
            raise ValueError(f"reveal {reveal!r}, {sum(drawn)} tokens for nodes of {dict(sizes)}")
        names = list(self.needs)
        edges = tuple((names.index(a), names.index(b)) for a, b in self.edges)
        counts = tuple(drawn)
        if reveal == "last":
            # Backwards in time a node is complete until its last token is taken away.
            edges, counts = tuple((b, a) for a, b in edges), counts[::-1]
        steps = tuple(count for count in counts if count)
        return _chance(edges, tuple(sizes[name] for name in names), steps, strict)


Edges = tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=4096)
def _chance(edges: Edges, sizes: tuple[int, ...], drawn: tuple[int, ...], strict: bool) -> float:
    """Probability that every node is first hit no earlier than those before it by `edges`.

    Tokens are drawn without replacement, `drawn[s]` in step s. What matters of the past is which
    nodes have been hit: all tokens of the others are still in the pool.
    """
    everything = frozenset(range(len(sizes)))
    probability = {everything: 1.0}  # by the nodes that have not been hit
    pool = sum(drawn)
    for count in drawn:
        following: dict[frozenset[int], float] = {}
        total = math.comb(pool, count)
        for untouched, mass in probability.items():
            left = sum(sizes[node] for node in untouched)
            for hit in _openings(untouched, edges, count, strict):
                aside = left - sum(sizes[node] for node in hit)
                ways = sum(
                    sign * math.comb(pool - aside - tokens, count)
                    for tokens, sign in _signs(tuple(sizes[node] for node in sorted(hit)))
                    if tokens + aside <= pool
                )
                if ways:
                    rest = untouched - hit
                    following[rest] = following.get(rest, 0.0) + mass * (ways / total)
        probability = following
        pool -= count
    return probability.get(frozenset(), 0.0)


@functools.lru_cache(maxsize=65536)
def _openings(
    untouched: frozenset[int], edges: Edges, most: int, strict: bool
) -> tuple[frozenset[int], ...]:
    """Sets of at most `most` untouched nodes that may be hit next, all in one step."""
    found = {frozenset[int]()}
    waiting = list(found)
    while waiting:
        chosen = waiting.pop()
        # Strictly, what stands before a node has to be hit in an earlier step.
        before = untouched if strict else untouched - chosen
        for node in untouched - chosen if len(chosen) < most else ():
            larger = chosen | {node}
            if larger not in found and not any(b == node and a in before for a, b in edges):
                found.add(larger)
                waiting.append(larger)
    return tuple(found)


@functools.lru_cache(maxsize=65536)
def _signs(sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Inclusion and exclusion over nodes: the terms of Π(1 - x^size) as (exponent, coefficient)."""
    terms = {0: 1}
    for size in sizes:
        for exponent, sign in list(terms.items()):
            terms[exponent + size] = terms.get(exponent + size, 0) - sign
    return tuple((exponent, sign) for exponent, sign in terms.items() if sign)
