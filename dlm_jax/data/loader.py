"""Training batches: packed, prefetched, and resumable from a cursor of a few integers.

Every host packs the same global batch, from the lengths alone, and reads the tokens of its own rows
only. Hence the cursor is one and the same on all hosts, it fits any number of hosts that share the
same global batch, and the running numbers of the examples (`example_ids`) are global.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from dlm_jax.data.packing import Batch, PlacedExample, RowPacker, fill_rows
from dlm_jax.data.stream import ExampleStream, StreamState
from dlm_jax.data.streamed_table import StreamedTable
from dlm_jax.data.table import CUT_LEFT, ExampleTable, Truncation, build_table
from dlm_jax.data.tasks import Mixture, Task, members
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError, nearest

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that decides the batches, apart from where to begin."""

    names: tuple[str, ...]
    shares: tuple[float, ...]
    tables: tuple[ExampleTable | StreamedTable, ...]
    batch_size: int
    length: int
    pack: bool
    seed: int
    shuffle: bool
    num_epochs: int | None
    process_index: int
    process_count: int

    def settings(self, split: str) -> dict[str, Any]:
        """What a cursor must agree with, as JSON values; the number of hosts is not among it."""
        return {
            "tasks": dict(zip(self.names, self.shares)),
            "split": split,
            "global_batch_size": self.batch_size * self.process_count,
            "length": self.length,
            "pack": self.pack,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "num_epochs": self.num_epochs,
            # Last, so that what changes the data is named before the data that it changes.
            "data": {name: table.fingerprint for name, table in zip(self.names, self.tables)},
        }


@dataclasses.dataclass(frozen=True)
class _Progress:
    """How far the batches handed out so far have come, over all hosts."""

    batches: int
    examples: int
    tokens: int
    drawn: tuple[int, ...]
    positions: Mapping[str, Any]  # of the tasks that are read as they come


@dataclasses.dataclass(frozen=True)
class LoaderCounts:
    """What a loader has handed out so far, over all hosts.

    Attributes:
      batches, examples, tokens: how many; tokens without padding.
      proportions: realised share of each task among the examples.
      efficiency: tokens over places in the rows; 1 is no padding at all.
      truncation: what truncation did to each task's table, or to the part of it that has been
        read, by task and count.
    """

    batches: int
    examples: int
    tokens: int
    proportions: dict[str, float]
    efficiency: float
    truncation: dict[str, dict[str, int]]


