"""One process of a run, whatever it trains: resume, describe, log, loop, and clean up."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from dlm_jax.checkpoints.manager import CheckpointConfig, CheckpointManager
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.checkpoints.run_lock import run_lock
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError
from dlm_jax.parallel import accelerators, multihost
from dlm_jax.parallel.compiler import training_compiler_options
from dlm_jax.training import goodput
from dlm_jax.training.compilations import CompilationCounter
from dlm_jax.training.evaluators import Evaluator
from dlm_jax.training.feed import Feed, HostData
from dlm_jax.training.goodput import Goodput
from dlm_jax.training.host_evaluation import Evaluate, evaluation
from dlm_jax.training.loop import Cadence, Loop, Monitors, Results
from dlm_jax.training.metrics import MetricsWriter, Progress, SilentWriter
from dlm_jax.training.opening import model_info, opening
from dlm_jax.training.preemption import StopRequests
from dlm_jax.training.profiling import StepProfiler
from dlm_jax.training.program import KeptProgram, hlo_writer
from dlm_jax.training.sharding import jit_step, shardings_of
from dlm_jax.training.stage import Stage
from dlm_jax.training.state import TrainState
from dlm_jax.training.step import Step
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


@dataclasses.dataclass(frozen=True)
class Run:
    """All of a run but what it trains and on what.

    Attributes:
        folder: where it is kept.
        description: of the model.
        vocabulary: of the model.
        notes: sentences on what an import had to make up or leave out.
        cadence: how often things happen.
        checkpoints: when to save and what to keep.
        learning_rates: of the n-th step.
        evaluators: run now and then.
        stops: requests to stop; they have been noted since the process began.
        began: when this process began, in seconds since the epoch.
        watchdog_seconds: longest time that a step may take; 0 = no limit.
        profile_steps: first and last step of a profile; None = none.
        dump_hlo: whether the program of the step is written down.
        on_ready: called once everything has been found right, before the first file is written.
    """

    folder: RunFolder
    description: ModelDescription
    vocabulary: Vocabulary
    notes: Sequence[str]
    cadence: Cadence
    checkpoints: CheckpointConfig
    learning_rates: optax.Schedule
    evaluators: Sequence[Evaluator]
    stops: StopRequests
    began: float
    watchdog_seconds: float = 0.0
    profile_steps: tuple[int, int] | None = None
    dump_hlo: bool = False
    on_ready: Callable[[], None] | None = None

    def train(self, stage: Stage, data: HostData) -> TrainResult:
        """Trains from the newest checkpoint, or from the stage's first state, to the last step.

        Must be called within the mesh and the sharding rules that the stage was made in.

        Raises:
            UserError: the folder holds another run; nothing has been compiled or changed by then.
            RunError, RetryError, KeyboardInterrupt: as `Loop.run`.
        """
        with contextlib.ExitStack() as held:
            multihost.together("run_dir", lambda: self._take_folder(held))
            return self._train(stage, data)

    def _train(self, stage: Stage, data: HostData) -> TrainResult:
        manager = CheckpointManager(self.folder.checkpoints, self.checkpoints)
        state, resumed, saved = _first_state(manager, stage, data)
        owed = bool(saved.get("evaluation_owed")) and self.evaluation() is not None
        results: Results = {}
        if resumed < self.cadence.total_steps or owed:
            if self.on_ready is not None:
                self.on_ready()
            self.describe(stage.abstract.parameters)
            results = self._loop(stage, data, manager, state, resumed, saved, owed)
        manager.close()
        step = max(resumed, self.cadence.total_steps)
        return TrainResult(self.folder.path, step, results, time.time() - self.began)

    def _take_folder(self, held: contextlib.ExitStack) -> None:
        if multihost.is_main():
            self.folder.make()
            held.enter_context(run_lock(self.folder.path))

    def describe(self, model: Any) -> None:
        """Writes what the folder needs to be used; `model` are abstract leaves with shardings."""

        def write() -> None:
            if multihost.is_main():
                self.folder.describe(self.description, self.vocabulary)
                self.folder.write_text("model_info.txt", model_info(self.description.config, model))

        def look() -> None:
            if not self.folder.is_run:
                raise UserError(
                    f"{self.folder.path} is not the folder that process 0 writes to: run_dir must "
                    "be one that all hosts share"
                )

        multihost.together("describe", write)
        multihost.together("look", look)

    def opening(self, state: TrainState, data: HostData, resumed: int) -> str:
        """What is said before the first step after `resumed`."""
        total = self.cadence.total_steps
        return opening(self.folder, self.description, self.notes, state, data, resumed, total)

    def evaluation(self) -> Evaluate | None:
        """What measures a state; None for nothing."""
        return evaluation(self.evaluators, self.description, self.vocabulary, self.folder)

    def _loop(
        self,
        stage: Stage,
        data: HostData,
        manager: CheckpointManager,
        state: TrainState,
        resumed: int,
        saved: dict[str, Any],
        owed: bool,
    ) -> Results:
        main = multihost.is_main()
        writer = MetricsWriter(self.folder.metrics, resumed) if main else SilentWriter()
        total, name = self.cadence.total_steps, self.folder.path.name
        with Progress(name, total, resumed, silent=not main) as progress:
            progress.say(self.opening(state, data, resumed))
            step = self._program(stage, progress)
            program = step.text if isinstance(step, KeptProgram) else str
            monitors = self._monitors(writer, progress, program)
            window = MetricsWindow(
                self.learning_rates, stage.flops_per_token, _peak_flops(), saved.get("metrics")
            )
            loop = Loop(
                step,
                Feed(data.batches(), data.loader.cursor),
                self.cadence,
                manager,
                writer,
                progress,
                window,
                monitors,
                stage.saved,
                self.evaluation(),
            )
            try:
                _, results = loop.run(state, resumed, evaluation_owed=owed)
            finally:
                monitors.close()
                data.loader.close()
                writer.close()
            if main:
                progress.say(goodput.sentence(goodput.totals(self.folder.metrics)))
        return results

    def _program(self, stage: Stage, progress: Progress) -> Step:
        """The step; of several processes, none runs it before all of them have compiled it, as
        `compiled_by_all` says."""
        jitted = jit_step(stage.step, shardings_of(stage.abstract), training_compiler_options())
        main, several = multihost.is_main(), jax.process_count() > 1
        looked_at = main and (self.dump_hlo or self.profile_steps is not None)
        if not several and not looked_at:
            return jitted
        write = hlo_writer(self.folder.path / "hlo", progress.say)

        def on_compiled(lowered: Any, compiled: Any) -> None:
            if self.dump_hlo and main:
                write(lowered, compiled)
            multihost.exchange("compiled", "")

        return KeptProgram(jitted, on_compiled)

    def _monitors(
        self, writer: MetricsWriter, progress: Progress, program: Callable[[], str]
    ) -> Monitors:
        return Monitors(
            goodput=Goodput(self.began, writer.accounted_until),
            stops=self.stops,
            watchdog=Watchdog(self.watchdog_seconds),
            profiler=StepProfiler(
                self.folder.path / "profile", self.profile_steps, progress.say, program
            ),
            compilations=CompilationCounter(),
        )


def _first_state(
    manager: CheckpointManager, stage: Stage, data: HostData
) -> tuple[TrainState, int, dict[str, Any]]:
    """The state before this process's first step, its step, and what else was saved with it."""
    step = manager.latest_step()
    cursor = data.loader.cursor()
    multihost.require_equal(
        "start",
        {
            "newest checkpoint": step,
            "JAX": jax.__version__,
            **cursor["settings"],
            "first records": cursor.get("positions"),
        },
        "all processes need the same run_dir, data and programs",
    )
    if step is None:
        return stage.create(), 0, {}
    abstract = stage.abstract
    parameters, training, cursor = manager.restore(step, abstract.parameters, abstract.training())
    multihost.together("cursor", lambda: data.loader.restore(cursor))
    return stage.resumed(parameters, training, cursor), step, cursor


def _peak_flops() -> float:
    """FLOP/s of all devices together; 0 where the device is not in the table."""
    devices = jax.devices()
    known = accelerators.accelerator(devices[0].device_kind)
    return len(devices) * known.peak_flops if known else 0.0


def check_counts(
    owner: str,
    batch_size: int,
    accumulation: int,
    total_steps: int,
    log_every: int,
    watchdog_seconds: float,
) -> None:
    """Raises a UserError unless the numbers that `owner` was given can make a run."""
    if watchdog_seconds < 0:
        raise UserError(f"{owner}.watchdog_seconds must not be negative, not {watchdog_seconds}")
    for name, value in (
        ("batch_size", batch_size),
        ("gradient_accumulation_steps", accumulation),
        ("total_steps", total_steps),
        ("log_every", log_every),
    ):
        if value < 1:
            raise UserError(f"{owner}.{name} must be at least 1, not {value}")
    if batch_size % accumulation:
        raise UserError(
            f"{owner}.batch_size {batch_size} is not a multiple of gradient_accumulation_steps, "
            f"{accumulation}"
        )
