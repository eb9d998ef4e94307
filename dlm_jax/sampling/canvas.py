"""The canvas: what is given, what is to be written, and whose row it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.errors import UserError

# Few shapes to compile, and all of them widths that `tiling` knows.
LENGTH_MULTIPLE = 64


class SpecialTokens(Protocol):
    """The special ids of a vocabulary."""

    @property
    def pad_id(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Canvas:
    """A batch of partly written sequences, one a row. A pytree of equal-sized arrays.

    Args:
      tokens: int32 [batch, length]; ids at editable positions are not read.
      positions: int32 [batch, length], 0-based within the row.
      segment_ids: int32 [batch, length], 1 on the sequence and 0 on padding.
      editable: bool [batch, length], masked at the start and to be written.
      row_ids: uint32 [batch], identity of each row for seeding: equal ids draw equal noise,
        wherever the row stands in whatever batch.
    """

    tokens: jax.Array
    positions: jax.Array
    segment_ids: jax.Array
    editable: jax.Array
    row_ids: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, length)."""
        batch, length = self.tokens.shape
        return batch, length


def make_canvas(
    tokens: Sequence[Sequence[int]],
    editable: Sequence[Sequence[bool]],
    *,
    pad_id: int,
    row_ids: Sequence[int] | None = None,
    batch_size: int | None = None,
    length_multiple: int = LENGTH_MULTIPLE,
    max_length: int | None = None,
) -> Canvas:
    """Pads rows to one length and stacks them.

    Args:
      tokens: ids of each row.
      editable: for each row, True where a token is to be written.
      pad_id: id on padding.
      row_ids: identities for seeding, in [0, 2**32); by default the number of the row.
      batch_size: number of rows after padding with empty rows, so that a last batch has the shape
        of the others; by default none is added.
      length_multiple: the longest row is rounded up to a multiple of this many tokens, so that few
        shapes are compiled.
      max_length: the longest sequence the denoiser takes, in tokens.

    Returns:
      A canvas [batch, length].

    Raises:
      UserError: a row is longer than `max_length`.
      ValueError: lengths or numbers of rows disagree.
    """
    rows = len(tokens) if batch_size is None else batch_size
    ids = range(len(tokens)) if row_ids is None else row_ids
    if not len(tokens) == len(editable) == len(ids) or not 0 < len(tokens) <= rows:
        raise ValueError(
            f"{len(tokens)} rows of tokens, {len(editable)} of editable marks and {len(ids)} ids "
            f"do not make a batch of {rows}."
        )
    longest = max(len(row) for row in tokens)
    if max_length is not None and longest > max_length:
        number = next(i for i, row in enumerate(tokens) if len(row) > max_length)
        raise UserError(
            f"Row {number} of the canvas takes {len(tokens[number])} tokens with its prompt, "
            f"response and special tokens, and the model takes at most {max_length}."
        )
    length = max(1, -(-longest // length_multiple)) * length_multiple
    if max_length is not None:
        length = min(length, max_length)
    padded = np.full((rows, length), pad_id, np.int32)
    marks = np.zeros((rows, length), bool)
    segments = np.zeros((rows, length), np.int32)
    identities = np.zeros(rows, np.uint32)
    identities[: len(ids)] = np.asarray(ids, np.uint32)
    for number, (row, row_marks) in enumerate(zip(tokens, editable, strict=True)):
        padded[number, : len(row)] = row
        marks[number, : len(row)] = row_marks
        segments[number, : len(row)] = 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), padded.shape)
    return Canvas(*map(jnp.asarray, (padded, positions, segments, marks, identities)))


