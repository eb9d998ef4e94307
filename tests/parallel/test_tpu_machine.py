"""Machines with and without TPU chips, as their device files tell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dlm_jax.parallel.tpu_machine import keep_libtpu_quiet, on_tpu_machine


def machine(root, vendor="0x1ae0", device=None):
    pci = root / "sys/bus/pci/devices/0000:00:04.0"
    pci.mkdir(parents=True)
    (pci / "vendor").write_text(f"{vendor}\n")
    if device is not None:
        (root / "dev" / device).parent.mkdir(parents=True)
        (root / "dev" / device).touch()
    return root


@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_chips_of_every_generation_are_found(tmp_path, device):
    root = machine(tmp_path, device=device)
    assert on_tpu_machine({}, root)
    assert on_tpu_machine({"JAX_PLATFORMS": "tpu,cpu"}, root)
    assert not on_tpu_machine({"JAX_PLATFORMS": "cpu"}, root)
    assert not on_tpu_machine({"TPU_SKIP_MDS_QUERY": "1"}, root)


def test_other_devices_are_no_chips(tmp_path):
    assert not on_tpu_machine({}, machine(tmp_path / "a", "0x10de", "vfio/0"))
    assert not on_tpu_machine({}, machine(tmp_path / "b", device="vfio/vfio"))
    assert not on_tpu_machine({}, machine(tmp_path / "c"))
    assert not on_tpu_machine({}, tmp_path / "none")


def test_libtpu_is_told_nothing_where_there_may_be_a_chip(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for variables in ({"TPU_WORKER_ID": "0"}, {"JAX_FORCE_TPU_INIT": "1"}):
        environment = dict(variables)
        keep_libtpu_quiet(environment, tmp_path)
        assert environment == variables
    environment = {}
    keep_libtpu_quiet(environment, machine(tmp_path / "tpu", device="accel0"))
    assert environment == {}
    keep_libtpu_quiet(environment, tmp_path)
    assert environment["TPU_SKIP_MDS_QUERY"] == "1"
    after_import = {"TPU_LIBRARY_PATH": "libtpu.so", "TPU_SKIP_MDS_QUERY": "1"}
    keep_libtpu_quiet(after_import, tmp_path)
    assert after_import["TPU_WORKER_HOSTNAMES"] == "localhost"


def test_a_command_without_a_tpu_prints_nothing_of_libtpu():
    pytest.importorskip("libtpu")
    code = (
        "import sys; from dlm_jax import cli; cli.main(['--version', '--debug']);"
        "cli.main(['inspect', 'nowhere']); import jax; jax.devices()"
    )
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "JAX_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=variables
    )
    assert done.returncode == 0
    assert done.stderr.startswith("dlm: error: source 'nowhere'") and done.stderr.count("\n") == 1
