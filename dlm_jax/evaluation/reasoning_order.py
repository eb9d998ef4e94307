"""Whether answers are written in the order of their reasoning, told from the trace of decoding.

Ye et al. 2023 (arXiv 2308.12219, figure 6) marked by hand which ideas, equations and results of a
worked answer appear before which. Here the spans of an answer are found by the pattern of its
`DependencyGraph`, and each span appears at the step at which its last token (or its first) was
written to stay: a token that is masked again counts from the step that writes it for good.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.evaluation.dependency_graph import DependencyGraph
from dlm_jax.evaluation.metrics import wilson_interval


@dataclasses.dataclass(frozen=True)
class RevealedText:
    """A text and when its pieces were written.

    Attributes:
      text: what the tokens decode to.
      pieces: (begin, end, step) of each token: its characters [begin, end), and the step, from 1,
        at which it was written to stay.
      drawn: for each step how many tokens were written to stay, special ones included.
    """

    text: str
    pieces: Sequence[tuple[int, int, int]]
    drawn: tuple[int, ...]


def reveal_text(
    vocabulary: Vocabulary, tokens: Sequence[int], steps: Sequence[int], num_steps: int
) -> RevealedText:
    """Decodes an answer and finds the characters of each token.

    Args:
      vocabulary: of the tokens.
      tokens: ids that were written, special ones included, which are no part of the text.
      steps: for each token the step, from 1, at which it was written to stay.
      num_steps: steps that were run.
    """
    written = [
        (int(token), int(step))
        for token, step in zip(tokens, steps, strict=True)
        if token not in vocabulary.special_ids
    ]
    ids = [token for token, _ in written]
    text = vocabulary.decode(ids)
    # How much of the text the first n tokens decide; less than they decode to where a character is
    # not finished yet.
    reached = [
        len(os.path.commonprefix([text, vocabulary.decode(ids[:n])])) for n in range(len(ids))
    ]
    reached.append(len(text))
    pieces = []
    end = len(text)
    for n in reversed(range(len(ids))):
        # A token that finishes no character belongs to the one that a later token finishes.
        end = reached[n + 1] if reached[n + 1] > reached[n] else end
        pieces.append((reached[n], end, written[n][1]))
    drawn = np.bincount(np.asarray(steps, np.int64), minlength=num_steps + 1)[1:]
    return RevealedText(text, pieces[::-1], tuple(int(count) for count in drawn))


@dataclasses.dataclass(frozen=True)
class OrderOfAnswer:
    """The order in which one answer was written.

    Attributes:
      spans: [begin, end) of each node in the text.
      times: step at which each node appeared.
      topological: whether no node appeared in an earlier step than one that it needs.
      strict: whether every node appeared in a later step than all that it needs.
      violations: pairs in the wrong order, of those in which one needs the other.
      early: for each (needed node, node) whether the node appeared in the earlier step.
      chance: probability that the same steps, dealt to the tokens at random, are topological.
      strict_chance: likewise for `strict`.
    """

    spans: Mapping[str, tuple[int, int]]
    times: Mapping[str, int]
    topological: bool
    strict: bool
    violations: int
    early: Mapping[tuple[str, str], bool]
    chance: float
    strict_chance: float


def order_of(
    revealed: RevealedText, graph: DependencyGraph, reveal: str = "last"
) -> OrderOfAnswer | None:
    """Judges one answer; None if it does not have the form that the graph's pattern describes.

    A token is of the node that holds most of its characters, and of none where no node holds any.
    Blanks around a word count for no node.

    Args:
      revealed: the answer.
      graph: of its question.
      reveal: 'last' or 'first', the token of a node with which it appears.
    """
    spans = graph.spans(revealed.text)
    if spans is None:
        return None
    owned: dict[str, list[int]] = {node: [] for node in spans}
    for begin, end, step in revealed.pieces:
        shared = {node: min(end, b) - max(begin, a) for node, (a, b) in spans.items()}
        owner = max(shared, key=lambda node: shared[node])
        if shared[owner] > 0:
            owned[owner].append(step)
    if not all(owned.values()):
        return None
    choose = max if reveal == "last" else min
    times = {node: choose(steps) for node, steps in owned.items()}
    sizes = {node: len(steps) for node, steps in owned.items()}

    def chance(strict: bool) -> float:
        return graph.chance(sizes, revealed.drawn, reveal=reveal, strict=strict)

    return OrderOfAnswer(
        spans=spans,
        times=times,
        topological=graph.ordered(times),
        strict=graph.ordered(times, strict=True),
        violations=graph.violations(times),
        early={(a, b): times[b] < times[a] for a, b in graph.edges},
        chance=chance(False),
        strict_chance=chance(True),
    )


def order_figures(
    orders: Sequence[OrderOfAnswer | None],
    right: Sequence[bool] | None = None,
    *,
    level: float = 0.95,
) -> dict[str, float]:
    """Summarises the orders of answers.

    Args:
      orders: one entry an answer.
      right: which of them are right; None if that is not known.
      level: coverage of the intervals `<figure>_low` to `<figure>_high` (Wilson 1927).

    Returns:
      `answers_read`, the fraction of answers that have the form and so can be judged; of these
      `topological_share` and `strict_topological_share`, with `…_chance`, what the same steps dealt
      to the tokens at random would give in expectation; `topological_share_right`, among the right
      answers alone; `order_violations`, their mean number; and `early/<node> before <needed>`, the
      share of the answers with this dependency in which it is violated. Shares of nothing are left
      out.
    """
    read = [order for order in orders if order is not None]
    figures = {"answers_read": len(read) / len(orders)}
    if not read:
        return figures
    count = len(read)
    figures |= _share("topological_share", sum(o.topological for o in read), count, level)
    figures["topological_share_chance"] = math.fsum(o.chance for o in read) / count
    figures |= _share("strict_topological_share", sum(o.strict for o in read), count, level)
    figures["strict_topological_share_chance"] = math.fsum(o.strict_chance for o in read) / count
    figures["order_violations"] = sum(order.violations for order in read) / count
    for needed, node in dict.fromkeys(edge for order in read for edge in order.early):
        early = [order.early[needed, node] for order in read if (needed, node) in order.early]
        figures |= _share(f"early/{node} before {needed}", sum(early), len(early), level)
    if right is not None:
        chosen = [order for order, is_right in zip(orders, right) if order and is_right]
        if chosen:
            shared = sum(order.topological for order in chosen)
            figures |= _share("topological_share_right", shared, len(chosen), level)
            figures["answers_right"] = float(len(chosen))
    return figures


def _share(name: str, successes: int, count: int, level: float) -> dict[str, float]:
    interval = wilson_interval(successes, count, level=level)
    return {
        name: interval.value,
        f"{name}_se": interval.standard_error,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
    }


def record_of(revealed: RevealedText, order: OrderOfAnswer | None) -> dict[str, Any]:
    """What a line of predictions keeps of an order, in JSON values."""
    pieces = [list(piece) for piece in revealed.pieces]
    if order is None:
        return {"order": None, "pieces": pieces}
    nodes = {
        node: {"text": revealed.text[begin:end], "begin": begin, "step": order.times[node]}
        for node, (begin, end) in order.spans.items()
    }
    judged = {
        "topological": order.topological,
        "strict": order.strict,
        "violations": order.violations,
        "chance": order.chance,
        "strict_chance": order.strict_chance,
    }
    return {"order": {**judged, "nodes": nodes}, "pieces": pieces}
