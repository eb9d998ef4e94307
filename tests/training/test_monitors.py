"""What watches a run: hung steps, seconds, recompilations, profiles, requests to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.errors import EXIT_RETRY, RetryError, UserError
from dlm_jax.training import goodput
from dlm_jax.training.compilations import CompilationCounter
from dlm_jax.training.goodput import Goodput
from dlm_jax.training.metrics import MetricsWriter
from dlm_jax.training.preemption import StopRequests
from dlm_jax.training.profiling import StepProfiler, check_profile_steps
from dlm_jax.training.run import check_counts
from dlm_jax.training.watchdog import Watchdog


def test_a_hung_step_shows_where_it_hangs_and_asks_for_a_retry():
    program = (
        "import time\n"
        "from dlm_jax.training.watchdog import Watchdog\n"
        "dog = Watchdog(0.3)\n"
        "time.sleep(0.5)\n"  # compilation, before the first beat
        "dog.beat()\n"
        "with dog.paused(): time.sleep(0.5)\n"
        "dog.beat()\n"
        "print('still here', flush=True)\n"
        "def collective_that_never_ends(): time.sleep(60)\n"
        "collective_that_never_ends()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == EXIT_RETRY
    assert done.stdout == "still here\n"
    assert "no training step has ended for 0.3 s" in done.stderr
    assert "collective_that_never_ends" in done.stderr


def test_no_watchdog_and_a_wrong_one():
    Watchdog(0).beat()
    with pytest.raises(UserError, match="train.watchdog_seconds must not be negative, not -1"):
        check_counts("train", 1, 1, 1, 1, -1)


def test_goodput_adds_up_to_the_time_since_the_run_began(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    file = tmp_path / "metrics.jsonl"

    def process(began, steps, resume_from=0):
        writer = MetricsWriter(file, resume_from)
        counted = Goodput(began, writer.accounted_until)
        now[0] += 20  # start-up
        with counted.measure("data"):
            now[0] += 1
        counted.started()
        for step in steps:
            now[0] += 5
            writer.write(step, "train", {"loss": 1.0})
            with counted.measure("checkpoint"):
                now[0] += 2
            writer.write(step, goodput.SPLIT, counted.line())
        writer.close()

    process(now[0], (1, 2))
    end_of_first_line = 1000 + 20 + 1 + 5 + 2
    # The second line's step is lost with the process, and the next one begins 100 s later.
    now[0] += 100
    process(now[0], (2,), resume_from=1)
    seconds = goodput.totals(file)
    assert sum(seconds.values()) == pytest.approx(now[0] - 1000, abs=0.01)
    assert seconds["restart"] == pytest.approx(1000 + 35 + 100 - end_of_first_line, abs=0.01)
    assert seconds["startup"] == pytest.approx(40, abs=0.01)
    assert (seconds["step"], seconds["data"], seconds["checkpoint"]) == (10, 2, 4)
    assert goodput.working_seconds(file) == pytest.approx(56, abs=0.01)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == goodput.SPLIT] == [1, 2]
    assert goodput.sentence(seconds).startswith("goodput 6.1% of 163 s: step 6.1%")


def test_a_second_compilation_is_counted_and_others_are_not():
    step = jax.jit(lambda x: x + 1)
    counter = CompilationCounter()
    try:
        for length, expected in ((3, 1), (3, 1), (4, 2)):
            with counter.counting():
                step(np.zeros(length))
            jax.jit(lambda x, n=length: x * n)(1.0)  # an evaluation's, say
            assert counter.count == expected
    finally:
        counter.close()
    with counter.counting():
        step(np.zeros(5))
    assert counter.count == 2


def test_a_profile_of_the_steps_asked_for(tmp_path):
    said = []
    profiler = StepProfiler(tmp_path, (2, 3), said.append)
    for step in range(1, 6):
        profiler.before(step, jnp.ones(1))
        profiler.after(step, jnp.sin(1.0))
        assert bool(said) == (step >= 3)
    profiler.close()
    assert said == [f"profile of steps 2 to 3: xprof --logdir={tmp_path}"]
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", [(0, 3), (5, 4)])
def test_a_profile_of_impossible_steps(steps):
    with pytest.raises(UserError, match="train.profile_steps"):
        check_profile_steps(steps)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_preemption_waits_for_the_end_of_the_step(number):
    with StopRequests() as stops:
        stops.steps_begin()
        assert not stops.reached(1)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stops.reached(2)
        with pytest.raises(RetryError, match="step 2 is saved"):
            stops.stop(2)


def test_a_closed_terminal_is_ignored_where_it_was():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequests() as stops:
            stops.steps_begin()
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stops.reached(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_preemption_before_the_first_step_ends_at_once():
    with StopRequests(), pytest.raises(RetryError, match="before the first step"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_one_interrupt_saves_and_a_second_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with StopRequests() as stops:
        stops.steps_begin()
        signal.raise_signal(signal.SIGINT)
        assert stops.reached(4)
        with pytest.raises(KeyboardInterrupt, match="step 4 is saved"):
            stops.stop(4)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
