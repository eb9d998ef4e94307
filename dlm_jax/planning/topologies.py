"""Slices and hosts that are not there, by name: `v5e:4x4`, `v5p-64`, `h100:16`, `cpu:8`."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from dlm_jax.errors import UserError, nearest

if TYPE_CHECKING:
    import jax

    from dlm_jax.parallel.accelerators import Accelerator

# Shapes that Google Cloud gives a slice of so many chips.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBIC = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A generation of accelerators.

    Attributes:
        name: as topologies name it.
        platform: 'tpu', 'cuda' or 'cpu'.
        device_kind: JAX's name of one device, the key of the accelerator table.
        shapes: shape of a TPU slice by its number of chips.
        cores_per_name: cores that 'v5p-8' counts for each chip; 1 where the name counts chips.
        chip_config: of libtpu; 'megacore' makes one device of the two cores of a v4 chip.
    """

    name: str
    platform: str
    device_kind: str
    shapes: dict[int, str] = dataclasses.field(default_factory=dict)
    cores_per_name: int = 1
    chip_config: str | None = None


FAMILIES = {
    family.name: family
    for family in (
        Family("v4", "tpu", "TPU v4", _CUBIC, 2, "megacore"),
        Family("v5e", "tpu", "TPU v5 lite", _FLAT),
        Family("v5p", "tpu", "TPU v5", _CUBIC, 2),
        Family("v6e", "tpu", "TPU v6 lite", _FLAT),
        Family("tpu7x", "tpu", "TPU7x", _CUBIC, 2),
        Family("h100", "cuda", "NVIDIA H100 80GB HBM3"),
        Family("cpu", "cpu", "cpu"),
    )
}
_NAME = re.compile(r"(?P<family>[a-z0-9]+)(?P<mark>[:-])(?P<size>[0-9]+(x[0-9]+)*)")
_GPUS_PER_HOST = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice (or several), or hosts of GPUs, by its parsed name; starts no backend.

    Attributes:
        family: generation of the accelerators.
        dimensions: chips along each axis of a TPU slice, or the number of devices.
        slices: number of TPU slices, joined by the data-centre network.
    """

    family: Family
    dimensions: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, text: str, slices: int = 1) -> Topology:
        """Reads 'v5e:4x4' (chips along each axis), 'v5e-16' (as clouds name slices) or 'h100:8'.

        Raises:
            UserError: the name is none of these, or no slice has this shape.
        """
        match = _NAME.fullmatch(text)
        if match is None or match["family"] not in FAMILIES:
            raise UserError(_unknown(text))
        if slices < 1:
            raise UserError(f"--slices={slices} is not a positive number of slices")
        family = FAMILIES[match["family"]]
        if family.platform != "tpu" and slices > 1:
            raise UserError(f"--slices={slices}: only TPUs have slices, and {text} has none")
        if "x" in match["size"] or match["mark"] == ":":
            dimensions = tuple(int(part) for part in match["size"].split("x"))
        else:
            dimensions = _by_count(family, int(match["size"]), text)
        topology = cls(family, dimensions, slices)
        topology._check(text)
        return topology

    @classmethod
    def of_size(cls, family: str, chips: int, slices: int = 1) -> Topology:
        """The usual slice of `chips` chips of a family.

        Raises:
            UserError: there is no such family or slice.
        """
        if family not in FAMILIES:
            raise UserError(_unknown(family))
        known = FAMILIES[family]
        if known.platform != "tpu":
            return cls.parse(f"{family}:{chips}")
        return cls.parse(f"{family}-{chips * known.cores_per_name}", slices)

    def _check(self, text: str) -> None:
        expected = len(next(iter(self.family.shapes.values())).split("x")) if self.is_tpu else 1
        if len(self.dimensions) != expected or min(self.dimensions) < 1:
            example = f"{self.family.name}:{next(iter(self.family.shapes.values()), '8')}"
            raise UserError(
                f"--topology={text} has {len(self.dimensions)} dimension(s), and "
                f"{self.family.name} has {expected}: {example}"
            )
        hosts_full = self.chips <= _GPUS_PER_HOST or self.chips % _GPUS_PER_HOST == 0
        if self.family.platform == "cuda" and not hosts_full:
            raise UserError(f"--topology={text}: hosts have {_GPUS_PER_HOST} GPUs each")
        if self.is_tpu and self.chips > 1 and any(size % 2 for size in self.dimensions[:2]):
            sizes = ", ".join(self.family.shapes.values())
            raise UserError(
                f"--topology={text} cannot be cut into hosts of 2x2 chips; usual shapes are {sizes}"
            )

    @property
    def is_tpu(self) -> bool:
        """Whether libtpu compiles for it."""
        return self.family.platform == "tpu"

    @property
    def chips(self) -> int:
        """Chips of one slice, or GPUs."""
        return math.prod(self.dimensions)

    @property
    def name(self) -> str:
        """The name that `parse` reads, without the number of slices."""
        return f"{self.family.name}:{'x'.join(map(str, self.dimensions))}"

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} slices of {self.name}"

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Which axes are rings: wrap-around links exist in cubes of 4x4x4 and in whole v5e pods."""
        if len(self.dimensions) == 3:
            whole = all(size >= 4 for size in self.dimensions)
            return (whole, whole, whole)
        rows, columns = (*self.dimensions, 1)[:2]
        return (rows == 16 and columns == 16, columns == 16, False)

    @property
    def accelerator(self) -> Accelerator | None:
        """What one device can do; None for CPUs."""
        from dlm_jax.parallel.accelerators import accelerator

        return accelerator(self.family.device_kind)

    def prepare(self) -> None:
        """Sets the environment for compilation without a device; before JAX starts a backend.

        Raises:
            UserError: the compiler is not installed, or a backend runs already with fewer CPUs.
        """
        prepare_environment()
        if self.is_tpu and importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"--topology={self.name} needs the TPU compiler: pip install "
                "'dlm_jax[plan]', or make planner in a clone"
            )
        if self.family.platform == "cuda" and not _has_cuda_plugin():
            raise UserError(
                f"--topology={self.name} needs JAX's CUDA plugin: pip install 'dlm_jax[cuda]'"
            )
        if self.family.platform == "cpu":
            import jax

            try:
                jax.config.update("jax_num_cpu_devices", self.chips)
            except RuntimeError:
                if len(jax.devices("cpu")) < self.chips:
                    raise UserError(
                        f"--topology={self.name} needs a process of its own: JAX already runs with "
                        f"{len(jax.devices('cpu'))} CPU device(s)"
                    ) from None

    def devices(self) -> list[jax.Device]:
        """Devices to compile for; they can run nothing, except those of 'cpu'.

        Raises:
            UserError: the compiler refuses the topology.
        """
        import jax
        from jax.experimental import topologies

        self.prepare()
        if self.family.platform == "cpu":
            return jax.devices("cpu")[: self.chips]
        options = self._tpu_options() if self.is_tpu else self._gpu_options()
        name = options.pop("topology_name")
        try:
            found = topologies.get_topology_desc(name, platform=self.family.platform, **options)
        except Exception as error:  # what the plugins raise is not typed
            text = " ".join(str(error).split())
            raise UserError(f"--topology={self.name} is refused by the compiler: {text}") from error
        return list(found.devices)

    def _tpu_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"topology_name": self.name, "wrap": self.wrap}
        if self.family.chip_config:
            options["chip_config_name"] = self.family.chip_config
        if self.chips == 1 or self.name in ("v5e:2x4", "v6e:2x4"):
            # One host holds the whole slice.
            options["chips_per_host_bounds"] = (*self.dimensions, 1)
        if self.slices > 1:
            options["num_slices"] = self.slices
        return options

    def _gpu_options(self) -> dict[str, Any]:
        from dlm_jax.planning.gpu_targets import TARGETS

        hosts = -(-self.chips // _GPUS_PER_HOST)
        return {
            "topology_name": "",
            "target_config": TARGETS[self.family.name],
            "topology": f"1x{hosts}x{self.chips // hosts}",
        }

    def domain(self, index: int, device: jax.Device) -> int:
        """Which slice, or host of GPUs, device number `index` belongs to."""
        if self.is_tpu:
            return getattr(device, "slice_index", 0) or 0
        return index // _GPUS_PER_HOST if self.family.platform == "cuda" else 0


def _by_count(family: Family, count: int, text: str) -> tuple[int, ...]:
    if family.platform != "tpu":
        return (count,)
    sizes = {chips * family.cores_per_name: shape for chips, shape in family.shapes.items()}
    if count not in sizes:
        known = ", ".join(f"{family.name}-{size}" for size in sizes)
        raise UserError(f"--topology={text} is none of {known}")
    return tuple(int(part) for part in sizes[count].split("x"))


# What people call them that the compiler does not.
_OTHER_NAMES = {
    "v7": "tpu7x",
    "v7x": "tpu7x",
    "ironwood": "tpu7x",
    "trillium": "v6e",
    "v5lite": "v5e",
    "v5litepod": "v5e",
    "cuda": "h100",
    "gpu": "h100",
}


def _unknown(text: str) -> str:
    names = [
        f"{family.name}:{shape}" for family in FAMILIES.values() for shape in family.shapes.values()
    ]
    family, mark, rest = re.match(r"([^:-]*)([:-]?)(.*)", text).groups()  # type: ignore[union-attr]
    if family.lower() in _OTHER_NAMES:
        hint = f" (did you mean {_OTHER_NAMES[family.lower()]}{mark}{rest}?)"
    else:
        hint = nearest(text.replace("-", ":"), [*names, "h100:8", "cpu:8"])
        hint = hint or nearest(family, FAMILIES)
    return (
        f"--topology={text} is no topology{hint}; it reads FAMILY:SHAPE, and families are "
        f"{', '.join(FAMILIES)}"
    )


@functools.cache
def _has_cuda_plugin() -> bool:
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return any(importlib.util.find_spec(name) is not None for name in names)


def prepare_environment() -> None:
    """Keeps JAX on the CPU, and libtpu from looking for the machine that it compiles for."""
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process on this machine is refused
        "TPU_WORKER_HOSTNAMES": "localhost",  # else libtpu warns, as it does without a type
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of this host; what is compiled for has its own
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        import jax

        jax.config.update("jax_platforms", "cpu")
