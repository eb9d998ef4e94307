"""A process that dies takes the others with it at once; one that says goodbye does not."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from dlm_jax.errors import EXIT_RETRY

HOST = """
import sys, time
from dlm_jax.parallel.lifeline import host_lifelines
line = host_lifelines(2, lambda text: print(text, flush=True))
print("held", flush=True)
{end}
"""
OTHER = """
import sys, time
from dlm_jax.parallel.lifeline import join_lifeline
line = join_lifeline("127.0.0.1", {published!r})
{end}
"""
WAIT = "time.sleep(60)"
GOODBYE = "line.let_go(); sys.stdin.readline()"


def _python(program):
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _three(host_end, other_end):
    host = _python(HOST.format(end=host_end))
    published = host.stdout.readline().strip()
    others = [_python(OTHER.format(published=published, end=end)) for end in (WAIT, other_end)]
    assert host.stdout.readline() == "held\n"
    return [host, *others]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_the_others_within_seconds(victim):
    processes = _three(WAIT, WAIT)
    processes[victim].kill()
    began = time.monotonic()
    for process in processes:
        _, error = process.communicate(timeout=30)
        if process is not processes[victim]:
            assert process.returncode == EXIT_RETRY, error
    assert time.monotonic() - began < 5


def test_a_goodbye_ends_nobody():
    processes = _three(WAIT, GOODBYE)
    processes[2].communicate("\n", timeout=30)
    assert processes[2].returncode == 0
    time.sleep(0.3)
    assert processes[0].poll() is None and processes[1].poll() is None
    processes[0].kill()
    for process in processes:
        process.communicate(timeout=30)
