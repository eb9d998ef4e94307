"""The metrics of a resumed run hold each step once, and TensorBoard reads the same figures."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest

from dlm_jax.errors import UserError
from dlm_jax.training.metrics import MetricsWriter, Progress, append_metrics, truncate_after


def _lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_resuming_drops_later_and_half_written_lines(tmp_path):
    file = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(file)
    for step in (10, 20, 30):
        writer.write(step, "train", {"loss": 1.0 / step})
    writer.close()
    with file.open("a") as tail:
        tail.write('{"step": 40, "split": "tr')  # killed while writing
    writer = MetricsWriter(file, resume_from=20)
    writer.write(30, "train", {"loss": 9.0})
    writer.close()
    assert [(e["step"], e["loss"]) for e in _lines(file)] == [(10, 0.1), (20, 0.05), (30, 9.0)]


def test_nothing_to_truncate(tmp_path):
    truncate_after(tmp_path / "absent.jsonl", 3)
    assert not (tmp_path / "absent.jsonl").exists()


def test_tensorboard_reads_the_events(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(7, "eval/prose", {"nelbo": 4.25})
    writer.close()
    # TensorBoard's own reader is the independent party; it is slow to import, hence a process of
    # its own.
    program = (
        "import sys\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "events = EventAccumulator(sys.argv[1]); events.Reload()\n"
        "[scalar] = events.Scalars('eval/prose/nelbo'); print(scalar.step, scalar.value)"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "tensorboard")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == ["7", "4.25"]


def test_a_run_goes_on_when_nobody_reads_its_progress(monkeypatch):
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("run", 3, 0, seconds_between=0.0) as progress:
        progress.say("begins")
        assert os.read(reader, 100) == b"begins\n"
        os.close(reader)
        progress.update(1, "loss 1")
        assert sys.stderr is not stream
        progress.update(2, "loss 2")
        progress.say("ends")
    sys.stderr.close()
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_figure_that_would_hide_what_every_line_has_is_refused_before_any_is_written(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="eval/b has a figure named 'step', which every line has"):
        append_metrics(file, 3, {"eval/a": {"n": 1.0}, "eval/b": {"step": 1.0}})
    assert not file.exists()