class Loader:
    """An iterator of training batches of numpy arrays, [batch_size, length] on this host.

    A batch takes a contiguous run of the stream: examples go first-fit into the rows of the global
    batch, whole, and the first one that fits nowhere opens the next batch.

    Args:
      task: a name, a task, a mixture, or rates by name.
      vocabulary: how text becomes ids.
      batch_size: rows on this host; the global batch has `batch_size * process_count` rows.
      length: tokens of a row.
      split: which split of every task.
      pack: whether a row may hold several examples.
      seed: of the order of examples and of the mixture.
      shuffle: False keeps the order of the data set.
      num_epochs: end after so many, of a single task; None never ends.
      process_index: this host, of `process_count`; it reads its run of the global rows.
      truncation: what becomes of examples longer than a row.
      limit: use only the first records of every task.
      cache_dir: folder for tokenised tables.
      stream_records: read tasks as they are needed, so many records at a time, shuffled among
        themselves: for data sets of which tokenising everything takes too long or too much memory.
        Every host reads and tokenises all of it. None tokenises everything at first and shuffles
        over all.
      prefetch: batches prepared ahead by a thread; 0 prepares them when asked.
      allow_evaluation_only: train on tasks that are meant for evaluation.

    Raises:
      UserError: a setting, a task or its data is unusable.
    """

    def __init__(
        self,
        task: str | Task | Mixture | Mapping[str, float],
        vocabulary: Vocabulary,
        *,
        batch_size: int,
        length: int,
        split: str = "train",
        pack: bool = True,
        seed: int = 0,
        shuffle: bool = True,
        num_epochs: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
        truncation: Truncation = CUT_LEFT,
        limit: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        stream_records: int | None = None,
        prefetch: int = 2,
        allow_evaluation_only: bool = False,
    ):
        _check_positive(
            batch_size=batch_size,
            num_epochs=num_epochs,
            limit=limit,
            stream_records=stream_records,
        )
        if seed < 0:
            raise UserError(f"The data seed must not be negative, got {seed}.")
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index={process_index} of process_count={process_count}")
        self.name, resolved = members(task)
        if num_epochs is not None and len(resolved) > 1:
            raise UserError(f"num_epochs={num_epochs} needs a single task, and {self.name} mixes.")
        if num_epochs is not None and stream_records is not None:
            raise UserError(
                f"num_epochs={num_epochs} needs the size of the task, which stream_records="
                f"{stream_records} leaves open."
            )
        for member, _ in resolved:
            if member.evaluation_only and not allow_evaluation_only:
                raise UserError(
                    f"Task {member.name} is for evaluation only; training on it would spoil the "
                    "benchmark (allow_evaluation_only=True forces it)."
                )

        def table(member: Task) -> ExampleTable | StreamedTable:
            if stream_records is None:
                return build_table(
                    member, split, vocabulary, length, truncation, limit=limit, cache_dir=cache_dir
                )
            return StreamedTable(
                member, split, vocabulary, length, truncation, block_records=stream_records,
                seed=seed, shuffle=shuffle, limit=limit,
            )  # fmt: skip

        self._plan = _Plan(
            names=tuple(member.name for member, _ in resolved),
            shares=tuple(share for _, share in resolved),
            tables=tuple(table(member) for member, _ in resolved),
            batch_size=batch_size,
            length=length,
            pack=pack,
            seed=seed,
            shuffle=shuffle,
            num_epochs=num_epochs,
            process_index=process_index,
            process_count=process_count,
        )
        self._settings = self._plan.settings(split)
        self._prefetch = prefetch
        self._source: Iterator[tuple[Batch, _Progress]] | None = None
        self._progress = _Progress(0, 0, 0, (0,) * len(resolved), _positions(self._plan))

    @property
    def tables(self) -> dict[str, ExampleTable | StreamedTable]:
        """The examples of each task."""
        return dict(zip(self._plan.names, self._plan.tables))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._source is None:
            produced = _produce(self._plan, self._progress)
            self._source = _Prefetcher(produced, self._prefetch) if self._prefetch else produced
        batch, self._progress = next(self._source)
        return batch

    def cursor(self) -> dict[str, Any]:
        """Returns where the batches handed out so far end, as a JSON object.

        It is the same on every host. Batches that were prepared but not handed out do not count.
        """
        positions = self._progress.positions
        return {
            "format": _FORMAT,
            "settings": copy.deepcopy(self._settings),
            "batches": self._progress.batches,
            "examples": self._progress.examples,
            "tokens": self._progress.tokens,
            "drawn": dict(zip(self._plan.names, self._progress.drawn)),
            **({"positions": copy.deepcopy(positions)} if positions else {}),
        }

    def restore(self, cursor: Mapping[str, Any]) -> None:
        """Goes on with the batch after those that `cursor` has seen.

        Raises:
          UserError: the cursor is of another format, was saved under other settings or over other
            data, or does not add up. The loader then stays where it was.
        """
        progress = self._parse(cursor)
        self.close()
        try:
            _seek(self._plan, progress.positions)
        except UserError:
            _seek(self._plan, self._progress.positions)
            raise
        self._progress = progress

    def close(self) -> None:
        """Stops the prefetching thread; a later `next` goes on where the batches ended."""
        if isinstance(self._source, _Prefetcher):
            self._source.close()
        self._source = None

    @property
    def counts(self) -> LoaderCounts:
        """What has been handed out so far."""
        progress, plan = self._progress, self._plan
        places = progress.batches * plan.batch_size * plan.process_count * plan.length
        return LoaderCounts(
            batches=progress.batches,
            examples=progress.examples,
            tokens=progress.tokens,
            proportions={
                name: drawn / max(progress.examples, 1)
                for name, drawn in zip(plan.names, progress.drawn)
            },
            efficiency=progress.tokens / max(places, 1),
            truncation={
                name: dataclasses.asdict(table.counts) for name, table in self.tables.items()
            },
        )

    def _parse(self, cursor: Mapping[str, Any]) -> _Progress:
        if not isinstance(cursor, Mapping) or cursor.get("format") != _FORMAT:
            raise UserError(f"The data cursor is not of format {_FORMAT}.")
        saved = cursor.get("settings")
        saved = saved if isinstance(saved, Mapping) else {}
        for key, value in self._settings.items():
            if key not in saved:
                raise UserError(f"The data cursor lacks the setting {key!r}{nearest(key, saved)}.")
            if saved[key] != value:
                raise UserError(
                    f"The data cursor was saved with {key}={saved[key]!r} and this run has "
                    f"{key}={value!r}: set it back, or start the data from the beginning."
                )
        try:
            drawn = tuple(int(cursor["drawn"][name]) for name in self._plan.names)
            positions = {name: cursor["positions"][name] for name in _positions(self._plan)}
            progress = _Progress(
                batches=int(cursor["batches"]),
                examples=int(cursor["examples"]),
                tokens=int(cursor["tokens"]),
                drawn=drawn,
                positions=positions,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"The data cursor is damaged ({error!r}).") from error
        if sum(drawn) != progress.examples or min(*drawn, progress.batches, 0) < 0:
            raise UserError("The data cursor is damaged: its counts do not add up.")
        return progress


