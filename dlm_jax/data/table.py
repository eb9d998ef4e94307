"""Tokenised examples in flat arrays: random access by index, in memory or mapped from a cache.

An example is `<s> inputs targets </s>`; its prompt is `<s> inputs`, which the process leaves
clean, and all that follows is maskable, `</s>` included (arXiv 2308.12219, official code).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from dlm_jax.data.tasks import Task, check_split
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError

_FORMAT = 1
_ARRAYS = ("tokens", "offsets", "prompt_lengths", "records")


@dataclasses.dataclass(frozen=True)
class Truncation:
    """What becomes of an example with more tokens than a row; every cut is counted.

    The response keeps its first `max_response` tokens, then the prompt is cut to what is left.
    Plain text has no prompt to cut: it becomes several examples, and no token is lost.

    Attributes:
      overlong: `'cut'`, `'drop'` the example, or stop with an `'error'`.
      side: the end at which a prompt loses tokens; `'left'` keeps what stands beside the response.
      max_response: cap on the target tokens, `</s>` not counted; None is the whole row.
    """

    overlong: Literal["cut", "drop", "error"] = "cut"
    side: Literal["left", "right"] = "left"
    max_response: int | None = None

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("overlong", self.overlong, ("cut", "drop", "error")),
            ("side", self.side, ("left", "right")),
        ):
            if value not in allowed:
                raise UserError(f"Truncation.{key}={value!r} is not one of {', '.join(allowed)}.")
        if self.max_response is not None and self.max_response < 1:
            raise UserError(
                f"Truncation.max_response={self.max_response} must be at least 1 token."
            )


CUT_LEFT = Truncation()


@dataclasses.dataclass(frozen=True)
class TruncationCounts:
    """How many records lost something on their way into a table.

    Attributes:
      records: records read.
      prompts_cut, responses_cut: examples that lost prompt or response tokens.
      tokens_cut: tokens lost with them.
      dropped: records left out whole.
      texts_split: plain texts that became several examples.
    """

    records: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    tokens_cut: int = 0
    dropped: int = 0
    texts_split: int = 0

    def __bool__(self) -> bool:
        """Whether anything was lost or split."""
        return any((self.tokens_cut, self.dropped, self.texts_split))

    def __str__(self) -> str:
        if not self:
            return f"nothing cut of {self.records} records"
        return (
            f"of {self.records} records {self.prompts_cut} prompts and {self.responses_cut} "
            f"responses cut ({self.tokens_cut} tokens), {self.dropped} dropped, "
            f"{self.texts_split} split"
        )


@dataclasses.dataclass(frozen=True)
class ExampleTable:
    """Tokenised examples of one split of one task.

    Attributes:
      tokens: int32 [total tokens], all examples one after another.
      offsets: int64 [examples + 1], where each begins in `tokens`.
      prompt_lengths: int32 [examples], tokens before the maskable part, `<s>` included.
      records: int64 [examples], number of the record in the split that each came from.
      counts: what truncation did.
      fingerprint: digest of contents and special ids: equal digests, equal batches.
      pad_id: id that fills rows; never looked for in the tokens.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    prompt_lengths: np.ndarray
    records: np.ndarray
    counts: TruncationCounts
    fingerprint: str
    pad_id: int

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __str__(self) -> str:
        return f"{len(self):,} examples"

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [examples]."""
        return np.diff(self.offsets)

    def length(self, index: int) -> int:
        """Tokens of one example."""
        return int(self.lengths[index])

    def example(self, index: int) -> tuple[np.ndarray, int]:
        """Returns (tokens int32 [length], prompt length) of one example."""
        begin, end = self.offsets[index], self.offsets[index + 1]
        return self.tokens[begin:end], int(self.prompt_lengths[index])


def build_table(
    task: Task,
    split: str,
    vocabulary: Vocabulary,
    length: int,
    truncation: Truncation = CUT_LEFT,
    *,
    limit: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ExampleTable:
    """Tokenises a split of a task.

    Args:
      task: where the examples come from.
      split: which of its splits.
      vocabulary: how text becomes ids.
      length: tokens of a row; no example is longer.
      truncation: what becomes of longer ones.
      limit: read only so many records.
      cache_dir: keep the arrays in this folder and map them from there. The text is read and
        compared by its digest, so an edited data set is tokenised anew.

    Raises:
      UserError: the split is unknown or empty, or an example is empty, malformed or too long
        under `Truncation(overlong='error')`.
    """
    check_split(task, split)
    check_length(length)
    if cache_dir is None:
        return _checked(_tokenize(task, split, vocabulary, length, truncation, limit), task, split)
    key = _cache_key(task, split, vocabulary, length, truncation, limit)
    folder = Path(cache_dir) / f"{task.name.replace('/', '_')}-{split}-{key}"
    if not (folder / "table.json").exists():
        table = _checked(_tokenize(task, split, vocabulary, length, truncation, limit), task, split)
        _write(table, folder)
    return _read(folder)


def check_length(length: int) -> None:
    """Raises a UserError unless a row of `length` tokens can hold an example."""
    if length < 3:
        raise UserError(f"length={length} has no room for <s>, a token and </s>.")


def assemble(
    inputs: list[int], targets: list[int], vocabulary: Vocabulary
) -> tuple[list[int], int]:
    """Returns (`<s> inputs targets </s>`, prompt length): the one place where the layout is set."""
    return [vocabulary.bos_id, *inputs, *targets, vocabulary.eos_id], 1 + len(inputs)


class Truncator:
    """Applies a `Truncation` to one example after another and counts what it did.

    Args:
      truncation: what becomes of examples that do not fit.
      length: tokens of a row.
      plain_text: whether examples have no prompt.
      where: task and split, for messages.
    """

    def __init__(self, truncation: Truncation, length: int, plain_text: bool, where: str):
        self.room = length - 2
        self.max_response = min(truncation.max_response or self.room, self.room)
        self.truncation, self.plain_text, self.where = truncation, plain_text, where
        self.counts = dict.fromkeys(
            (field.name for field in dataclasses.fields(TruncationCounts)), 0
        )

    def __call__(
        self, inputs: list[int], targets: list[int]
    ) -> Iterator[tuple[list[int], list[int]]]:
        number = self.counts["records"]
        self.counts["records"] += 1
        if not targets:
            raise UserError(f"{self.where}, record {number}: targets has no tokens.")
        fits = len(targets) <= self.max_response and len(inputs) + len(targets) <= self.room
        if fits:
            yield inputs, targets
        elif self.truncation.overlong == "error":
            raise UserError(
                f"{self.where}, record {number}: {len(inputs)} input and {len(targets)} target "
                f"tokens do not fit into a row of {self.room} (and at most {self.max_response} "
                "of response)."
            )
        elif self.truncation.overlong == "drop":
            self.counts["dropped"] += 1
        elif self.plain_text:
            self.counts["texts_split"] += 1
            for begin in range(0, len(targets), self.max_response):
                yield [], targets[begin : begin + self.max_response]
        else:
            yield self._cut(inputs, targets)

    def _cut(self, inputs: list[int], targets: list[int]) -> tuple[list[int], list[int]]:
        response = targets[: self.max_response]
        kept = self.room - len(response)
        if len(inputs) <= kept:
            prompt = inputs
        elif self.truncation.side == "left":
            prompt = inputs[len(inputs) - kept :]
        else:
            prompt = inputs[:kept]
        self.counts["responses_cut"] += len(response) < len(targets)
        self.counts["prompts_cut"] += len(prompt) < len(inputs)
        self.counts["tokens_cut"] += len(inputs) + len(targets) - len(prompt) - len(response)
        return prompt, response


def _tokenize(
    task: Task,
    split: str,
    vocabulary: Vocabulary,
    length: int,
    truncation: Truncation,
    limit: int | None,
) -> ExampleTable:
    truncate = Truncator(truncation, length, task.plain_text, f"Task {task.name}, split {split}")
    return tabulate(
        itertools.islice(task.tokenized(split, vocabulary), limit), truncate, vocabulary
    )


def tabulate(
    pairs: Iterable[tuple[list[int], list[int]]], truncate: Truncator, vocabulary: Vocabulary
) -> ExampleTable:
    """Lays tokenised records out as a table.

    Args:
      pairs: (input ids, target ids) of each record.
      truncate: cuts them and counts; the first record is number `truncate.counts['records']`.
      vocabulary: gives the special ids.

    Raises:
      UserError: an example is empty, or too long under `Truncation(overlong='error')`.
    """
    chunks: list[np.ndarray] = []
    pending: list[int] = []
    offsets, prompt_lengths, records = [0], [], []
    for record, (inputs, targets) in enumerate(pairs, start=truncate.counts["records"]):
        for prompt, response in truncate(inputs, targets):
            tokens, prompt_length = assemble(prompt, response, vocabulary)
            pending.extend(tokens)
            offsets.append(offsets[-1] + len(tokens))
            prompt_lengths.append(prompt_length)
            records.append(record)
        if len(pending) > 1 << 20:
            chunks.append(np.array(pending, np.int32))
            pending = []
    chunks.append(np.array(pending, np.int32))
    arrays = {
        "tokens": np.concatenate(chunks),
        "offsets": np.array(offsets, np.int64),
        "prompt_lengths": np.array(prompt_lengths, np.int32),
        "records": np.array(records, np.int64),
    }
    return ExampleTable(
        **arrays,
        counts=TruncationCounts(**truncate.counts),
        fingerprint=_contents_digest(arrays.values(), vocabulary),
        pad_id=vocabulary.pad_id,
    )


def _checked(table: ExampleTable, task: Task, split: str) -> ExampleTable:
    if len(table):
        return table
    reason = f"all {table.counts.dropped} were dropped" if table.counts.dropped else "it is empty"
    raise UserError(f"Task {task.name} has no examples in its split {split!r}: {reason}.")


def _contents_digest(arrays: Iterable[np.ndarray], vocabulary: Vocabulary) -> str:
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _cache_key(
    task: Task,
    split: str,
    vocabulary: Vocabulary,
    length: int,
    truncation: Truncation,
    limit: int | None,
) -> str:
    settings = [_FORMAT, vocabulary.fingerprint, length, dataclasses.astuple(truncation)]
    digest = hashlib.sha256(json.dumps([*settings, limit, task.plain_text]).encode())
    for example in itertools.islice(task.examples(split), limit):
        for text in example:
            encoded = text.encode("utf-8")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:16]


def _write(table: ExampleTable, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        for name in _ARRAYS:
            np.save(partial / f"{name}.npy", getattr(table, name))
        description = {
            "format": _FORMAT,
            "fingerprint": table.fingerprint,
            "pad_id": table.pad_id,
            "counts": dataclasses.asdict(table.counts),
        }
        (partial / "table.json").write_text(json.dumps(description, indent=2) + "\n")
        try:
            partial.rename(folder)
        except OSError:
            # Another process has finished the same table; its folder is as good as this one.
            if not (folder / "table.json").exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(folder: Path) -> ExampleTable:
    try:
        description = json.loads((folder / "table.json").read_text())
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in _ARRAYS
        }
        if len(arrays["tokens"]) != arrays["offsets"][-1]:
            raise ValueError("the arrays do not agree")
        return ExampleTable(
            **arrays,
            counts=TruncationCounts(**description["counts"]),
            fingerprint=description["fingerprint"],
            pad_id=description["pad_id"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"Cached table {folder} is damaged ({error}); delete that folder."
        ) from error
