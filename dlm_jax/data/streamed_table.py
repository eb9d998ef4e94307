"""Examples of a task that is too large to tokenise before the first step.

Its records are read in their order and tokenised a block at a time; the examples of a block are
shuffled among themselves. One block is in memory, and where it begins is all that a cursor keeps.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dlm_jax.data.stream import generator
from dlm_jax.data.table import (
    ExampleTable,
    Truncation,
    TruncationCounts,
    Truncator,
    check_length,
    tabulate,
)
from dlm_jax.data.tasks import Task, check_split
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class BlockStart:
    """Where a block begins.

    Attributes:
      epoch: how often the task has been read to its end.
      record: number of the block's first record in the split.
      place: number of the block's first example, through all epochs.
      counts: what truncation had done before.
    """

    epoch: int = 0
    record: int = 0
    place: int = 0
    counts: TruncationCounts = TruncationCounts()

    @staticmethod
    def parse(value: Mapping[str, Any]) -> BlockStart:
        """Reads the fields, as JSON values.

        Raises:
          KeyError, TypeError, ValueError: it is something else.
        """
        numbers = {name: int(value[name]) for name in ("epoch", "record", "place")}
        if min(numbers.values()) < 0:
            raise ValueError(f"negative numbers in {numbers}")
        return BlockStart(**numbers, counts=TruncationCounts(**value["counts"]))


class StreamedTable:
    """Examples by their running number, which must not fall behind the present block.

    The example at a place is a pure function of (task, split, vocabulary, truncation, block size,
    seed): epochs follow each other, blocks never reach over the end of one.

    Args:
      task: where the examples come from; reading it again must give the same records.
      split: which of its splits.
      vocabulary: how text becomes ids.
      length: tokens of a row; no example is longer.
      truncation: what becomes of longer ones.
      block_records: records that are tokenised, and shuffled among themselves, at a time.
      seed: of the order within blocks.
      shuffle: False keeps the order of the data set.
      limit: read only so many records of an epoch.

    Raises:
      UserError: the split is unknown or empty, or an example of the first block is unusable; from
        `length` and `example`, if one of a later block is.
    """

    def __init__(
        self,
        task: Task,
        split: str,
        vocabulary: Vocabulary,
        length: int,
        truncation: Truncation,
        *,
        block_records: int,
        seed: int,
        shuffle: bool = True,
        limit: int | None = None,
    ):
        check_split(task, split)
        check_length(length)
        self._task, self._split, self._vocabulary = task, split, vocabulary
        self._length, self._truncation = length, truncation
        self._block_records, self._seed, self._shuffle = block_records, seed, shuffle
        self._limit = limit
        self.pad_id = vocabulary.pad_id
        self._open(BlockStart())
        self._index(0)  # finds tasks without examples now, not in the first step

    def __str__(self) -> str:
        return f"read as needed, {self._block_records:,} records at a time"

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the examples, but for the records themselves."""
        settings = [self._vocabulary.fingerprint, self._length, self._task.plain_text]
        settings += [*dataclasses.astuple(self._truncation), self._block_records, self._limit]
        return "stream-" + hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    @property
    def counts(self) -> TruncationCounts:
        """What truncation has done up to the end of the present block."""
        return self._block.counts

    @property
    def position(self) -> dict[str, Any]:
        """Where the present block begins and what it holds, as JSON values for `seek`."""
        return {**dataclasses.asdict(self._start), "fingerprint": self._block.fingerprint}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Makes the block at a position the present one.

        Raises:
          UserError: the position is damaged, or the records that stand there are other ones. The
            present block then stays.
        """
        if position == self.position:
            return
        moved = copy.copy(self)
        try:
            start = BlockStart.parse(position)
            fingerprint = position["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"The data cursor is damaged at task {self._task.name} ({error!r})."
            ) from error
        moved._open(start)
        if moved._block.fingerprint != fingerprint:
            raise UserError(
                f"The data cursor was saved over other data: the records of task "
                f"{self._task.name}, split {self._split}, from number {start.record} on have "
                "changed; put them back, or start the data from the beginning."
            )
        self.__dict__.update(moved.__dict__)

    def length(self, place: int) -> int:
        """Tokens of the example at a place."""
        index = self._index(place)
        return self._block.length(index)

    def example(self, place: int) -> tuple[np.ndarray, int]:
        """Returns (tokens int32 [length], prompt length) of the example at a place."""
        index = self._index(place)
        return self._block.example(index)

    def _open(self, start: BlockStart) -> None:
        self._start = start
        self._pairs = self._read(start.record)
        self._truncator = Truncator(
            self._truncation,
            self._length,
            self._task.plain_text,
            f"Task {self._task.name}, split {self._split}",
        )
        self._truncator.counts.update(dataclasses.asdict(start.counts))
        self._load()

    def _read(self, record: int) -> Iterator[tuple[list[int], list[int]]]:
        left = None if self._limit is None else max(self._limit - record, 0)
        pairs = self._task.tokenized(self._split, self._vocabulary, skip=record)
        return itertools.islice(pairs, left)

    def _index(self, place: int) -> int:
        """Number within the present block, which is made the one that holds the place."""
        if place < self._start.place:
            raise ValueError(f"place {place} is before the block at {self._start.place}")
        while place >= self._start.place + len(self._block):
            self._advance()
        return int(self._order[place - self._start.place])

    def _advance(self) -> None:
        read = self._records_read
        self._start = dataclasses.replace(
            self._start,
            record=self._start.record + read,
            place=self._start.place + len(self._block),
            counts=self._block.counts,
        )
        self._load()

    def _load(self) -> None:
        """Tokenises the next block, of the next epoch where this one is at its end."""
        before = self._truncator.counts["records"]
        self._block = self._tabulate()
        self._records_read = self._truncator.counts["records"] - before
        if not self._records_read:
            if not self._start.record:
                raise UserError(
                    f"Task {self._task.name} has no examples in its split {self._split!r}: "
                    "it is empty."
                )
            if not self._start.place:
                raise UserError(
                    f"Task {self._task.name} has no examples in its split {self._split!r}: "
                    f"all {self._block.counts.dropped} were dropped."
                )
            self._start = dataclasses.replace(self._start, epoch=self._start.epoch + 1, record=0)
            self._pairs = self._read(0)
            self._block = self._tabulate()
            self._records_read = self._truncator.counts["records"] - before
        rng = generator(
            self._seed, f"block of {self._task.name}", self._start.epoch, self._start.record
        )
        size = len(self._block)
        self._order = rng.permutation(size) if self._shuffle else np.arange(size)

    def _tabulate(self) -> ExampleTable:
        block = itertools.islice(self._pairs, self._block_records)
        return tabulate(block, self._truncator, self._vocabulary)
