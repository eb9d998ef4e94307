"""A parent that gives a process of several the exit code that schedulers restart on.

When process 0 dies, or a host falls silent, JAX's coordination service aborts the other processes
from a thread of C++ that no Python handler precedes. Their exit code would say SIGABRT, which some
schedulers take for a bug. A parent that does nothing but wait can say otherwise.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from types import FrameType

from dlm_jax.errors import EXIT_RETRY

_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def supervise() -> None:
    """Goes on in a child; the parent passes signals on and exits as the child did.

    A child that was aborted, or terminated before it could handle that, gives the exit code for
    'start me again'. A parent that is killed takes the child with it. Call it before any thread
    exists.
    """
    child = os.fork()
    if child == 0:
        if platform.system() == "Linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return

    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    _, status = os.waitpid(child, 0)
    os._exit(exit_code(os.waitstatus_to_exitcode(status)))


def exit_code(code: int) -> int:
    """Translates how a child ended (negative: by that signal) into the exit code of the command."""
    if code in (-signal.SIGABRT, -signal.SIGTERM):
        print(
            "dlm: another process of the run is gone, or this one was told to go", file=sys.stderr
        )
        return EXIT_RETRY
    return code if code >= 0 else 128 - code
