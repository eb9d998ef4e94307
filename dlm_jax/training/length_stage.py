"""`dlm length`: trains the length predictor of a finished run, on features of its frozen model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from dlm_jax.checkpoints.length_predictor import (
    LengthPredictorRecord,
    check_record,
    write_record,
)
from dlm_jax.checkpoints.loading import FoundModel, find_model
from dlm_jax.checkpoints.manager import CheckpointConfig
from dlm_jax.checkpoints.run_folder import RunFolder
from dlm_jax.data.packing import evaluation_batches
from dlm_jax.data.table import ExampleTable, Truncation, build_table
from dlm_jax.data.tasks import members
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel import multihost
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.parallel.rules import ShardingRules, use_rules
from dlm_jax.sampling.length_calibration import LengthCalibration
from dlm_jax.training.feed import HostData
from dlm_jax.training.host_evaluation import Evaluate
from dlm_jax.training.length_objective import (
    Features,
    frozen_features,
    length_stage,
    log_probs_program,
)
from dlm_jax.training.loop import Cadence, Results
from dlm_jax.training.optimizers import AdamW
from dlm_jax.training.preemption import StopRequests
from dlm_jax.training.run import Run, TrainResult, check_counts
from dlm_jax.training.sharding import placed_parameters
from dlm_jax.training.state import TrainState
from dlm_jax.training.step import Batch

# Rows are cut behind the longest prompt, to a width that kernels like.
_WIDTH_MULTIPLE = 64


def train_length_predictor(
    run_dir: str | Path,
    *,
    task: str | None = None,
    step: int | None = None,
    optimizer: AdamW = AdamW(),
    total_steps: int = 1000,
    batch_size: int = 64,
    length: int | None = None,
    truncation: Truncation = Truncation(),
    split: str = "train",
    evaluation_split: str = "validation",
    max_examples: int | None = 500,
    length_beam: int = 10,
    gradient_accumulation_steps: int = 1,
    seed: int = 42,
    dtype: Literal["float32", "bfloat16"] | None = None,
    dropout_rate: float = 0.1,
    feature_dropout: bool = False,
    mesh: MeshConfig = MeshConfig(),
    sharding: ShardingRules = ShardingRules(),
    checkpoints: CheckpointConfig = CheckpointConfig(),
    evaluate_every: int = 0,
    log_every: int = 10,
    on_nonfinite: Literal["stop", "skip"] = "stop",
    watchdog_seconds: float = 1800.0,
    data_cache_dir: str | None = None,
    stream_records: int | None = None,
    on_ready: Callable[[], None] | None = None,
) -> TrainResult:
    """Trains the length predictor of a run's model, or goes on with it.

    It sees prompts alone and learns the number of tokens of their answers; the model itself is
    never changed. What is trained is kept in `run_dir`/length_predictor.

    Args:
        run_dir: folder of the finished run.
        task: task or mixture whose lengths it learns; None = what the run was trained on.
        step: of the run's checkpoint; None = the newest.
        optimizer: how.
        total_steps: optimizer steps.
        batch_size: examples a step, one a row, over all hosts and micro-batches.
        length: tokens a row; None = as in the run.
        truncation: what happens to longer examples.
        split: of the task, to learn from.
        evaluation_split: of the task, to measure on; passed over where the task lacks it.
        max_examples: how many of them; None = all.
        length_beam: figures say how often the true length is among so many of the likeliest.
        gradient_accumulation_steps: micro-batches a step; divides `batch_size`.
        seed: of data order, dropout and first weights.
        dtype: of activations and matrix products; None = the model's own.
        dropout_rate: within the predictor's layer.
        feature_dropout: whether the frozen model drops as it did in training (as in the paper's
            code, where it stays in training mode); off, features are those of decoding.
        mesh: how devices are arranged.
        sharding: which mesh axes split which axes of parameters and activations.
        checkpoints: when to save and what to keep.
        evaluate_every: 0 = only after the last step.
        log_every: steps between two lines of metrics.
        on_nonfinite: what to do about a loss or gradient that is not finite.
        watchdog_seconds: as in `train`.
        data_cache_dir: where tokenised data are kept between runs; None = in memory.
        stream_records: as in `train`.
        on_ready: called once everything has been found right, before the first file is written.

    Raises:
        UserError: the run, its checkpoint, the task or a value is wrong, or the folder holds the
            predictor of another model.
        RunError: the loss was not finite and `on_nonfinite` is 'stop'.
        RetryError: preempted; it is saved, and the same call goes on with it.
        KeyboardInterrupt: interrupted, and saved as well.
    """
    began = time.time()
    check_counts(
        "length_stage",
        batch_size,
        gradient_accumulation_steps,
        total_steps,
        log_every,
        watchdog_seconds,
    )
    _check_values(dropout_rate, length_beam, max_examples)
    checkpoints.check_ranking(evaluate_every)
    device_mesh = make_mesh(mesh)
    with StopRequests() as stops, jax.set_mesh(device_mesh), use_rules(sharding):
        source = multihost.together("run", lambda: _Source.find(run_dir, step, task, dtype, length))
        frozen = source.model.read(placed_parameters(source.config, device_mesh))
        record = LengthPredictorRecord.of(source.config, source.step, frozen, source.task)
        folder = source.folder.length_predictor
        multihost.together("record", lambda: check_record(folder, record))
        data, held_out = _open(
            source,
            device_mesh,
            batch_size,
            evaluation_split,
            max_examples,
            split=split,
            truncation=truncation,
            seed=seed,
            cache_dir=data_cache_dir,
            stream_records=stream_records,
        )
        width = _width([*data.loader.tables.values(), *held_out.values()], source.length)
        features = frozen_features(source.config, frozen, width, seed=seed, dropout=feature_dropout)
        decoding_features = (
            frozen_features(source.config, frozen, width, seed=seed, dropout=False)
            if feature_dropout
            else features
        )
        run = _LengthRun(
            folder=folder,
            description=source.model.description,
            vocabulary=source.vocabulary,
            notes=(),
            cadence=Cadence(
                total_steps, log_every, evaluate_every, checkpoints.save_every, on_nonfinite
            ),
            checkpoints=checkpoints,
            learning_rates=optimizer.learning_rates(total_steps),
            evaluators=(),
            stops=stops,
            began=began,
            watchdog_seconds=watchdog_seconds,
            on_ready=on_ready,
            record=record,
            measure=_HeldOut(
                source,
                held_out,
                decoding_features,
                log_probs_program(source.config),
                data,
                length_beam,
            )
            if held_out
            else None,
        )
        stage = length_stage(
            source.config,
            optimizer.build(total_steps),
            device_mesh,
            seed=seed,
            accumulation=gradient_accumulation_steps,
            dropout_rate=dropout_rate,
        )
        return run.train(stage, _FeatureData(**vars(data), features=features))


def _check_values(dropout_rate: float, length_beam: int, max_examples: int | None) -> None:
    if not 0 <= dropout_rate < 1:
        raise UserError(f"length_stage.dropout_rate is {dropout_rate}, and must lie in [0, 1)")
    for name, value in (("length_beam", length_beam), ("max_examples", max_examples)):
        if value is not None and value < 1:
            raise UserError(f"length_stage.{name} must be at least 1, not {value}")


@dataclasses.dataclass(frozen=True)
class _Source:
    """The run whose model is frozen.

    Attributes:
        folder: of the run.
        config: of its model, with the dtype of this stage.
        model: its checkpoint.
        task: whose lengths are learned.
        length: tokens a row.
    """

    folder: RunFolder
    config: EncoderConfig
    model: FoundModel
    task: str
    length: int

    @classmethod
    def find(
        cls,
        run_dir: str | Path,
        step: int | None,
        task: str | None,
        dtype: str | None,
        length: int | None,
    ) -> _Source:
        folder = RunFolder(run_dir)
        description = folder.description()
        chosen = task or description.task
        if chosen is None:
            raise UserError(
                f"no task to learn lengths from: set TASK, {folder.path} was not trained on one"
            )
        _, resolved = members(chosen)
        plain = [member.name for member, _ in resolved if member.plain_text]
        if plain:
            raise UserError(
                f"task {plain[0]} is plain text, which answers no prompt: set TASK to one with "
                "prompts"
            )
        config = description.config
        if config.causal:
            raise UserError(
                f"{folder.path} holds a causal model, which ends its answers itself: it has no use "
                "for a length predictor"
            )
        rows = length or description.length or config.max_length
        if not 3 <= rows <= config.max_length:
            raise UserError(
                f"length_stage.length is {rows}, and must be from 3 to the {config.max_length} "
                "positions of the model"
            )
        if dtype is not None:
            config = dataclasses.replace(config, dtype=dtype)
        return cls(folder, config, find_model(folder.path, step=step), chosen, rows)

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        assert self.model.step is not None
        return self.model.step

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the model."""
        return self.model.vocabulary


