"""Notices a training step that is compiled more than once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Counts what XLA compiles within blocks of the thread that made it.

    A step that is compiled again because a shape, a type or a sharding has changed costs minutes
    on a large model, every time, without a word from JAX.
    """

    def __init__(self) -> None:
        self.count = 0
        self._thread = threading.get_ident()
        self._counting = False
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts compilations while the block runs."""
        self._counting = True
        try:
            yield
        finally:
            self._counting = False

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **details: str | int) -> None:
        if self._counting and event == _EVENT and threading.get_ident() == self._thread:
            self.count += 1
