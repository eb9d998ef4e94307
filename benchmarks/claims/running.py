"""Runs the commands of an experiment one after the other, and remembers which are done.

One sweep is killed on the way, to see that it goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.claims.experiments import RUNS, Command, Experiment

ROOT = Path(__file__).parents[2]
KILLED = "killed.json"


def run(experiment: Experiment, log: Path = RUNS / "commands.jsonl") -> None:
    """Runs what is not done yet; a killed training or sweep goes on where it was.

    Raises:
      SystemExit: a command failed, with its exit code.
    """
    for command in experiment.commands:
        if _is_done(command, log):
            print(f"done before: {command.line}", file=sys.stderr)
            continue
        print(f"\n$ {command.line}", file=sys.stderr, flush=True)
        began, commit = time.time(), current_commit()
        before: dict[str, float] = {}
        if command.run_dir == experiment.killed:
            before = _kill_halfway(command)
        code = _start(command).wait()
        if before and not code:
            _compare(command.run_dir, before)
        entry = {
            "command": command.line,
            "commit": commit,
            "began": round(began, 1),
            "seconds": round(time.time() - began, 1),
            "code": code,
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")
        if code:
            raise SystemExit(code)


def _start(command: Command) -> subprocess.Popen[bytes]:
    words = [os.path.expandvars(word) for word in shlex.split(command.line)[1:]]
    return subprocess.Popen([sys.executable, "-m", "dlm_jax.cli", *words])


def _kill_halfway(sweep: Command, cells: int = 5) -> dict[str, float]:
    """Starts a sweep and kills it (SIGKILL) once so many cells are finished.

    Returns:
      When the result of each finished cell was written.
    """
    process = _start(sweep)
    while process.poll() is None:
        finished = _finished(sweep.run_dir)
        if len(finished) >= cells:
            process.kill()
            process.wait()
            return _finished(sweep.run_dir)
        time.sleep(0.2)
    raise SystemExit(f"{sweep.line} ended before it was killed, with code {process.returncode}")


def _finished(folder: Path) -> dict[str, float]:
    files = folder.glob("cells/*/result.json")
    return {file.parent.name: file.stat().st_mtime for file in files}


def _compare(folder: Path, before: dict[str, float]) -> None:
    """Writes what the second start of a killed sweep did."""
    after = _finished(folder)
    record = {
        "signal": "SIGKILL",
        "cells": len(after),
        "finished_before_the_kill": len(before),
        "written_again": sum(after[cell] != moment for cell, moment in before.items()),
        "computed_after_the_restart": len(after.keys() - before.keys()),
    }
    (folder / KILLED).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def entries(log: Path = RUNS / "commands.jsonl") -> list[dict[str, Any]]:
    """What has been run, in order."""
    if not log.is_file():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def current_commit() -> str:
    """Hash of the commit that is checked out; '+' follows it where programs differ from it."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True)
    changed = subprocess.run([*git, "status", "--porcelain", ":!docs"], capture_output=True).stdout
    return commit.stdout.decode().strip() + ("+" if changed.strip() else "")


def _is_trained(folder: Path) -> bool:
    """Whether the last checkpoint of a training run is there."""
    record = folder / "config.gin"
    if not record.is_file():
        return False
    steps = re.search(r"^TOTAL_STEPS = (\d+)", record.read_text(encoding="utf-8"), re.M)
    return steps is not None and (folder / "checkpoints" / steps[1]).is_dir()


def _is_done(command: Command, log: Path) -> bool:
    if command.verb == "prune":
        return (command.run_dir / "model.json").is_file()
    if command.verb == "train" and _is_trained(command.run_dir):
        return True
    return any(e["command"] == command.line and e["code"] == 0 for e in entries(log))
