"""Where the figures of a run go: JSON lines, TensorBoard events, and one line on the screen."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dlm_jax.errors import UserError
from dlm_jax.training import goodput


def truncate_after(file: Path, step: int) -> None:
    """Drops the lines of steps after `step`, and a last line that a killed process left
    half-written.

    A resumed run writes those steps again, so the file holds each step once.
    """
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    draft.replace(file)


def say(text: str) -> None:
    """Prints a line of progress; work goes on where nobody reads it any more."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends)


def append_metrics(file: Path, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
    """Adds the lines of an evaluation to the metrics of a run that is not being trained."""
    entries = [_entry(step, split, values) for split, values in results.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(entry) + "\n" for entry in entries)


def _entry(step: int, split: str, values: Mapping[str, float]) -> dict[str, Any]:
    line: dict[str, Any] = {"step": step, "split": split, "time": round(time.time(), 3)}
    if taken := line.keys() & values.keys():
        raise UserError(
            f"{split} has a figure named {min(taken)!r}, which every line has: rename it"
        )
    # JSON has neither NaN nor infinity.
    return line | {k: v if isinstance(v, int) else _finite(float(v)) for k, v in values.items()}


def _times(file: Path, split: str | None = None) -> list[float]:
    """When each line (of a split) was written, in seconds since the epoch."""
    times = []
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if split in (None, entry["split"]):
                    times.append(float(entry["time"]))
    return times


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class MetricsWriter:
    """Appends `{"step": …, "split": …, name: value …}` lines, and TensorBoard scalars.

    Attributes:
        accounted_until: until when goodput lines say what became of the time; where none is kept,
            when the run wrote its first line; None for a new run. In seconds since the epoch.
    """

    def __init__(self, file: Path, resume_from: int = 0) -> None:
        """Opens `file` for the steps after `resume_from`; events stand in the folder beside it."""
        file.parent.mkdir(parents=True, exist_ok=True)
        first = _times(file)[:1]
        truncate_after(file, resume_from)
        accounted = [*_times(file, goodput.SPLIT)[-1:], *first]
        self.accounted_until: float | None = accounted[0] if accounted else None
        self._lines = file.open("a", encoding="utf-8")
        self._events = _EventFile(file.parent / "tensorboard")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes one line; `split` is 'train' or 'eval/<task>'."""
        self._lines.write(json.dumps(_entry(step, split, values)) + "\n")
        self._lines.flush()
        # Curves are enough for TensorBoard; the ends of intervals are in the lines.
        curves = {n: float(v) for n, v in values.items() if not n.endswith(("_low", "_high"))}
        self._events.write(step, {f"{split}/{name}": value for name, value in curves.items()})

    def close(self) -> None:
        """Closes both files."""
        self._lines.close()
        self._events.close()


class SilentWriter(MetricsWriter):
    """Writes nothing: for the processes of a run other than the first."""

    def __init__(self) -> None:
        self.accounted_until = None

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class _EventFile:
    """TensorBoard's record format; its usual writers import TensorFlow, which costs seconds."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(
            value=[self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        )
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._file.close()


class Progress:
    """A live line on a terminal, and plain lines now and then where there is none."""

    def __init__(
        self,
        label: str,
        total_steps: int,
        first_step: int,
        seconds_between: float = 10.0,
        *,
        silent: bool = False,
    ):
        """Starts at `first_step` of `total_steps`; `label` names it; `silent` shows nothing."""
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Live

        self._label, self._total, self._step = label, total_steps, first_step
        self._pause, self._last = seconds_between, time.monotonic()
        self._live: Live | None = None
        self._silent = silent
        console = Console(file=sys.stderr)
        if console.is_terminal and not silent:
            self._live = Live(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._live.add_task(
                label, total=total_steps, completed=first_step, figures=""
            )
        self._began, self._first = time.monotonic(), first_step

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, step: int, figures: str) -> None:
        """Shows that `step` steps are done, with `figures` beside it."""
        self._step = step
        if self._silent:
            return
        if self._live:
            self._live.update(self._task, completed=step, figures=figures)
            return
        now = time.monotonic()
        if now - self._last >= self._pause or step == self._total:
            self._last = now
            left = (now - self._began) / max(1, step - self._first) * (self._total - step)
            say(f"{self._label}: step {step}/{self._total}  {figures}  {left:.0f} s left")

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        if self._live:
            self._live.console.print(text, highlight=False)
        elif not self._silent:
            say(text)
