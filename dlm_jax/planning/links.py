"""Where the devices of a mesh stand, and how many link directions a ring of them keeps busy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax

    from dlm_jax.planning.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Links:
    """The places of devices, in the order of the mesh.

    Attributes:
        domains: slice (or host of GPUs) of each device; fast links join those of equal number.
        coordinates: of each device's chip in its slice; empty tuples where there is no torus.
        dimensions: chips along each axis of a slice.
        wrap: which of these axes are rings.
    """

    domains: tuple[int, ...]
    coordinates: tuple[tuple[int, ...], ...] = ()
    dimensions: tuple[int, ...] = ()
    wrap: tuple[bool, ...] = ()

    @classmethod
    def of(
        cls, devices: Sequence[jax.Device], mesh: jax.sharding.Mesh, topology: Topology
    ) -> Links:
        """The places of the `devices` of a topology in a mesh over them."""
        numbers = {device: number for number, device in enumerate(devices)}
        ordered = list(mesh.devices.flat)
        domains = tuple(topology.domain(numbers[device], device) for device in ordered)
        if not topology.is_tpu:
            return cls(domains)
        axes = len(topology.dimensions)
        coordinates = tuple(tuple(device.coords[:axes]) for device in ordered)
        return cls(domains, coordinates, topology.dimensions, topology.wrap[:axes])

    def directions(self, group: np.ndarray) -> int:
        """Link directions that rings over a group keep busy at each of its chips; at least 1.

        Args:
            group: numbers of devices [devices], those of one domain.
        """
        if not self.coordinates:
            return 1
        chips = np.array([self.coordinates[device] for device in group])
        spread = [len(set(column)) for column in chips.T]
        return ring_directions(spread, self.dimensions, self.wrap)


def ring_directions(spread: Sequence[int], dimensions: Sequence[int], wrap: Sequence[bool]) -> int:
    """Link directions that rings over a block of chips keep busy at each of them; at least 1.

    A block sends along the axes in which its chips differ. An axis that it fills, and whose ends
    are joined, gives both directions. An open row gives one: a ring laid through it goes out over
    one link direction and must come back over the other.

    Args:
        spread: chips of the block along each axis; empty where there is no torus.
        dimensions: chips of the slice along each axis.
        wrap: which of these axes are rings.
    """
    axes = zip(spread, dimensions, wrap)
    return max(1, sum(1 + (wraps and n == size) for n, size, wraps in axes if n > 1))
