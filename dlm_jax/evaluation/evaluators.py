"""The two ways to judge a model, as values that gin files set: by likelihood and by generation."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from dlm_jax.api import DiffusionLanguageModel
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.packing import evaluation_batches
from dlm_jax.data.table import ExampleTable, Truncation, build_table
from dlm_jax.data.tasks import Task, members
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.diffusion.process import AbsorbingProcess
from dlm_jax.errors import UserError, nearest
from dlm_jax.evaluation.generation import (
    CANVASES,
    Example,
    GeneratedBatch,
    GenerateFunction,
    GenerationRequest,
    evaluate_generation,
)
from dlm_jax.evaluation.likelihood import NelboResult, evaluate_nelbo
from dlm_jax.evaluation.predicted_lengths import Lengths, PredictedLengths
from dlm_jax.evaluation.prompt_length import fit_prompts
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import Encoder
from dlm_jax.sampling import autoregressive
from dlm_jax.sampling.choice import check_replicates, check_rerank
from dlm_jax.sampling.policy import Policy
from dlm_jax.training.scoring import nelbo_of_rows, nll_of_rows

# Wraps a function that answers batches of these examples.
Watch = Callable[[GenerateFunction, Sequence[Example]], GenerateFunction]

# Training examples that are enough to know how long answers are.
_LENGTH_SAMPLE = 2000
# A canvas that the kind of the model decides.
_AUTO = "auto"


def chosen_tasks(name: str | None, description: ModelDescription) -> tuple[Task, ...]:
    """The tasks that an evaluator is asked for: by name, else what the model was trained on."""
    chosen = name or description.task
    if chosen is None:
        raise UserError("no task to evaluate on: set TASK, the model was not trained on one")
    return tuple(task for task, _ in members(chosen)[1])


def _require(evaluator: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(evaluator, name)
        if value is not None and value < least:
            raise UserError(
                f"{type(evaluator).__name__}.{name} is {value}, and must be {least} or more"
            )


def _spoilt(example: Example, vocabulary: Vocabulary) -> bool:
    """Whether the reference cannot be written: an uncased tokenizer never answers 'Paris'."""
    targets = [example.targets] if isinstance(example.targets, str) else example.targets
    return vocabulary.decode(example.target_ids).split() != targets[0].split()


@dataclasses.dataclass(frozen=True)
class LikelihoodEvaluator:
    """NELBO of held-out examples by Monte Carlo, with its standard error.

    A causal model needs no bound: what it gives is exact and named `nll`, from one pass.

    Attributes:
        task: task or mixture; None = what the run is trained on.
        split: of the task.
        max_examples: how many records of each task; None = all.
        draws: noise levels an example, stratified; none for a causal model.
        num_timesteps: T of the discrete bound; None = the tighter one of continuous time.
        batch_size: rows at a time.
        length: tokens a row; None = that of the run.
        head_chunk: positions projected on the vocabulary at a time; None = by its size.
        seed: of the noise; the same examples get the same noise at every step and for every model.
    """

    task: str | None = None
    split: str = "validation"
    max_examples: int | None = 200
    draws: int = 8
    num_timesteps: int | None = None
    batch_size: int = 32
    length: int | None = None
    head_chunk: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self, 2, "draws")
        _require(self, 1, "max_examples", "num_timesteps", "batch_size", "length", "head_chunk")

    def __call__(
        self,
        denoiser: Encoder,
        vocabulary: Vocabulary,
        description: ModelDescription,
        folder: RunFolder,
        step: int,
    ) -> dict[str, dict[str, float]]:
        """Returns {'eval/<task>': figures}."""
        return {
            f"eval/{task.name}": self.nelbo(denoiser, vocabulary, description, task).metrics()
            for task in chosen_tasks(self.task, description)
        }

    def measures(self, description: ModelDescription) -> list[str]:
        """Its likelihood of each task."""
        return [f"likelihood of {task.name}" for task in chosen_tasks(self.task, description)]

    def nelbo(
        self,
        denoiser: Encoder,
        vocabulary: Vocabulary,
        description: ModelDescription,
        task: Task,
    ) -> NelboResult:
        """Scores one task.

        Raises:
            UserError: the task lacks the split, or rows are longer than the model takes.
        """
        longest = denoiser.config.max_length
        length = self.length or description.length or longest
        if length > longest:
            raise UserError(
                f"LikelihoodEvaluator.length is {length}, more than the {longest} positions of "
                "the model"
            )
        table = build_table(
            task, self.split, vocabulary, length, Truncation(), limit=self.max_examples
        )
        process = AbsorbingProcess(vocabulary.mask_id, num_timesteps=self.num_timesteps)
        causal = denoiser.config.causal

        def nats(batch: Mapping[str, Any]) -> np.ndarray:
            if causal:
                return np.asarray(nll_of_rows(denoiser, dict(batch), chunk=self.head_chunk))
            estimate = nelbo_of_rows(
                denoiser,
                dict(batch),
                process=process,
                draws=self.draws,
                chunk=self.head_chunk,
                seed=self.seed,
            )
            return np.asarray(estimate.nelbo)[:, 0]

        return evaluate_nelbo(
            nats,
            evaluation_batches(table, self.batch_size, length),
            texts=_maskable_texts(table, vocabulary),
            exact=causal,
        )


def _maskable_texts(table: ExampleTable, vocabulary: Vocabulary) -> list[str]:
    texts = []
    for index in range(len(table)):
        tokens, prompt_length = table.example(index)
        texts.append(vocabulary.decode(tokens[prompt_length:].tolist()))
    return texts


@dataclasses.dataclass(frozen=True)
class GenerationEvaluator:
    """Answers held-out examples and applies the metrics of their tasks; every answer is kept.

    Attributes:
        task: task or mixture; None = what the run is trained on. Plain-text members are passed
            over.
        split: of the task.
        max_examples: how many of each task; None = all.
        strategy: of decoding, such as 'reparam-uncond-deterministic-cosine', 'cmlm' or
            'left-to-right'; 'auto' is the first of these, and 'autoregressive' for causal models.
        steps: denoiser evaluations an answer; a causal model takes one for each token.
        temperature: 0 = argmax.
        special_tokens: whether `</s>` and its like may be written within an answer, to be left out
            of its text (the paper's decoding).
        canvas: 'search' (several lengths are tried, the best answer kept), 'fixed' (the longest of
            them), 'predicted' (the likeliest by the length predictor that `dlm length` has trained)
            or 'oracle' (the length of the reference; figures are named so). 'auto' is the first of
            these, and 'fixed' for causal models, which end their answers themselves.
        response_lengths: candidate lengths in tokens, `</s>` not counted, judged by the mean
            log-probability of the answer; None = the most frequent ones of the task's training
            split, judged by log p(length) + log p(answer). The longest of them is the most that a
            causal model may write; None = the longest answer of the training split.
        length_beam: how many lengths are taken from the training split or from the predictor.
        mbr: answers of each length, with noise of their own.
        rerank: which of the candidates is kept: 'mean' (best mean log-probability, the paper's),
            'joint' (with that of the length), or the expected utility 'bleu', 'rougeL' or
            'exact_match' (minimum Bayes risk); None = 'bleu' where `mbr` is above 1, else 'joint'
            for lengths of the training split and 'mean' for others.
        truncation: what becomes of prompts that leave no room for the answer; the figures
            `prompts_cut` and `examples_dropped` count them.
        batch_size: rows at a time.
        seed: of the random numbers of decoding.
    """

    task: str | None = None
    split: str = "validation"
    max_examples: int | None = 200
    strategy: str = autoregressive.AUTO
    steps: int = 10
    temperature: float = 0.0
    special_tokens: bool = True
    canvas: str = _AUTO
    response_lengths: Sequence[int] | None = None
    length_beam: int = 4
    mbr: int = 1
    rerank: str | None = None
    truncation: Truncation = Truncation()
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self, 1, "max_examples", "steps", "length_beam", "mbr", "batch_size")
        automatic = self.strategy == autoregressive.AUTO
        policy = Policy.parse(
            autoregressive.DENOISING_STRATEGY if automatic else self.strategy,
            steps=None if self.strategy == "left-to-right" else self.steps,
            temperature=self.temperature,
        )
        check_replicates(self.mbr, policy)
        if self.rerank is not None:
            check_rerank(self.rerank)
        canvases = (_AUTO, *CANVASES)
        if self.canvas not in canvases:
            raise UserError(
                f"GenerationEvaluator.canvas is {self.canvas!r}, none of {', '.join(canvases)}"
                f"{nearest(self.canvas, canvases)}"
            )
        lengths = self.response_lengths
        if lengths is not None and (not lengths or min(lengths) < 1):
            raise UserError(
                f"GenerationEvaluator.response_lengths is {lengths!r}, and must name lengths of "
                "1 token or more"
            )

    def __call__(
        self,
        denoiser: Encoder,
        vocabulary: Vocabulary,
        description: ModelDescription,
        folder: RunFolder,
        step: int,
    ) -> dict[str, dict[str, float]]:
        """Returns {'eval/<task>': figures}, and writes `eval/<task>/<step>.jsonl`."""
        model = DiffusionLanguageModel(denoiser, vocabulary, description, folder)
        evaluator = self.resolved(denoiser.config)
        return {
            f"eval/{task.name}": evaluator.measure(model, task, folder, step)
            for task in chosen_tasks(self.task, description)
            if not task.plain_text
        }

    def measures(self, description: ModelDescription) -> list[str]:
        """Its answers to each task; those of the reference's length have figures of their own."""
        kind = "answers of oracle length" if self.canvas == "oracle" else "answers"
        tasks = chosen_tasks(self.task, description)
        return [f"{kind} to {task.name}" for task in tasks if not task.plain_text]

    def check_before_training(self) -> None:
        """Refuses to decode with a length predictor, which belongs to the weights of a run.

        Raises:
            UserError: the canvas is predicted.
        """
        if self.canvas == "predicted":
            raise UserError(
                f"{type(self).__name__}.canvas is 'predicted', but a length predictor is made "
                "for a finished run: evaluate with another canvas while it trains, and with this "
                "one by dlm length and dlm eval"
            )

    def resolved(self, config: EncoderConfig) -> Self:
        """The same for a model, with what was left to it filled in.

        Raises:
            UserError: the strategy or the canvas is not for such models.
        """
        strategy = autoregressive.strategy_for(causal=config.causal, asked=self.strategy)
        if config.causal and self.canvas not in (_AUTO, "fixed"):
            raise UserError(
                f"{type(self).__name__}.canvas is {self.canvas!r}, but a causal model ends its "
                "answers itself: leave it out, and set response_lengths for the most tokens"
            )
        canvas = self.canvas
        if canvas == _AUTO:
            canvas = "fixed" if config.causal else "search"
        return dataclasses.replace(self, strategy=strategy, canvas=canvas)

    def measure(
        self,
        model: DiffusionLanguageModel,
        task: Task,
        folder: RunFolder,
        step: int,
        *,
        name: str | None = None,
        watch: Watch | None = None,
    ) -> dict[str, float]:
        """Answers the examples of one task; of a `resolved` evaluator.

        Args:
            model: what answers.
            task: the task.
            folder: the run, where predictions are kept.
            step: of the parameters.
            name: under which predictions are kept; None = that of the task.
            watch: wraps the function that answers a batch, given the examples. In a run of several
                processes each answers some of the batches.

        Returns:
            The figures.
        """
        examples = list(self._examples(task, model.vocabulary))
        examples, lengths, cuts = self._fitted(model, task, examples)
        answer = functools.partial(self._answer, model, lengths)
        figures = evaluate_generation(
            answer if watch is None else watch(answer, examples),
            examples,
            task.metrics,
            task=name or task.name,
            step=step,
            run_dir=folder.path,
            response_length=lengths.longest,
            length_calibration=lengths.calibration,
            length_beam=self.length_beam,
            canvas=self.canvas,
            split=self.split,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        spoilt = sum(_spoilt(example, model.vocabulary) for example in examples)
        unwritable = {"unwritable_targets": spoilt / len(examples)} if spoilt else {}
        return {**figures, **cuts, **unwritable}

    def _fitted(
        self, model: DiffusionLanguageModel, task: Task, examples: list[Example]
    ) -> tuple[list[Example], Lengths, dict[str, float]]:
        """The examples with prompts that leave room, the lengths to try, and what was cut."""
        longest = model.denoiser.config.max_length

        def fit(rooms: Sequence[int]) -> tuple[list[Example], dict[str, float]]:
            return fit_prompts(examples, rooms, longest, self.truncation, task.name)

        if self.canvas == "oracle":
            examples, cuts = fit([len(example.target_ids) for example in examples])
            return examples, Lengths(), cuts
        if self.canvas != "predicted":
            lengths = self._lengths(task, model.vocabulary)
            examples, cuts = fit([max(lengths.tried)] * len(examples))
            return examples, lengths, cuts
        predicted = PredictedLengths.of(model, fit([1] * len(examples))[0])
        examples, cuts = fit([predicted.likeliest(example, longest) for example in examples])
        return examples, predicted.lengths(model, examples, self.length_beam), cuts

    def _examples(self, task: Task, vocabulary: Vocabulary) -> Iterator[Example]:
        pairs = zip(task.examples(self.split), task.tokenized(self.split, vocabulary))
        for index, (text, (inputs, targets)) in enumerate(pairs):
            if self.max_examples is not None and index >= self.max_examples:
                return
            prompt = [vocabulary.bos_id, *inputs]
            yield Example(index, text.inputs, text.targets, prompt, targets)

    def _lengths(self, task: Task, vocabulary: Vocabulary) -> Lengths:
        """The lengths that are tried on every answer, with their frequencies where known."""
        if self.response_lengths is not None:
            return Lengths(self.response_lengths)
        if "train" not in task.split_names:
            raise UserError(
                f"task {task.name} has no train split to take lengths of answers from: set "
                "GenerationEvaluator.response_lengths, or canvas='predicted' or 'oracle'"
            )
        examples = itertools.islice(task.tokenized("train", vocabulary), _LENGTH_SAMPLE)
        counts = collections.Counter(len(targets) for _, targets in examples)
        if self.strategy == autoregressive.STRATEGY:
            return Lengths([max(counts)])
        common = counts.most_common(self.length_beam)
        total = sum(counts.values())
        return Lengths([n for n, _ in common], [math.log(k / total) for _, k in common])

    def decoding(self, request: GenerationRequest) -> dict[str, Any]:
        """Options of `DiffusionLanguageModel.generate_ids` for a batch."""
        return {
            "row_ids": request.row_ids,
            "strategy": self.strategy,
            "steps": self.steps,
            "temperature": self.temperature,
            "special_tokens": self.special_tokens,
            "seed": request.seed,
        }

    def _answer(
        self, model: DiffusionLanguageModel, lengths: Lengths, request: GenerationRequest
    ) -> GeneratedBatch:
        options = {"mbr": self.mbr, "rerank": self.rerank, **self.decoding(request)}
        if self.canvas == "search":
            answers = model.search_lengths(
                request.prompts, lengths.tried, log_priors=lengths.log_priors, **options
            )
        else:
            beams = [
                lengths.beams.get(row, [(length, 0.0)])
                for row, length in zip(request.row_ids, request.response_lengths)
            ]
            answers = model.best_answers(request.prompts, beams, **options)
        return GeneratedBatch(
            texts=[answer.text for answer in answers],
            scores=[answer.score for answer in answers],
            nfe=[answer.nfe for answer in answers],
            lengths=[answer.length for answer in answers],
        )
