"""From the loader's rows on the host to batches on the devices of all hosts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dlm_jax.data.loader import Loader
from dlm_jax.data.packing import Batch
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError
from dlm_jax.parallel import multihost
from dlm_jax.training.sharding import batch_sharding


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
                f"batch_size {batch_size} is not a multiple of the {ways} ways in which the "
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


@dataclasses.dataclass(frozen=True)
class HostData:
    """The training examples as one host reads them.

    Attributes:
        loader: reads the rows of this host.
        rows: which rows of the global batch those are.
        sharding: of every array [batch_size, length] of the global batch.
        batch_size: rows of the global batch.
        length: tokens a row.
    """

    loader: Loader
    rows: HostRows
    sharding: NamedSharding
    batch_size: int
    length: int

    @classmethod
    def open(
        cls, task: str, vocabulary: Vocabulary, mesh: Mesh, batch_size: int, length: int, **how: Any
    ) -> HostData:
        """Opens a task on every host together, for batches under the active sharding rules.

        Args:
            task: registered task or mixture.
            vocabulary: how text becomes ids.
            mesh: of the run.
            batch_size: rows of the global batch.
            length: tokens a row.
            **how: further arguments of `Loader`.

        Raises:
            UserError: the data of one of the hosts are unusable, or the mesh does not divide the
                batch.
        """
        sharding = batch_sharding(mesh)
        rows = HostRows.find(sharding, batch_size, length)
        loader = multihost.together(
            "data",
            lambda: Loader(
                task,
                vocabulary,
                batch_size=batch_size // rows.count,
                length=length,
                process_index=rows.index,
                process_count=rows.count,
                **how,
            ),
        )
        return cls(loader, rows, sharding, batch_size, length)

    def batches(self) -> Iterator[dict[str, jax.Array]]:
        """Yields global arrays [batch_size, length], endlessly."""
        return self.on_devices(self.loader)

    def on_devices(self, batches: Iterable[Batch]) -> Iterator[dict[str, jax.Array]]:
        """Yields global arrays of batches that hold the rows of this host."""
        for batch in batches:
            yield {
                name: _global(np.asarray(array), self.sharding, self.rows)
                for name, array in batch.items()
            }


def _global(local: np.ndarray, sharding: NamedSharding, rows: HostRows) -> jax.Array:
    here, length = local.shape
    total = here * rows.count

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        begin, end, _ = index[0].indices(total)
        offset = rows.index * here
        return local[begin - offset : end - offset, index[1]]

    return jax.make_array_from_callback((total, length), sharding, shard)
