"""The child's half of an alternating benchmark: one line asked on stdin, one line of JSON answered.

Two processes that are kept alive and asked in turn see the same weather of the machine, and neither
pays for the other's imports, compilation or memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ANSWER = "answer "


@dataclass(frozen=True)
class Examples:
    """The examples of one training step, ragged.

    Attributes:
      tokens: int32 [sum of lengths], the examples one after another.
      lengths: int64 [examples], tokens of each.
      prompt_lengths: int64 [examples], leading tokens that are never absorbed.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]

    def rows(self) -> Iterator[tuple[NDArray[np.int32], int]]:
        """Yields (tokens int32 [length], prompt length) of each example."""
        ends = np.cumsum(self.lengths)
        for end, length, prompt in zip(ends, self.lengths, self.prompt_lengths):
            yield self.tokens[end - length : end], int(prompt)


def load_examples(path: str) -> dict[str, list[Examples]]:
    """Reads the file that the driver wrote: the steps' examples of each case, in order."""
    cases: dict[str, list[Examples]] = {}
    with np.load(path) as archive:
        for key in sorted(name for name in archive if name.endswith("/tokens")):
            case, step, _ = key.split("/")
            cases.setdefault(case, []).append(
                Examples(
                    tokens=archive[key],
                    lengths=archive[f"{case}/{step}/lengths"],
                    prompt_lengths=archive[f"{case}/{step}/prompt_lengths"],
                )
            )
    return cases


def gemm_rate(multiply: Callable[[], object], size: int, seconds: float = 2.0) -> float:
    """Multiply-add rate of a square float32 product in FLOP/s: the best of a few seconds."""
    multiply()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def serve(commands: dict[str, Callable[[int], dict[str, float]]]) -> None:
    """Answers `<command> <index>` lines until stdin closes."""
    print(ANSWER + json.dumps({"ready": 1}), flush=True)
    for line in sys.stdin:
        name, index = line.split()
        print(ANSWER + json.dumps(commands[name](int(index))), flush=True)
