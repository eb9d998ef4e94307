"""Rows of given and missing tokens into answers: canvases, the sampler, and what it wrote."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError
from dlm_jax.models.encoder import Encoder
from dlm_jax.sampling.autoregressive import AUTO, NextToken, strategy_for
from dlm_jax.sampling.canvas import Canvas, infilling_canvas, up_to_end
from dlm_jax.sampling.loop import Generation, generate
from dlm_jax.sampling.policy import Policy
from dlm_jax.sampling.trace import Trace

Parts = Sequence[Sequence[int] | int]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was written in a row.

    Attributes:
        text: the answer, or for infilling the whole text.
        score: mean over its tokens of their log-probability when they were written, nats; of a
            causal model with that of the `</s>` it wrote.
        nfe: denoiser evaluations spent on the row.
        log_probability: the sum of the same with all special tokens, nats.
        tokens: ids written, special ones left out.
        length: tokens that there was room for.
    """

    text: str
    score: float
    nfe: int
    log_probability: float
    tokens: list[int]
    length: int


def require_list(verb: str, texts: Any) -> None:
    """Raises a UserError for one text where a list of them is meant."""
    if isinstance(texts, str):
        raise UserError(f"{verb} takes a list of texts: put the text in brackets")


def write_rows(
    denoiser: Encoder,
    vocabulary: Vocabulary,
    rows: Sequence[Parts],
    *,
    strategy: str = AUTO,
    steps: int = 10,
    temperature: float = 0.0,
    special_tokens: bool = True,
    seed: int = 0,
    row_ids: Sequence[int] | None = None,
    batch_size: int = 64,
    on_trace: Callable[[Trace], None] | None = None,
) -> Iterator[tuple[Answer, list[int]]]:
    """Writes what is missing of each row.

    Args:
        denoiser: the model.
        vocabulary: its vocabulary.
        rows: the parts of each row, as `sampling.canvas.infilling_canvas` takes them.
        strategy, steps, temperature, special_tokens, seed, row_ids, batch_size: see
            `DiffusionLanguageModel.generate_ids`.
        on_trace: called with what happened at every step; for at most one batch.

    Yields:
        The answer, and all ids of the row from `<s>` on.

    Raises:
        UserError: an option is wrong, or a row is longer than the model takes.
    """
    causal = denoiser.config.causal
    strategy = strategy_for(causal=causal, asked=strategy)
    policy = Policy.parse(
        strategy,
        steps=None if strategy == "left-to-right" else steps,
        temperature=temperature,
        early_exit=True,  # the same tokens and scores, for fewer evaluations
        eos_id=vocabulary.eos_id,
    )
    special = vocabulary.special_ids
    banned = () if special_tokens else special - ({vocabulary.eos_id} if causal else set())
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, and must be 1 or more")
    _require_room(rows, denoiser.config.max_length)
    identities = range(len(rows)) if row_ids is None else row_ids
    size = min(batch_size, len(rows))
    if on_trace is not None and len(rows) > batch_size:
        raise UserError(f"a trace holds at most batch_size={batch_size} rows, not {len(rows)}")
    for begin in range(0, len(rows), batch_size):
        canvas = infilling_canvas(
            rows[begin : begin + size],
            vocabulary,
            row_ids=list(identities[begin : begin + size]),
            batch_size=size,
            max_length=denoiser.config.max_length,
            ended=not causal,
        )
        result = generate(
            NextToken(denoiser) if causal else denoiser,
            canvas,
            policy,
            jax.random.key(seed, impl="threefry2x32"),
            mask_id=vocabulary.mask_id,
            vocab_size=vocabulary.size,
            banned_ids=banned,
            trace=on_trace is not None,
        )
        if on_trace is not None and result.trace is not None:
            on_trace(result.trace)
        count = min(size, len(rows) - begin)
        yield from _answers(canvas, result, count, vocabulary, causal=causal)


def _require_room(rows: Sequence[Parts], longest: int) -> None:
    """Refuses a row that is too long before any other is written, and by its number among all."""
    for number, row in enumerate(rows):
        gaps = sum(int(part) for part in row if isinstance(part, (int, np.integer)))
        given = sum(len(part) for part in row if not isinstance(part, (int, np.integer)))
        if 2 + given + gaps > longest:
            raise UserError(
                f"row {number} takes {2 + given + gaps} tokens, {gaps} of them to be written and "
                f"two <s> and </s>, and the model takes at most {longest}"
            )


def _answers(
    canvas: Canvas, result: Generation, count: int, vocabulary: Vocabulary, *, causal: bool
) -> Iterator[tuple[Answer, list[int]]]:
    tokens, scores, nfe = (np.asarray(x) for x in (result.tokens, result.scores, result.nfe))
    answer = np.asarray(canvas.editable)
    room = answer.sum(axis=-1)
    plain = ~np.isin(tokens, list(vocabulary.special_ids))
    scored = answer & plain
    if causal:
        answer = scored = up_to_end(tokens, canvas, vocabulary.eos_id)
        room -= 1  # for </s>
    for row in range(count):
        mean = float(scores[row][scored[row]].mean()) if scored[row].any() else -math.inf
        whole = tokens[row][np.asarray(canvas.segment_ids[row]) > 0].tolist()
        written = tokens[row][answer[row] & plain[row]].tolist()
        text = vocabulary.decode(written)
        # Of special tokens as well: a row of nothing else is no likelier for being empty.
        total = float(scores[row][answer[row]].sum())
        yield Answer(text, mean, int(nfe[row]), total, written, int(room[row])), whole
