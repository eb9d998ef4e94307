"""Mesh sizes, the table of accelerators, and the host allocator."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jax
import pytest
from jax.sharding import AxisType

from dlm_jax.errors import UserError
from dlm_jax.parallel.accelerators import accelerator
from dlm_jax.parallel.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize(
    ("config", "devices", "shape"),
    [
        (MeshConfig(), 8, (8, 1, 1)),
        (MeshConfig(data=1, fsdp=-1), 8, (1, 8, 1)),
        (MeshConfig(data=-1, fsdp=2, tensor=2), 16, (4, 2, 2)),
        (MeshConfig(data=2, fsdp=2, tensor=2), 8, (2, 2, 2)),
    ],
)
def test_one_axis_takes_what_the_others_leave(config, devices, shape) -> None:
    assert config.shape(devices) == shape


@pytest.mark.parametrize(("config", "devices"), [(MeshConfig(fsdp=3), 8), (MeshConfig(2, 2, 1), 8)])
def test_sizes_that_do_not_fit_are_a_sentence(config, devices) -> None:
    with pytest.raises(UserError, match=rf"fsdp=\d.* does not fit {devices} device"):
        config.shape(devices)


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 0}, {"tensor": -2}, {"data": 1.5}, {"fsdp": -1}, {"dcn_data": -1}]
)
def test_impossible_sizes_are_refused(sizes) -> None:
    with pytest.raises(UserError, match=next(iter(sizes))):
        MeshConfig(**sizes)


@pytest.mark.parametrize(
    ("config", "within", "shape"),
    [
        (MeshConfig(fsdp=4, dcn_data=2), (1, 4, 1), (2, 4, 1)),
        (MeshConfig(data=2, fsdp=-1, dcn_data=2), (2, 2, 1), (4, 2, 1)),
        (MeshConfig(data=1, fsdp=2, tensor=2, dcn_fsdp=2), (1, 2, 2), (1, 4, 2)),
    ],
)
def test_slices_multiply_the_sizes_within_a_slice(config, within, shape) -> None:
    assert config.slice_shape(8) == within
    assert config.shape(8) == shape


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What the arrangement of devices asks of one."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize("slices_known", [True, False])
def test_replicas_lie_on_whole_slices(slices_known) -> None:
    # Without slices, as with GPUs and several CPU processes, a process counts as one.
    devices = [
        FakeDevice(n, n % 2 if slices_known else 0, 0 if slices_known else n % 2) for n in range(8)
    ]
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, data=1, dcn_data=2), devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    for replica in range(2):
        assert {device.id % 2 for device in mesh.devices[replica].flat} == {replica}
    with pytest.raises(UserError, match=r"dcn_data=4.* does not fit devices of 2 "):
        make_mesh(MeshConfig(dcn_data=4), devices)


def test_a_mesh_has_automatic_axes_in_order() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla V100-SXM2-16GB", "v100"),
    ],
)
def test_device_kinds_find_their_accelerator(kind, name) -> None:
    found = accelerator(kind)
    assert found is not None and found.name == name
    # A kind is known with all its figures, in operations and bytes: none is off by a thousand.
    assert 1e13 < found.peak_flops < 1e16
    assert 8e9 <= found.memory_bytes < 3e11
    assert 1e11 < found.memory_bandwidth < 1e13


@pytest.mark.parametrize("kind", ["cpu", "", "NVIDIA H1000", "TPU v99", "NVIDIA L400"])
def test_unknown_device_kinds_have_none(kind) -> None:
    assert accelerator(kind) is None


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_kept_by_the_process() -> None:
    program = """
import ctypes, resource
from dlm_jax.parallel.host_memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
kept = keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(3):
    before = faults()
    place = libc.malloc(64 << 20)
    ctypes.memset(place, 1, 64 << 20)
    libc.free(place)
    counts.append(faults() - before)
print(int(kept), *counts)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    kept, first, second, third = map(int, run.stdout.split())
    assert kept == 1
    # The first touch clears the pages, which may be huge ones of 2 MiB; later buffers of that size
    # find them cleared.
    assert first >= 32 and second < first / 8 and third < first / 8
