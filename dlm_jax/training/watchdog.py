"""Ends a process whose training step hangs, and shows where it hangs."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

from dlm_jax.errors import EXIT_RETRY


class Watchdog:
    """Exits with the code for a retry when no step ends for too long.

    It starts with the first `beat`, so that the compilation of the first step does not count. A
    hung collective cannot be interrupted from Python: only the end of the process frees the host.
    """

    def __init__(self, seconds: float) -> None:
        """Args: seconds: longest time between two beats; 0 = no watchdog."""
        self._seconds = seconds
        self._last: float | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Says that a step has ended."""
        self._last = time.monotonic()
        if self._seconds and self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="dlm-watchdog", daemon=True)
            self._thread.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time of an evaluation or a save."""
        running, self._last = self._last is not None, None
        try:
            yield
        finally:
            if running:
                self._last = time.monotonic()

    def close(self) -> None:
        """Stops watching."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            last = self._last
            if last is not None and time.monotonic() - last > self._seconds:
                self._bite()

    def _bite(self) -> None:
        print(
            f"dlm: no training step has ended for {self._seconds:g} s (watchdog_seconds); "
            "where every thread stands:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        print("dlm: the same command goes on from the newest checkpoint", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_RETRY)
