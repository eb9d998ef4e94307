"""Each host reads the rows that its devices hold, whatever the mesh."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dlm_jax.errors import UserError
from dlm_jax.training.feed import HostData, HostRows
from dlm_jax.training.window import MetricsWindow

LENGTH = 6


def _sharding(*spans):
    """A stand-in for the sharding of a batch, with the row spans of this host's devices."""
    places = {number: (slice(*span), slice(None)) for number, span in enumerate(spans)}
    return types.SimpleNamespace(
        shard_shape=lambda shape: shape, addressable_devices_indices_map=lambda shape: places
    )


@pytest.mark.parametrize(
    ("spans", "rows"),
    [
        ([(0, 2), (2, 4)], HostRows(0, 2)),  # two hosts of two devices, rows 0 to 3 here
        ([(6, 8), (4, 6)], HostRows(1, 2)),
        ([(0, 8)] * 4, HostRows(0, 1)),  # tensor parallelism over hosts: all rows on each
        ([(4, 8), (4, 8)], HostRows(1, 2)),  # tensor parallelism within a host
        ([(None, None)], HostRows(0, 1)),
        ([(0, 2), (4, 6)], HostRows(0, 1)),  # scattered rows: read all, keep these
    ],
)
def test_rows_of_a_host(spans, rows):
    assert HostRows.find(_sharding(*spans), 8, LENGTH) == rows


def test_batches_arrive_row_for_row():
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data", None))
    batch = {"tokens": np.arange(4 * LENGTH).reshape(4, LENGTH)}
    rows = HostRows.find(sharding, 4, LENGTH)
    [found] = HostData([batch], rows, sharding, 4, LENGTH).batches()
    np.testing.assert_array_equal(found["tokens"], batch["tokens"])


def test_a_batch_that_the_mesh_cannot_split():
    mesh = jax.sharding.AbstractMesh((4,), ("data",), (AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data", None))
    with pytest.raises(UserError, match="batch_size 6 is not a multiple of the 4 ways"):
        HostRows.find(sharding, 6, LENGTH)


def test_a_line_that_a_checkpoint_cuts_in_two_is_the_same_line():
    names = ("loss_sum", "weight_sum", "nll_sum", "absorbed_tokens", "correct", "grad_norm")
    rng = np.random.default_rng(0)
    steps = [
        {name: np.float32(rng.uniform(0.1, 9.0)) for name in (*names, "tokens")}
        | {"finite": np.float32(1.0)}
        for _ in range(5)
    ]

    def line(window, entries):
        for entry in entries:
            window.add(entry)
        window.close(5)
        step, figures, bad = window.read()
        return step, {k: v for k, v in figures.items() if "second" not in k}, bad

    whole = line(MetricsWindow(lambda n: 0.1), steps)
    first = MetricsWindow(lambda n: 0.1)
    for entry in steps[:2]:
        first.add(entry)
    assert line(MetricsWindow(lambda n: 0.1, carried=first.partial()), steps[2:]) == whole
