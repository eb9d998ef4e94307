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
    """

    name: str
    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float


def _tpu(name: str, teraflops: float, gibibytes: float, gigabytes_second: float) -> Accelerator:
    return Accelerator(name, teraflops * _TERA, gibibytes * 2**30, gigabytes_second * _GIGA)


def _gpu(name: str, teraflops: float, gigabytes: float, gigabytes_second: float) -> Accelerator:
    return Accelerator(name, teraflops * _TERA, gigabytes * _GIGA, gigabytes_second * _GIGA)


# Google Cloud's TPU system-architecture pages; per device, so halves where a chip has two.
_TPUS = {
    "TPU v2": _tpu("v2", 22.5, 8, 350),
    "TPU v3": _tpu("v3", 61.5, 16, 450),
    "TPU v4": _tpu("v4", 275, 32, 1228),
    "TPU v5 lite": _tpu("v5e", 197, 16, 819),
    "TPU v5e": _tpu("v5e", 197, 16, 819),
    "TPU v5": _tpu("v5p", 459, 96, 2765),
    "TPU v5p": _tpu("v5p", 459, 96, 2765),
    "TPU v6 lite": _tpu("v6e", 918, 32, 1640),
    "TPU v6e": _tpu("v6e", 918, 32, 1640),
    "TPU7x": _tpu("tpu7x", 1153.5, 96, 3690),
}
# NVIDIA's data sheets, dense tensor-core figures; matched by the start of the device kind, longest
# first, because the rest of it tells variants of equal speed apart.
_GPUS = {
    "NVIDIA B200": _gpu("b200", 2250, 180, 8000),
    "NVIDIA H200": _gpu("h200", 989, 141, 4800),
    "NVIDIA H100": _gpu("h100", 989, 80, 3350),
    "NVIDIA H100 PCIe": _gpu("h100-pcie", 756, 80, 2000),
    "NVIDIA A100": _gpu("a100", 312, 40, 1555),
    "NVIDIA A100-SXM4-80GB": _gpu("a100-80g", 312, 80, 2039),
    "NVIDIA A100 80GB PCIe": _gpu("a100-80g-pcie", 312, 80, 1935),
    "NVIDIA A10G": _gpu("a10g", 70, 24, 600),
    "NVIDIA L4": _gpu("l4", 121, 24, 300),
    "NVIDIA L40S": _gpu("l40s", 362, 48, 864),
    "Tesla V100": _gpu("v100", 125, 16, 900),
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
