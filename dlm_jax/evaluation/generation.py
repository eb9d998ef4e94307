"""Evaluation by generation: every example is answered, judged by its task's metrics and kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_jax.errors import UserError, nearest
from dlm_jax.evaluation import metrics as metrics_lib
from dlm_jax.evaluation.json_lines import write_json_lines
from dlm_jax.evaluation.run_records import VERDICTS

if TYPE_CHECKING:
    from dlm_jax.sampling.length_calibration import LengthCalibration

CANVASES = ("fixed", "search", "predicted", "oracle")


@dataclasses.dataclass(frozen=True)
class Example:
    """One evaluation example.

    Attributes:
      index: position in the dataset, the identity that seeds its noise.
      inputs: the prompt as text.
      targets: the reference answer, or several.
      prompt_ids: token ids given to the model, `<s>` included.
      target_ids: token ids of the (first) reference without `</s>`; only its length is used, and
        only by the oracle canvas.
    """

    index: int
    inputs: str
    targets: metrics_lib.Target
    prompt_ids: Sequence[int]
    target_ids: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """A batch of rows to answer.

    Attributes:
      prompts: token ids of each row's prompt.
      response_lengths: tokens to generate in each row, `</s>` not counted; where `generate` tries
        several, the most of them, or the likeliest of predicted ones.
      row_ids: identity of each row for its random numbers (the example's index).
      seed: of the whole evaluation.
    """

    prompts: Sequence[Sequence[int]]
    response_lengths: Sequence[int]
    row_ids: Sequence[int]
    seed: int


@dataclasses.dataclass(frozen=True)
class GeneratedBatch:
    """Answers to a `GenerationRequest`, one entry a row.

    Attributes:
      texts: the answers.
      scores: mean log-probability of the answer's tokens when they were written, nats.
      nfe: denoiser evaluations spent.
      lengths: tokens that each answer had room for, which a search chooses; empty = as asked.
      notes: JSON values to keep beside each prediction; empty = none.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    nfe: Sequence[int]
    lengths: Sequence[int] = ()
    notes: Sequence[Mapping[str, Any]] = ()


GenerateFunction = Callable[[GenerationRequest], GeneratedBatch]


def predictions_path(
    run_dir: str | Path, task: str, step: int, canvas: str = "fixed", split: str = "validation"
) -> Path:
    """Returns where the predictions of a task at a step are kept.

    An oracle canvas has a file of its own, so that its answers never pass for the model's, and so
    has a predicted one, whose lines also hold the lengths; so has every split but the validation
    one.
    """
    suffix = "" if split == "validation" else f".{split}"
    suffix += f".{canvas}" if canvas in ("oracle", "predicted") else ""
    return Path(run_dir) / "eval" / task / f"{step}{suffix}.jsonl"


def _batches(items: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), batch_size):
        yield list(items[start : start + batch_size])


def _response_lengths(
    examples: Sequence[Example],
    task: str,
    canvas: str,
    response_length: int | None,
    calibration: LengthCalibration | None,
) -> list[int]:
    if canvas not in CANVASES:
        raise UserError(
            f"canvas = {canvas!r} of task {task!r} is not one of {', '.join(CANVASES)}"
            + nearest(str(canvas), CANVASES)
        )
    if (canvas == "predicted") != (calibration is not None):
        raise ValueError(f"a {canvas} canvas of task {task!r} and length_calibration do not agree")
    if calibration is not None:
        return calibration.predicted.tolist()
    if canvas != "oracle":
        if response_length is None or response_length < 1:
            raise UserError(
                f"task {task!r}: response_length = {response_length} of a {canvas} canvas "
                "must be 1 or more"
            )
        return [response_length] * len(examples)
    empty = [example.index for example in examples if not len(example.target_ids)]
    if empty:
        raise UserError(f"task {task!r}: example {empty[0]} has no reference for an oracle canvas")
    return [len(example.target_ids) for example in examples]


@dataclasses.dataclass(frozen=True)
class _Answer:
    text: str
    score: float
    nfe: int
    length: int
    notes: Mapping[str, Any]


