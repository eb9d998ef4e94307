"""The device mesh: how many ways data, parameters and matrix products are split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from dlm_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Size of each mesh axis, in devices; at most one is -1 and takes what the others leave.

    Attributes:
        data: replicas, each with its own part of the batch and all of the parameters.
        fsdp: ways that the batch and the parameters are split together.
        tensor: ways that each layer's matrix products are split.

    Raises:
        UserError: when a size is neither positive nor -1, or when two are -1.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in MESH_AXES:
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
                raise UserError(
                    f"MeshConfig.{name}={size!r} is neither a positive number of devices nor -1."
                )
        unknown = [name for name in MESH_AXES if getattr(self, name) == -1]
        if len(unknown) > 1:
            raise UserError(f"MeshConfig has -1 for {' and '.join(unknown)}; only one may be -1.")

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """Sizes of the axes (data, fsdp, tensor) on `num_devices` devices.

        Raises:
            UserError: when the sizes do not multiply to `num_devices`.
        """
        sizes = [getattr(self, name) for name in MESH_AXES]
        known = math.prod(size for size in sizes if size != -1)
        if num_devices % known or (-1 not in sizes and known != num_devices):
            written = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes))
            raise UserError(f"MeshConfig({written}) does not fit {num_devices} device(s).")
        data, fsdp, tensor = (num_devices // known if size == -1 else size for size in sizes)
        return data, fsdp, tensor


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes ('data', 'fsdp', 'tensor'), for use with `jax.set_mesh`.

    Args:
        config: sizes of the axes.
        devices: devices to use, by default all of them.

    Raises:
        UserError: when the sizes do not multiply to the number of devices.
    """
    used = jax.devices() if devices is None else list(devices)
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(config.shape(len(used)), MESH_AXES, axis_types, devices=used)