def _open(
    source: _Source,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    evaluation_split: str,
    max_examples: int | None,
    **how: Any,
) -> tuple[HostData, dict[str, ExampleTable]]:
    """The examples to learn from, and those to measure on of each task that has the split."""
    data = HostData.open(
        source.task, source.vocabulary, mesh, batch_size, source.length, pack=False, **how
    )

    def held_out() -> dict[str, ExampleTable]:
        return {
            task.name: build_table(
                task,
                evaluation_split,
                source.vocabulary,
                source.length,
                how["truncation"],
                limit=max_examples,
            )
            for task, _ in members(source.task)[1]
            if evaluation_split in task.split_names
        }

    return data, multihost.together("held out", held_out)


def _width(tables: list[Any], length: int) -> int:
    """Tokens that hold the longest prompt; those of a row where they cannot be known before."""
    if not all(isinstance(table, ExampleTable) for table in tables):
        return length
    longest = max(int(table.prompt_lengths.max()) for table in tables)
    return min(length, -(-longest // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE)


@dataclasses.dataclass(frozen=True)
class _FeatureData(HostData):
    """Batches of features, in the order of the examples.

    Attributes:
        features: of a batch and its number in the stream.
    """

    features: Features

    def batches(self) -> Iterator[Batch]:
        """Yields batches as `frozen_features` makes them, endlessly."""
        first = self.loader.cursor()["batches"]
        for number, batch in enumerate(super().batches(), start=first):
            yield self.features(batch, number)


@dataclasses.dataclass(frozen=True)
class _HeldOut:
    """Examples that the predictor has not learned from.

    Attributes:
        source: the run.
        tables: the examples of each task.
        features: of a batch.
        log_probs: of the parameters and the features of a batch, see `log_probs_program`.
        data: how batches lie on the devices.
        length_beam: see `LengthCalibration.figures`.
    """

    source: _Source
    tables: dict[str, ExampleTable]
    features: Features
    log_probs: Callable[[Any, Batch], jax.Array]
    data: HostData
    length_beam: int

    def __call__(self, state: TrainState, step: int) -> Results:
        """{'eval/<task>': figures} of a state."""
        return {
            f"eval/{name}": self._calibration(table, state.parameters).figures(self.length_beam)
            for name, table in self.tables.items()
        }

    def _calibration(self, table: ExampleTable, parameters: Any) -> LengthCalibration:
        rows = self.data.rows
        batches = evaluation_batches(
            table,
            self.data.batch_size // rows.count,
            self.source.length,
            process_index=rows.index,
            process_count=rows.count,
        )
        found = [
            np.asarray(self.log_probs(parameters, self.features(batch, 0)))
            for batch in self.data.on_devices(batches)
        ]
        lengths = table.lengths - table.prompt_lengths - 1  # without </s>
        return LengthCalibration(np.concatenate(found)[: len(table)], lengths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LengthRun(Run):
    """A run whose folder holds a length predictor.

    Attributes:
        record: what it is trained on.
        measure: gives the figures of a state; None where there is nothing to measure on.
    """

    record: LengthPredictorRecord
    measure: Evaluate | None

    def describe(self, model: Any) -> None:
        """Writes the record."""
        if multihost.is_main():
            write_record(self.folder, self.record)

    def opening(self, state: TrainState, data: HostData, resumed: int) -> str:
        """Says what is trained, on what, and for how long."""
        count = sum(leaf.size for leaf in jax.tree.leaves(state.parameters))
        tables = ", ".join(f"{name} ({table})" for name, table in data.loader.tables.items())
        first = f"resumes after step {resumed}" if resumed else "starts from random weights"
        steps = self.cadence.total_steps - resumed
        return (
            f"model   length predictor of {count:,} parameters, on features of step "
            f"{self.record.model_step} of {self.folder.path.parent}\n"
            f"data    {tables}, {data.batch_size:,} examples a step\n"
            f"run     {self.folder.path} {first}, {steps:,} steps to go\n"
            "resume  the same command again"
        )

    def evaluation(self) -> Evaluate | None:
        """Measures the predictor."""
        return self.measure