def _generate_all(
    generate: GenerateFunction,
    examples: Sequence[Example],
    lengths: Sequence[int],
    *,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> list[_Answer]:
    """Answers the examples in batches of similar length; results are in the order given."""
    order = sorted(
        range(len(examples)), key=lambda i: (len(examples[i].prompt_ids) + lengths[i], i)
    )
    done = 0

    def answer(chosen: list[int]) -> list[Any]:
        nonlocal done
        # A short last batch would be compiled anew for its shape; its padding is thrown away.
        padded = chosen + [chosen[-1]] * (min(batch_size, len(order)) - len(chosen))
        generated = generate(
            GenerationRequest(
                prompts=[examples[i].prompt_ids for i in padded],
                response_lengths=[lengths[i] for i in padded],
                row_ids=[examples[i].index for i in padded],
                seed=seed,
            )
        )
        sizes = {len(generated.texts), len(generated.scores), len(generated.nfe)}
        if sizes != {len(padded)}:
            raise ValueError(f"asked for {len(padded)} answers, got {sorted(sizes)}")
        done += len(chosen)
        if progress is not None:
            progress(done, len(order))
        return [
            [
                generated.texts[row],
                float(generated.scores[row]),
                int(generated.nfe[row]),
                int(generated.lengths[row]) if len(generated.lengths) else lengths[i],
                generated.notes[row] if len(generated.notes) else {},
            ]
            for row, i in enumerate(chosen)
        ]

    from dlm_jax.parallel import multihost  # imports JAX

    batches = list(_batches(order, batch_size))
    found = multihost.share_out("answers", batches, answer)
    answers = {
        i: _Answer(*fields)
        for chosen, batch in zip(batches, found)
        for i, fields in zip(chosen, batch)
    }
    return [answers[i] for i in range(len(examples))]


def judge(
    metric_functions: Sequence[metrics_lib.MetricFunction],
    targets: Sequence[metrics_lib.Target],
    predictions: Sequence[str],
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Applies metrics to predictions.

    Returns:
      (figures, per_example): the corpus figures, with the bootstrap standard error `<name>_se` and
      95% interval `<name>_low` to `<name>_high` (Wilson's where all answers are right, or all
      wrong) of those of `evaluation.metrics`; and for each example those that are a mean of
      examples.

    Raises:
      UserError: a metric fails, or does not return named figures.
      ValueError: no examples, unequal lengths, or two metrics that report the same name.
    """
    figures: dict[str, float] = {}
    per_example: list[dict[str, float]] = [{} for _ in predictions]
    for metric in metric_functions:
        measured = metrics_lib.statistics(metric, targets, predictions) or {}
        values = _figures_of(metric, targets, predictions)
        clash = sorted(values.keys() & figures.keys())
        if clash:
            raise ValueError(f"two metrics report {clash[0]!r}")
        for name, value in values.items():
            figures[name] = value
            entry = measured.get(name)
            if entry is None:
                continue
            if len(predictions) > 1:
                interval = _interval(name, entry)
                figures[f"{name}_se"] = interval.standard_error
                figures[f"{name}_low"], figures[f"{name}_high"] = interval.low, interval.high
            if entry.per_example.shape[1] == 1:
                for row, statistic in zip(per_example, entry.per_example[:, 0]):
                    row[name] = float(statistic)
    return figures, per_example


def _interval(name: str, measured: metrics_lib.Statistics) -> metrics_lib.Interval:
    """Bootstraps a figure; where all answers are right or all wrong, that would say nothing."""
    interval = metrics_lib.bootstrap_interval(measured.per_example, measured.figure)
    if interval.low < interval.high or name.partition("/")[0] not in VERDICTS:
        return interval
    count = len(measured.per_example)
    return metrics_lib.wilson_interval(round(measured.value * count), count)


def _figures_of(
    metric: metrics_lib.MetricFunction,
    targets: Sequence[metrics_lib.Target],
    predictions: Sequence[str],
) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in metric(targets, predictions).items()}
    except Exception as error:  # Whatever a user's function does.
        name = getattr(metric, "__name__", repr(metric))
        raise UserError(
            f"metric {name} fails on {len(predictions)} answers: {type(error).__name__}: {error}"
        ) from error


def _records(
    examples: Sequence[Example],
    answers: Sequence[_Answer],
    per_example: Sequence[Mapping[str, float]],
    *,
    seed: int,
    canvas: str,
    split: str,
    calibration: LengthCalibration | None,
) -> Iterator[dict[str, Any]]:
    lengths = [{}] * len(examples) if calibration is None else calibration.records()
    for example, answer, judged, length in zip(examples, answers, per_example, lengths):
        targets = example.targets
        yield {
            "index": example.index,
            "input": example.inputs,
            "target": targets if isinstance(targets, str) else list(targets),
            "prediction": answer.text,
            "score": answer.score if math.isfinite(answer.score) else None,
            "nfe": answer.nfe,
            "seed": seed,
            "split": split,
            "canvas": canvas,
            "canvas_length": answer.length,
            **length,
            "metrics": dict(judged),
            **answer.notes,
        }


def evaluate_generation(
    generate: GenerateFunction,
    examples: Sequence[Example],
    metric_functions: Sequence[metrics_lib.MetricFunction],
    *,
    task: str,
    step: int,
    run_dir: str | Path | None,
    response_length: int | None = None,
    length_calibration: LengthCalibration | None = None,
    length_beam: int = 1,
    canvas: str = "fixed",
    split: str = "validation",
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Generates an answer to every example, judges them, and keeps each prediction.

    The processes of a run divide the batches between them; the result is the same on all.
    Batches hold examples of similar length, since a row's answer does not depend on its
    neighbours. Predictions go to `predictions_path(run_dir, task, step, canvas, split)` in the
    order of `examples`, with the fields index, input, target, prediction, score, nfe, seed, split,
    canvas, canvas_length and metrics (the per-example values), on a predicted canvas also those of
    `LengthCalibration.records`. They are kept before they are judged.

    Args:
      generate: answers a batch of rows.
      examples: what to answer.
      metric_functions: each fn(targets, predictions) -> dict.
      task: the task's name, also the folder of its predictions.
      step: training step of the parameters.
      run_dir: run folder; None keeps no predictions.
      response_length: tokens to generate on a fixed or searched canvas.
      length_calibration: of the examples, on a predicted canvas.
      length_beam: how many predicted lengths `generate` tries.
      canvas: 'fixed' = `response_length`; 'search' = `generate` chooses among lengths up to it;
        'predicted' = among the likeliest of the predicted ones;
        'oracle' = the length of the reference. Every figure of an oracle canvas is named
        `oracle_<figure>`, since the reference takes part in the answer.
      split: of the task that the examples are from.
      batch_size: rows of a batch.
      seed: of the random numbers of generation.
      progress: called with (examples that this process has done, examples in all) after each
        batch.

    Returns:
      The figures of the metrics with their spread (see `judge`), `score` (mean log-probability,
      nats a token), `nfe` (mean denoiser evaluations), and `n`, the number of examples; on a
      predicted canvas also those of `LengthCalibration.figures`.

    Raises:
      UserError: no examples, an unknown canvas, no length for it, or a metric that fails.
      ValueError: `generate` does not return one answer a row, or metrics clash.
    """
    if not examples:
        raise UserError(f"task {task!r} has no examples to evaluate")
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size} of the evaluation of {task!r} must be >= 1")
    lengths = _response_lengths(examples, task, canvas, response_length, length_calibration)
    answers = _generate_all(
        generate,
        examples,
        lengths,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    targets = [example.targets for example in examples]

    def keep(judged: Sequence[Mapping[str, float]]) -> None:
        if run_dir is not None:
            records = _records(
                examples,
                answers,
                judged,
                seed=seed,
                canvas=canvas,
                split=split,
                calibration=length_calibration,
            )
            write_json_lines(predictions_path(run_dir, task, step, canvas, split), records)

    keep([{}] * len(answers))
    figures, per_example = judge(metric_functions, targets, [answer.text for answer in answers])
    keep(per_example)
    finite = [answer.score for answer in answers if math.isfinite(answer.score)]
    if finite:
        figures["score"] = math.fsum(finite) / len(finite)
    figures["nfe"] = math.fsum(answer.nfe for answer in answers) / len(answers)
    if length_calibration is not None:
        figures |= length_calibration.figures(length_beam)
    if canvas == "oracle":
        figures = {f"oracle_{name}": value for name, value in figures.items()}
    return {**figures, "n": float(len(examples))}
