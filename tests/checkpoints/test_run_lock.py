"""One process at a time trains in a folder; a killed one keeps nobody out."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dlm_jax.checkpoints.run_lock import run_lock
from dlm_jax.errors import UserError

HOLDER = """
import sys, time
from pathlib import Path
from dlm_jax.checkpoints.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_named_and_a_killed_one_forgotten(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        refused = f"process {holder.pid} on .* is training in .*: wait for it, stop it, or name"
        with pytest.raises(UserError, match=refused), run_lock(tmp_path, patience=0.5):
            pass
    finally:
        holder.kill()
        holder.wait()
    for _ in range(2):  # and it is let go of
        with run_lock(tmp_path, patience=0.0):
            pass
