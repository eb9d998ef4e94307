"""Requests to stop: the scheduler's SIGTERM, a closed terminal, and the interrupt key."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from dlm_jax.errors import RetryError


class StopRequests:
    """Notes SIGTERM, SIGHUP and SIGINT while a run trains, so that it stops between two steps.

    A process that is alone handles the signals itself: no service, port or second thread has to
    work for a laptop's run to be saved. Of several processes, JAX's preemption service passes the
    SIGTERM of any one on to all and finds the step that none of them has passed; an interrupt is
    handed to it as a SIGTERM.

    Until the first step has begun there is nothing to save, and a request ends the run at once. So
    does a second interrupt of a process that is alone.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._in_steps = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            # Signals can be handled in the main thread alone; a notebook's worker goes without.
            alone = jax.process_count() == 1
            handlers = {signal.SIGINT: self._note if alone else _as_termination}
            if alone:
                handlers[signal.SIGTERM] = self._note
                # A terminal that was closed; nohup has it ignored, and so it stays.
                if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                    handlers[signal.SIGHUP] = self._note
            self._previous = {
                number: signal.signal(number, handler) for number, handler in handlers.items()
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def steps_begin(self) -> None:
        """From now on a request waits for the end of a step."""
        self._in_steps = True

    def reached(self, step: int) -> bool:
        """Whether to save after `step` and stop; every process must ask after each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def stop(self, step: int) -> None:
        """Raises what ends the command, after `step` was saved.

        Raises:
            KeyboardInterrupt: it was an interrupt.
            RetryError: it was a preemption.
        """
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt(f"step {step} is saved; the same command goes on")
        raise RetryError(f"preempted; step {step} is saved, and the same command goes on")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._in_steps:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise RetryError("preempted before the first step; the same command goes on")
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number


def _as_termination(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
