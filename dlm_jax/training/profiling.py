"""A trace of some steps, and how to look at it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dlm_jax.errors import UserError


class StepProfiler:
    """Writes a profile of the steps `first` to `last`, both included, of process 0."""

    def __init__(
        self, folder: Path, steps: tuple[int, int] | None, say: Callable[[str], None]
    ) -> None:
        """Args: folder: where traces go. steps: which ones; None = none. say: prints a line.

        Raises:
            UserError: the steps are not in order.
        """
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise UserError(
                f"train.profile_steps is {tuple(steps)}: it must be (first, last) with "
                "1 <= first <= last"
            )
        wanted = steps is not None and jax.process_index() == 0
        self._first, self._last = steps if steps is not None and wanted else (0, 0)
        self._folder, self._say = folder, say
        self._tracing = False

    def before(self, step: int) -> None:
        """Starts with the first of the steps, or in their midst where a run resumes there."""
        if not self._tracing and self._first <= step <= self._last:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step: int, results: Any) -> None:
        """Ends after the last of the steps, when the devices have computed `results`."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that is being taken."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            folder = shlex.quote(str(self._folder))
            self._say(f"profile of steps {self._first} to {self._last}: xprof --logdir={folder}")
