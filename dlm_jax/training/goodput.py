"""Where the seconds of a run go, and how many of them train."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

SPLIT = "goodput"
"""Split of the lines in metrics.jsonl."""
KINDS = ("step", "data", "checkpoint", "evaluation", "startup", "restart")


class Goodput:
    """Counts the seconds since the last line by what they were spent on.

    `startup` lasts until the first step is compiled; `restart` is what the previous process of the
    run left behind: its work after the newest checkpoint, which is done again, and the time until
    this process began. `step` is all that remains. So the lines of a run, over all its processes,
    add up to the time since it first began.
    """

    def __init__(self, began: float, accounted_until: float | None = None) -> None:
        """Starts counting.

        Args:
            began: when this process began, in seconds since the epoch.
            accounted_until: time of the last line that a previous process left, or None.
        """
        self._since = began
        self._spent = dict.fromkeys(KINDS, 0.0)
        if accounted_until is not None:
            self._spent["restart"] = max(0.0, began - accounted_until)

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Counts the time of a block as 'data', 'checkpoint' or 'evaluation'.

        A profile shows it as 'dlm:<kind>'.
        """
        began = time.time()
        try:
            with jax.profiler.TraceAnnotation(f"dlm:{kind}"):
                yield
        finally:
            self._spent[kind] += time.time() - began

    def started(self) -> None:
        """Says that the first step is compiled; all time so far was start-up."""
        now = time.time()
        self._spent["startup"] += now - self._since - self._spent["data"]

    def line(self) -> dict[str, float]:
        """Returns the seconds of each kind since the last line, and the share of steps."""
        now = time.time()
        known = sum(seconds for kind, seconds in self._spent.items() if kind != "restart")
        self._spent["step"] += max(0.0, now - self._since - known)
        total = sum(self._spent.values())
        values = {f"{kind}_seconds": round(seconds, 3) for kind, seconds in self._spent.items()}
        share = self._spent["step"] / total if total else 0.0
        self._since, self._spent = now, dict.fromkeys(KINDS, 0.0)
        return {**values, "goodput": round(share, 4)}


def totals(file: Path) -> dict[str, float]:
    """Adds up the goodput lines of a metrics file: seconds by kind, over all processes so far."""
    sums = dict.fromkeys(KINDS, 0.0)
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["split"] == SPLIT:
            for kind in KINDS:
                sums[kind] += entry[f"{kind}_seconds"]
    return sums


def working_seconds(file: Path) -> float:
    """Seconds that a run has worked according to its metrics file, over all processes so far.

    What a killed process did after its last checkpoint, and the pause behind it, are not in it.
    """
    return sum(seconds for kind, seconds in totals(file).items() if kind != "restart")


def sentence(seconds: Mapping[str, float]) -> str:
    """Says in a line where the time went."""
    total = sum(seconds.values())
    if not total:
        return "goodput unknown"
    shares = ", ".join(
        f"{kind} {value / total:.1%}" for kind, value in seconds.items() if value / total >= 0.0005
    )
    return f"goodput {seconds['step'] / total:.1%} of {total:,.0f} s: {shares}"
