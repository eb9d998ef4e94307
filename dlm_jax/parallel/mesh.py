"""The device mesh: how many ways data, parameters and matrix products are split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from dlm_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Size of each mesh axis, in devices; at most one is -1 and takes what the others leave.

    `data`, `fsdp` and `tensor` are sizes within a slice, whose devices the fast interconnect (ICI)
    joins. Several slices, joined by the data-centre network (DCN), multiply them by the `dcn_`
    sizes: an axis of the mesh has `dcn_<axis> * <axis>` devices, whole slices side by side.

    Attributes:
        data: replicas, each with its own part of the batch and all of the parameters.
        fsdp: ways that the batch and the parameters are split together.
        tensor: ways that each layer's matrix products, and the vocabulary, are split.
        dcn_data: slices that are replicas of each other; what several slices are best used for,
            because only gradients cross the slower network, once a step.
        dcn_fsdp: slices that the parameters are split over.
        dcn_tensor: slices that each matrix product is split over.

    Raises:
        UserError: when a size is neither positive nor -1 (not -1 for slices), or when two are -1.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    dcn_data: int = 1
    dcn_fsdp: int = 1
    dcn_tensor: int = 1

    def __post_init__(self) -> None:
        for name in MESH_AXES:
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
                raise UserError(
                    f"MeshConfig.{name}={size!r} is neither a positive number of devices nor -1."
                )
        for name in (f"dcn_{name}" for name in MESH_AXES):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UserError(f"MeshConfig.{name}={size!r} is not a positive number of slices.")
        unknown = [name for name in MESH_AXES if getattr(self, name) == -1]
        if len(unknown) > 1:
            raise UserError(f"MeshConfig has -1 for {' and '.join(unknown)}; only one may be -1.")

    @property
    def slices(self) -> tuple[int, int, int]:
        """Slices along the axes (data, fsdp, tensor)."""
        return self.dcn_data, self.dcn_fsdp, self.dcn_tensor

    def slice_shape(self, num_devices: int) -> tuple[int, int, int]:
        """Sizes of the axes (data, fsdp, tensor) within one slice, of `num_devices` in all.

        Raises:
            UserError: when the sizes do not multiply to `num_devices`.
        """
        sizes = [getattr(self, name) for name in MESH_AXES]
        known = math.prod(size for size in sizes if size != -1) * math.prod(self.slices)
        if num_devices % known or (-1 not in sizes and known != num_devices):
            names = [*MESH_AXES, *(f"dcn_{name}" for name in MESH_AXES)]
            written = ", ".join(
                f"{name}={size}"
                for name, size in zip(names, [*sizes, *self.slices])
                if not (name.startswith("dcn_") and size == 1)
            )
            raise UserError(f"MeshConfig({written}) does not fit {num_devices} device(s).")
        data, fsdp, tensor = (num_devices // known if size == -1 else size for size in sizes)
        return data, fsdp, tensor

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """Sizes of the axes (data, fsdp, tensor) on `num_devices` devices, over all slices.

        Raises:
            UserError: when the sizes do not multiply to `num_devices`.
        """
        data, fsdp, tensor = self.slice_shape(num_devices)
        return data * self.dcn_data, fsdp * self.dcn_fsdp, tensor * self.dcn_tensor


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes ('data', 'fsdp', 'tensor'), for use with `jax.set_mesh`.

    Args:
        config: sizes of the axes.
        devices: devices to use, by default all of them.

    Raises:
        UserError: when the sizes do not multiply to the number of devices, or the devices do not
            form as many slices (or, where devices know of no slices, processes) as `config` has.
    """
    used = jax.devices() if devices is None else list(devices)
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    if math.prod(config.slices) == 1:
        return jax.make_mesh(config.shape(len(used)), MESH_AXES, axis_types, devices=used)
    within = config.slice_shape(len(used))
    by_process = len({getattr(device, "slice_index", 0) for device in used}) == 1
    unit, attribute = ("processes", "process_index") if by_process else ("slices", "slice_index")
    found = len({getattr(device, attribute) for device in used})
    if found != math.prod(config.slices):
        written = ", ".join(f"dcn_{name}={n}" for name, n in zip(MESH_AXES, config.slices))
        raise UserError(f"MeshConfig({written}) does not fit devices of {found} {unit}.")
    grid = mesh_utils.create_hybrid_device_mesh(
        within, config.slices, used, process_is_granule=by_process
    )
    return Mesh(grid, MESH_AXES, axis_types=axis_types)


def platform() -> str:
    """The platform that is compiled for: 'cpu', 'gpu', 'tpu' and so on.

    That is the one of the devices of `jax.set_mesh`, also when they are only described and the
    program is compiled ahead of time; without a mesh, JAX's default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def single_cpu() -> bool:
    """Whether the program is compiled for one CPU device, whose caches are worth looking after."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)
