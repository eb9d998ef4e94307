"""A trace of some steps, where their time went, and how to look at it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dlm_jax.errors import UserError
from dlm_jax.training.breakdown import write_breakdown


def check_profile_steps(steps: tuple[int, int] | None) -> None:
    """Raises a UserError unless the steps to profile are in order."""
    if steps is not None and not 1 <= steps[0] <= steps[1]:
        raise UserError(
            f"train.profile_steps is {tuple(steps)}: it must be (first, last) with "
            "1 <= first <= last"
        )


class StepProfiler:
    """Writes a profile of the steps `first` to `last`, both included, of process 0."""

    def __init__(
        self,
        folder: Path,
        steps: tuple[int, int] | None,
        say: Callable[[str], None],
        program: Callable[[], str] = str,
    ) -> None:
        """Takes what it needs.

        Args:
            folder: where traces and the breakdown of the step's time go.
            steps: which ones; None = none.
            say: prints a line.
            program: returns the optimized HLO of the step.
        """
        wanted = steps is not None and jax.process_index() == 0
        self._first, self._last = steps if steps is not None and wanted else (0, 0)
        self._folder, self._say, self._program = folder, say, program
        self._tracing = False

    def before(self, step: int, state: Any) -> None:
        """Starts with the first of the steps, or in their midst where a run resumes there.

        The devices finish `state` first, so that the trace holds nothing of earlier steps.
        """
        if not self._tracing and self._first <= step <= self._last:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step: int, results: Any) -> None:
        """Ends after the last of the steps, when the devices have computed `results`."""
        if self._tracing and step >= self._last:
            with jax.profiler.TraceAnnotation("dlm:wait"):
                jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that is being taken."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            if found := write_breakdown(self._folder, self._program()):
                self._say(found.table())
            folder = shlex.quote(str(self._folder))
            self._say(f"profile of steps {self._first} to {self._last}: xprof --logdir={folder}")
