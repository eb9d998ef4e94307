"""Examples into rows: the batch contract, filled without ever looking for a padding id.

Batch, a dict of arrays [batch, length]: `tokens` int32 · `maskable` bool · `segment_ids` int32
(0 is padding, then 1, 2, … in a row) · `positions` int32 (from 0 in each example) ·
`example_ids` uint32 (which example each token belongs to; 0 on padding).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dlm_jax.data.table import ExampleTable
from dlm_jax.errors import UserError

Batch = dict[str, np.ndarray]


class RowPacker:
    """First-fit assignment of a run of examples to the rows of one batch.

    Args:
      rows: rows of the batch.
      length: tokens of a row.
      pack: whether a row may hold several examples.
    """

    def __init__(self, rows: int, length: int, pack: bool):
        self._free = np.full(rows, length, np.int64)
        self._used = 0
        self._pack = pack

    def place(self, length: int) -> int | None:
        """Returns the row that takes an example of `length` tokens, or None: the batch is full."""
        if not self._pack:
            if self._used == len(self._free):
                return None
            self._used += 1
            return self._used - 1
        fitting = self._free >= length
        row = int(fitting.argmax())
        if not fitting[row]:
            return None
        self._free[row] -= length
        return row


def empty_batch(rows: int, length: int, pad_id: int) -> Batch:
    """Returns a batch of padding only, [rows, length]."""
    shape = (rows, length)
    return {
        "tokens": np.full(shape, pad_id, np.int32),
        "maskable": np.zeros(shape, bool),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "example_ids": np.zeros(shape, np.uint32),
    }


class PlacedExample(NamedTuple):
    """One example of a row."""

    tokens: np.ndarray  # int32 [tokens of the example]
    prompt_length: int  # tokens before the maskable part
    example_id: int


def fill_rows(rows: Sequence[Sequence[PlacedExample]], length: int, pad_id: int) -> Batch:
    """Writes examples into rows.

    Args:
      rows: the examples of each row, in order.
      length: tokens of a row.
      pad_id: id that fills what is left.

    Returns:
      A batch [rows, length]; example ids are taken modulo 2**32.
    """
    batch = empty_batch(len(rows), length, pad_id)
    for row, examples in enumerate(rows):
        begin = 0
        for segment, (tokens, prompt_length, example_id) in enumerate(examples, start=1):
            end = begin + len(tokens)
            batch["tokens"][row, begin:end] = tokens
            batch["maskable"][row, begin + prompt_length : end] = True
            batch["segment_ids"][row, begin:end] = segment
            batch["positions"][row, begin:end] = np.arange(len(tokens))
            batch["example_ids"][row, begin:end] = example_id % 2**32
            begin = end
    return batch


def evaluation_batches(
    table: ExampleTable,
    batch_size: int,
    length: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields every example once, one a row, in the order of the table.

    The last batch is filled up with empty rows (`segment_ids` 0), so that all batches have one
    shape and all hosts the same number of them. `example_ids` is the index in the table.

    Args:
      table: the examples.
      batch_size: rows on this host.
      length: tokens of a row.
      process_index: this host, of `process_count`; hosts take neighbouring runs of rows.

    Raises:
      UserError: an example is longer than a row.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1 row.")
    longest = int(table.lengths.max())
    if longest > length:
        raise UserError(f"An example of {longest} tokens does not fit into length={length}.")
    for first in range(0, len(table), batch_size * process_count):
        begin = first + process_index * batch_size
        indices: Iterable[int] = range(begin, min(begin + batch_size, len(table)))
        rows = [[PlacedExample(*table.example(i), i)] for i in indices]
        rows += [[] for _ in range(batch_size - len(rows))]
        yield fill_rows(rows, length, table.pad_id)
