"""What tests of several rooms share."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# PyPI's torch brings triton, which crashes the process if it is first imported after TensorFlow:
# each carries an LLVM of its own. In this order they live together.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401


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


@pytest.fixture(scope="session")
def on_processes() -> Callable[..., list[Any]]:
    """Runs a program in several processes that can meet.

    Its arguments are an address for `multihost.initialize`, how many they are, the process's own
    number, and what else is given. Returns the JSON of the last line that each prints.
    """

    def run(program: str, count: int, *arguments: object, devices: int = 1) -> list[Any]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        flags = (
            f"--xla_force_host_platform_device_count={devices}",
            "--xla_backend_optimization_level=0",
        )
        environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", program, address, str(count)]
        processes = [
            subprocess.Popen(
                [*command, str(number), *map(str, arguments)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        outputs = [process.communicate(timeout=600) for process in processes]
        for process, (_, error) in zip(processes, outputs):
            assert process.returncode == 0, error[-3000:]
        return [json.loads(out.splitlines()[-1]) for out, _ in outputs]

    return run


@pytest.fixture(scope="module")
def compiled_quickly() -> Iterator[None]:
    """Optimises what a module's tests compile as little as can be.

    For programs that run once on little data: compiling them takes all of the time.
    """
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