def response_canvas(
    prompts: Sequence[Sequence[int]],
    response_lengths: int | Sequence[int],
    vocabulary: SpecialTokens,
    *,
    row_ids: Sequence[int] | None = None,
    batch_size: int | None = None,
    length_multiple: int = LENGTH_MULTIPLE,
    max_length: int | None = None,
) -> Canvas:
    """``<s> prompt [MASK]·n </s>``: the layout of training, `</s>` given (method of the DLM code).

    Args:
      prompts: ids of each prompt, without special tokens.
      response_lengths: tokens to write, without `</s>`: one number for all rows (a fixed canvas)
        or one for each (for instance the reference's, an oracle length).
      vocabulary: gives `pad_id`, `bos_id`, `eos_id` and `mask_id`.
      row_ids: see `make_canvas`.
      batch_size: see `make_canvas`.
      length_multiple: see `make_canvas`.
      max_length: see `make_canvas`.

    Returns:
      A canvas [batch, length].

    Raises:
      UserError: a row is longer than `max_length`, or a response length is negative.
      ValueError: as many lengths as prompts were expected.
    """
    if isinstance(response_lengths, int):
        response_lengths = [response_lengths] * len(prompts)
    parts: list[list[Sequence[int] | int]] = [
        [prompt, int(length)] for prompt, length in zip(prompts, response_lengths, strict=True)
    ]
    return infilling_canvas(
        parts,
        vocabulary,
        row_ids=row_ids,
        batch_size=batch_size,
        length_multiple=length_multiple,
        max_length=max_length,
    )


def infilling_canvas(
    texts: Sequence[Sequence[Sequence[int] | int]],
    vocabulary: SpecialTokens,
    *,
    row_ids: Sequence[int] | None = None,
    batch_size: int | None = None,
    length_multiple: int = LENGTH_MULTIPLE,
    max_length: int | None = None,
    ended: bool = True,
) -> Canvas:
    """``<s> text [MASK]·n text … </s>``: gaps anywhere, the rest is kept.

    Args:
      texts: for each row its parts in order: a sequence of ids (without special tokens) is given,
        an int is a gap of that many tokens. ``[[5, 6], 3, [7]]`` has three tokens to write.
      vocabulary: gives `pad_id`, `bos_id`, `eos_id` and `mask_id`.
      row_ids: see `make_canvas`.
      batch_size: see `make_canvas`.
      length_multiple: see `make_canvas`.
      max_length: see `make_canvas`.
      ended: whether the last `</s>` is given; False makes its place one more to write.

    Returns:
      A canvas [batch, length].

    Raises:
      UserError: a row is longer than `max_length`, or a gap has a negative length.
    """
    tokens: list[list[int]] = []
    editable: list[list[bool]] = []
    for number, parts in enumerate(texts):
        row, marks = [vocabulary.bos_id], [False]
        for part in parts:
            if isinstance(part, (int, np.integer)):
                if part < 0:
                    raise UserError(f"Row {number} of the canvas has a gap of {part} tokens.")
                row += [vocabulary.mask_id] * int(part)
                marks += [True] * int(part)
            else:
                row += list(part)
                marks += [False] * len(part)
        tokens.append([*row, vocabulary.eos_id if ended else vocabulary.mask_id])
        editable.append([*marks, not ended])
    return make_canvas(
        tokens,
        editable,
        pad_id=vocabulary.pad_id,
        row_ids=row_ids,
        batch_size=batch_size,
        length_multiple=length_multiple,
        max_length=max_length,
    )


def up_to_end(tokens: jax.typing.ArrayLike, canvas: Canvas, eos_id: int) -> np.ndarray:
    """What of each row is an answer that ends itself: the first written `</s>`, and all before it.

    A row that never wrote one has no room left: its last place, meant for `</s>`, does not count.

    Args:
      tokens: int32 [batch, length], of a `Generation` on the canvas.
      canvas: one that was not `ended`, with all that is to be written at the end of its rows.
      eos_id: id of `</s>`.

    Returns:
      bool [batch, length].
    """
    editable = np.asarray(canvas.editable)
    ends = editable & (np.asarray(tokens) == eos_id)
    after = np.cumsum(ends, axis=-1) - ends > 0
    last = editable & (np.cumsum(editable, axis=-1) == editable.sum(axis=-1, keepdims=True))
    return editable & ~after & ~(last & ~ends)


def written_tokens(
    tokens: jax.typing.ArrayLike, canvas: Canvas, drop: Iterable[int] = ()
) -> list[list[int]]:
    """The ids at the editable positions of each row.

    Args:
      tokens: int32 [batch, length], for instance of a `Generation`.
      canvas: the canvas they were written on.
      drop: ids to leave out, for instance the special ids: a `</s>` inside a response is dropped
        and what follows it is kept (method of the DLM code).

    Returns:
      One list of ids for each row, empty rows included.
    """
    array, editable = np.asarray(tokens), np.asarray(canvas.editable)
    keep = editable & ~np.isin(array, list(drop))
    return [row[mark].tolist() for row, mark in zip(array, keep, strict=True)]
