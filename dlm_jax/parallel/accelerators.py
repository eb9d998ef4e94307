"""What the vendors state of each accelerator, looked up by JAX's name of the device."""

from __future__ import annotations

import dataclasses

_TERA = 1e12
_GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX counts them: a chip, but on TPU v2, v3 and 7x one of its two cores.

    Attributes:
        name: short name.
        peak_flops: dense bfloat16 operations per second (float16 on V100), a multiply-add
            counted as two.
        memory_bytes: nominal high-bandwidth memory, of which programs can use a little less.
        memory_bandwidth: bytes per second between that memory and the chip.
        usable_bytes: memory that XLA's compiler lets a program use (TPU), or what is left of it
            beside the CUDA context and the collectives' buffers (GPU, an assumption).
        link_bandwidth: bytes per second that one direction of one link to a neighbour carries: an
            ICI link of a TPU, all NVLinks (or PCIe) of a GPU together.
        network_bandwidth: bytes per second that a device may send over the data-centre network.
        devices_per_chip: devices that share a chip, and its links.
        devices_per_host: GPUs that the fast links connect; 0 for TPUs, where they span the slice.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float
    usable_bytes: float
    link_bandwidth: float = 0.0
    network_bandwidth: float = 0.0
    devices_per_chip: int = 1
    devices_per_host: int = 0


def _tpu(
    name: str,
    teraflops: float,
    gibibytes: float,
    gigabytes_second: float,
    *,
    usable: float,
    link: float,
    network: float,
    devices_per_chip: int = 1,
) -> Accelerator:
    return Accelerator(
        name,
        teraflops * _TERA,
        gibibytes * 2**30,
        gigabytes_second * _GIGA,
        usable_bytes=usable * 2**30,
        link_bandwidth=link * _GIGA,
        network_bandwidth=network * _GIGA,
        devices_per_chip=devices_per_chip,
    )


# CUDA's context, cuBLAS workspaces and NCCL's buffers: a few GiB of 80.
_GPU_USABLE = 0.92


def _gpu(
    name: str,
    teraflops: float,
    gigabytes: float,
    gigabytes_second: float,
    *,
    link: float,
    network: float,
) -> Accelerator:
    return Accelerator(
        name,
        teraflops * _TERA,
        gigabytes * _GIGA,
        gigabytes_second * _GIGA,
        usable_bytes=_GPU_USABLE * gigabytes * _GIGA,
        link_bandwidth=link * _GIGA,
        network_bandwidth=network * _GIGA,
        devices_per_host=8,
    )


_V5E = _tpu("v5e", 197, 16, 819, usable=15.75, link=45, network=3.125)
_V5P = _tpu("v5p", 459, 96, 2765, usable=95.74, link=90, network=6.25)
_V6E = _tpu("v6e", 918, 32, 1640, usable=31.25, link=90, network=12.5)
# Google Cloud's TPU system-architecture pages; per device, so halves where a chip has two. Usable
# memory is what the compiler of libtpu 0.0.42 states (nominal for v2 and v3); links carry 90 % of
# the nominal figure.
_TPUS = {
    "TPU v2": _tpu("v2", 22.5, 8, 350, usable=8, link=56, network=1.5, devices_per_chip=2),
    "TPU v3": _tpu("v3", 61.5, 16, 450, usable=16, link=75, network=1.5, devices_per_chip=2),
    "TPU v4": _tpu("v4", 275, 32, 1228, usable=31.25, link=45, network=6.25),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _tpu(
        "tpu7x", 1153.5, 96, 3690, usable=94.75, link=90, network=6.25, devices_per_chip=2
    ),
}
# NVIDIA's data sheets, dense tensor-core figures; matched by the start of the device kind, longest
# first, because the rest of it tells variants of equal speed apart. Links are one direction of all
# NVLinks, or of PCIe; the network is one adapter a GPU, as DGX and the clouds' 8-GPU hosts have.
_GPUS = {
    "NVIDIA B200": _gpu("b200", 2250, 180, 8000, link=900, network=50),
    "NVIDIA H200": _gpu("h200", 989, 141, 4800, link=450, network=50),
    "NVIDIA H100": _gpu("h100", 989, 80, 3350, link=450, network=50),
    "NVIDIA H100 PCIe": _gpu("h100-pcie", 756, 80, 2000, link=64, network=25),
    "NVIDIA A100": _gpu("a100", 312, 40, 1555, link=300, network=25),
    "NVIDIA A100-SXM4-80GB": _gpu("a100-80g", 312, 80, 2039, link=300, network=25),
    "NVIDIA A100 80GB PCIe": _gpu("a100-80g-pcie", 312, 80, 1935, link=32, network=12.5),
    "NVIDIA A10G": _gpu("a10g", 70, 24, 600, link=32, network=6.25),
    "NVIDIA L4": _gpu("l4", 121, 24, 300, link=32, network=6.25),
    "NVIDIA L40S": _gpu("l40s", 362, 48, 864, link=32, network=12.5),
    "Tesla V100": _gpu("v100", 125, 16, 900, link=150, network=12.5),
}


def accelerator(device_kind: str) -> Accelerator | None:
    """The accelerator that `jax.Device.device_kind` names, or None when unknown, as for CPUs."""
    if device_kind in _TPUS:
        return _TPUS[device_kind]
    for prefix in sorted(_GPUS, key=len, reverse=True):
        rest = device_kind.removeprefix(prefix)
        if rest != device_kind and (not rest or not rest[0].isalnum()):
            return _GPUS[prefix]
    return None