def _check_positive(**settings: int | None) -> None:
    for key, value in settings.items():
        if value is not None and value < 1:
            raise UserError(f"{key}={value} must be at least 1.")


def _positions(plan: _Plan) -> dict[str, Any]:
    """Where the tables that are read as they come stand."""
    return {
        name: table.position
        for name, table in zip(plan.names, plan.tables)
        if isinstance(table, StreamedTable)
    }


def _seek(plan: _Plan, positions: Mapping[str, Any]) -> None:
    for name, table in zip(plan.names, plan.tables):
        if isinstance(table, StreamedTable):
            table.seek(positions[name])


def _produce(plan: _Plan, progress: _Progress) -> Iterator[tuple[Batch, _Progress]]:
    """Yields the batches of one host after `progress`, each with the progress it completes."""
    _seek(plan, progress.positions)
    stream = ExampleStream(
        plan.names,
        plan.shares,
        [None if isinstance(table, StreamedTable) else len(table) for table in plan.tables],
        seed=plan.seed,
        shuffle=plan.shuffle,
        num_epochs=plan.num_epochs,
        state=StreamState(progress.examples, list(progress.drawn)),
    )
    while True:
        rows, tokens = _pack_one(plan, stream)
        if not tokens:
            return
        progress = _Progress(
            progress.batches + 1,
            stream.state.examples,
            progress.tokens + tokens,
            tuple(stream.state.drawn),
            _positions(plan),
        )
        yield fill_rows(rows, plan.length, plan.tables[0].pad_id), progress


def _pack_one(plan: _Plan, stream: ExampleStream) -> tuple[list[list[PlacedExample]], int]:
    """Packs one global batch; returns this host's rows and the tokens of all hosts."""
    packer = RowPacker(plan.batch_size * plan.process_count, plan.length, plan.pack)
    first = plan.process_index * plan.batch_size
    rows: list[list[PlacedExample]] = [[] for _ in range(plan.batch_size)]
    tokens = 0
    while (found := stream.peek()) is not None:
        task, index = found
        length = plan.tables[task].length(index)
        row = packer.place(length)
        if row is None:
            break
        if first <= row < first + plan.batch_size:
            example = plan.tables[task].example(index)
            rows[row - first].append(PlacedExample(*example, stream.state.examples))
        tokens += length
        stream.advance(task)
    return rows, tokens


class _End:
    """Marks the end of the batches in the queue, with the error that caused it, if any."""

    def __init__(self, error: BaseException | None = None):
        self.error = error


class _Prefetcher(Iterator[tuple[Batch, _Progress]]):
    """Runs an iterator in a thread, `size` items ahead."""

    def __init__(self, source: Iterator[tuple[Batch, _Progress]], size: int):
        self._queue: queue.Queue[tuple[Batch, _Progress] | _End] = queue.Queue(size)
        self._stop = threading.Event()
        self._end: _End | None = None
        self._thread = threading.Thread(
            target=_pump, args=(source, self._queue, self._stop), name="dlm-data", daemon=True
        )
        # The thread holds no reference to this object, so that forgetting it ends the thread.
        weakref.finalize(self, self._stop.set)
        self._thread.start()

    def __next__(self) -> tuple[Batch, _Progress]:
        if self._end is None:
            item = self._queue.get()
            if not isinstance(item, _End):
                return item
            self._end = item
        if self._end.error is not None:
            raise self._end.error
        raise StopIteration

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _pump(
    source: Iterator[tuple[Batch, _Progress]], target: queue.Queue[Any], stop: threading.Event
) -> None:
    end = _End()
    try:
        for item in source:
            if not _put(target, item, stop):
                return
    except BaseException as error:
        end = _End(error)
    _put(target, end, stop)


def _put(target: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Puts an item unless asked to stop first; returns whether it did."""
    while not stop.is_set():
        try:
            target.put(item, timeout=0.05)
            return True
        except queue.Full:
            continue
    return False
