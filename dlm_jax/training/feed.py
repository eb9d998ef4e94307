"""From the loader's rows on the host to batches on the devices of all hosts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from dlm_jax.data.loader import Loader
from dlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches on the devices, and the place in the stream after the last one handed out.

    Attributes:
        batches: endless iterator of device batches.
        cursor: returns the JSON that restores the stream behind the last batch handed out.
    """

    batches: Iterator[dict[str, jax.Array]]
    cursor: Callable[[], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class HostRows:
    """Which rows of the global batch a host reads: the `index`-th of `count` equal runs.

    Hosts that split a layer between them (tensor parallelism over hosts) read the same rows.
    """

    index: int
    count: int

    @classmethod
    def find(cls, sharding: NamedSharding, batch_size: int, length: int) -> HostRows:
        """Reads them off the sharding of a batch [batch_size, length].

        Raises:
            UserError: the mesh splits the batch into more ways than divide it.
        """
        try:
            sharding.shard_shape((batch_size, length))
        except ValueError as error:
            axes = sharding.spec[0]
            names = (axes,) if isinstance(axes, str) else axes
            ways = math.prod(sharding.mesh.shape[name] for name in names or ())
            raise UserError(
                f"train.batch_size {batch_size} is not a multiple of the {ways} ways in which the "
                "mesh splits it"
            ) from error
        shards = sharding.addressable_devices_indices_map((batch_size, length)).values()
        spans = sorted({rows.indices(batch_size)[:2] for rows, *_ in filter(None, shards)})
        first, last = spans[0][0], spans[-1][1]
        rows = last - first
        adjacent = all(end == begin for (_, end), (begin, _) in zip(spans, spans[1:]))
        if not adjacent or batch_size % rows or first % rows:
            return cls(0, 1)
        return cls(first // rows, batch_size // rows)


def on_devices(
    loader: Loader, sharding: NamedSharding, rows: HostRows
) -> Iterator[dict[str, jax.Array]]:
    """Yields the loader's batches as global arrays [batch, length].

    Args:
        loader: reads the `rows` of this host.
        sharding: of every array.
        rows: which rows of the global batch the loader's are.
    """
    for batch in loader:
        yield {name: _global(np.asarray(array), sharding, rows) for name, array in batch.items()}


def _global(local: np.ndarray, sharding: NamedSharding, rows: HostRows) -> jax.Array:
    here, length = local.shape
    total = here * rows.count

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        begin, end, _ = index[0].indices(total)
        offset = rows.index * here
        return local[begin - offset : end - offset, index[1]]

    return jax.make_array_from_callback((total, length), sharding, shard)
