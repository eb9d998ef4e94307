"""A toy run in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_jax.data.vocabularies import ByteVocabulary

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def byte_vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    ByteVocabulary().save(folder)
    return folder


@pytest.fixture(scope="session")
def dlm(tmp_path_factory):
    """Starts `dlm` with arguments on so many virtual devices; returns the process."""
    compiled = tmp_path_factory.mktemp("compiled")

    def start(*arguments, devices=1, **options):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # The same few programs are compiled by many processes, and need not be fast.
            "XLA_FLAGS": "--xla_backend_optimization_level=0 "
            f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "dlm_jax.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )

    return start


@pytest.fixture(scope="session")
def train_arguments(byte_vocabulary):
    """Arguments of a toy run, up to its folder."""

    def arguments(run_dir, *bindings):
        return [
            "train",
            f"--gin_file={HERE / 'toy.gin'}",
            f"--import={HERE / 'toy_tasks.py'}",
            f"--gin.VOCABULARY='{byte_vocabulary}'",
            f"--run_dir={run_dir}",
            *(f"--gin.{binding}" for binding in bindings),
        ]

    return arguments
