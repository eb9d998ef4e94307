"""The training stream: which example stands at which running number, for ever, from a seed.

The n-th example of the stream is a pure function of (tasks and shares, sizes, seed) and of how many
examples each task has given before; so a position in it is a handful of integers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

# Choices between tasks are stratified inside blocks of this many examples.
_BLOCK = 1024


@dataclasses.dataclass
class StreamState:
    """A position in the stream.

    Attributes:
      examples: running number of the next example.
      drawn: how many examples each task has given so far; they sum to `examples`.
    """

    examples: int
    drawn: list[int]


class ExampleStream:
    """An endless (or `num_epochs` long) sequence of (task, example).

    Each task runs through its examples epoch by epoch, in an order drawn from (seed, task, epoch).
    Between tasks, the share of each is met to within one example in every aligned block of 1024,
    in an order drawn from (seed, block).

    Args:
      names: names of the tasks.
      shares: share of each; they sum to 1.
      sizes: number of examples of each; None for a task that is read as it comes, whose examples
        are numbered through all of its epochs and stand in an order of their own.
      seed: of all orders.
      shuffle: False keeps the order of the data set in every epoch.
      num_epochs: length of the stream, of one task only; None never ends.
      state: where to begin.
    """

    def __init__(
        self,
        names: Sequence[str],
        shares: Sequence[float],
        sizes: Sequence[int | None],
        *,
        seed: int,
        shuffle: bool = True,
        num_epochs: int | None = None,
        state: StreamState | None = None,
    ):
        if num_epochs is not None and len(names) > 1:
            raise ValueError("a mixture has no epochs: its tasks end at different times")
        self._names, self._sizes = list(names), list(sizes)
        self._boundaries = np.cumsum(shares)[:-1]
        self._seed, self._shuffle = seed, shuffle
        self._end = None if num_epochs is None else num_epochs * (self._sizes[0] or 0)
        self.state = state or StreamState(0, [0] * len(self._names))
        self._block: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def peek(self) -> tuple[int, int] | None:
        """Returns (task, index in its table) of the next example, or None at the end."""
        if self._end is not None and self.state.examples >= self._end:
            return None
        task = self._task_at(self.state.examples)
        size = self._sizes[task]
        if size is None:
            return task, self.state.drawn[task]
        epoch, place = divmod(self.state.drawn[task], size)
        return task, self._order(task, epoch, size)[place]

    def advance(self, task: int) -> None:
        """Steps past the example that `peek` returned, which was of `task`."""
        self.state.examples += 1
        self.state.drawn[task] += 1

    def _task_at(self, position: int) -> int:
        if not len(self._boundaries):
            return 0
        block, offset = divmod(position, _BLOCK)
        if self._block[0] != block:
            rng = generator(self._seed, "mixture", block)
            # One point in each of 1024 strata of [0, 1): each share is met to within one.
            points = (rng.permutation(_BLOCK) + rng.random()) / _BLOCK
            self._block = (block, np.searchsorted(self._boundaries, points, side="right"))
        return int(self._block[1][offset])

    def _order(self, task: int, epoch: int, size: int) -> np.ndarray | range:
        if not self._shuffle:
            return range(size)
        cached = self._orders.get(task)
        if cached is None or cached[0] != epoch:
            rng = generator(self._seed, f"order of {self._names[task]}", epoch)
            cached = (epoch, rng.permutation(size))
            self._orders[task] = cached
        return cached[1]


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Random numbers that depend on a seed, what they are for, and which of its draws it is."""
    purpose_id = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.default_rng([seed, purpose_id, *numbers])
