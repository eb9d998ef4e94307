"""The parent of a process of several exits as schedulers need it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from dlm_jax.errors import EXIT_RETRY


def _start(program):
    code = f"from dlm_jax.parallel.supervision import supervise; supervise(); {program}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("pass", 0),
        ("import os; os.abort()", EXIT_RETRY),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
def test_exit_codes(program, code):
    assert _start(program).wait(timeout=60) == code


def test_a_signal_reaches_the_child():
    process = _start(
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7));"
        "print('ready', flush=True); time.sleep(60)"
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="the death of a parent is told by Linux alone")
def test_a_killed_parent_takes_the_child_with_it():
    process = _start("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        try:
            os.kill(child, 0)
            with open(f"/proc/{child}/stat") as status:
                if status.read().split()[2] == "Z":  # dead, and not yet collected by init
                    return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent")
