"""What tests of several rooms share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def on_eight_devices() -> Callable[..., Any]:
    """Runs a program on eight virtual devices; returns the JSON of the last line that it prints."""

    def run(program: str, *, optimized: bool = False) -> Any:
        flags = ["--xla_force_host_platform_device_count=8"]
        if not optimized:  # Compiling quickly matters more here than running fast.
            flags.append("--xla_backend_optimization_level=0")
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
