"""The training loop: feed, step, log, evaluate, save, and stop when asked to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from dlm_jax.checkpoints.manager import CheckpointManager
from dlm_jax.errors import RunError, UserError
from dlm_jax.training import goodput
from dlm_jax.training.compilations import CompilationCounter
from dlm_jax.training.feed import Feed
from dlm_jax.training.goodput import Goodput
from dlm_jax.training.host_evaluation import Evaluate
from dlm_jax.training.metrics import MetricsWriter, Progress
from dlm_jax.training.preemption import StopRequests
from dlm_jax.training.profiling import StepProfiler
from dlm_jax.training.state import TrainState
from dlm_jax.training.watchdog import Watchdog
from dlm_jax.training.window import MetricsWindow

Results = dict[str, dict[str, float]]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often things happen, in steps; 0 = only after the last step.

    Attributes:
        total_steps: optimizer steps of the whole run.
        log_every: steps between two lines of metrics.
        evaluate_every: steps between two evaluations.
        save_every: steps between two checkpoints.
        on_nonfinite: what a step whose loss or gradient is not finite does: 'skip' it, or 'stop'
            the run.
    """

    total_steps: int
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 1000
    on_nonfinite: Literal["stop", "skip"] = "stop"

    def due(self, every: int, step: int) -> bool:
        """Whether something that happens `every` so many steps happens after `step`."""
        return step == self.total_steps or (every > 0 and step % every == 0)


@dataclasses.dataclass(frozen=True)
class Monitors:
    """What watches a run from beside it.

    Attributes:
        goodput: where the time goes.
        stops: requests to stop.
        watchdog: ends a run that hangs.
        profiler: traces some steps.
        compilations: of the step; more than one is worth a warning.
    """

    goodput: Goodput
    stops: StopRequests
    watchdog: Watchdog
    profiler: StepProfiler
    compilations: CompilationCounter

    def close(self) -> None:
        """Stops all of them."""
        self.watchdog.close()
        self.profiler.close()
        self.compilations.close()


class Loop:
    """One process of training, from a state to the last step or to a request to stop."""

    def __init__(
        self,
        step_function: Callable[[TrainState, Batch], tuple[TrainState, Any]],
        feed: Feed,
        cadence: Cadence,
        manager: CheckpointManager,
        writer: MetricsWriter,
        progress: Progress,
        window: MetricsWindow,
        monitors: Monitors,
        saved: Callable[[TrainState], dict[str, Any]] = lambda state: {},
        evaluate: Evaluate | None = None,
    ) -> None:
        """Takes the parts.

        Args:
            step_function: the jitted step; its metrics are sums, with 'tokens' among them.
            feed: the data.
            cadence: how often to log, evaluate and save.
            manager: takes the checkpoints.
            writer: takes the metrics.
            progress: shows them.
            window: adds them up.
            monitors: watch the run.
            saved: returns the JSON that a checkpoint holds beside the arrays of its state.
            evaluate: returns {split: metrics} of a state after a step.
        """
        self._step_function, self._feed, self._cadence = step_function, feed, cadence
        self._manager, self._writer, self._progress = manager, writer, progress
        self._window, self._monitors = window, monitors
        self._saved, self._evaluate = saved, evaluate

    def run(
        self, state: TrainState, first: int, *, evaluation_owed: bool = False
    ) -> tuple[TrainState, Results]:
        """Trains from step `first` to the last step.

        Args:
            state: after step `first`; its buffers are donated.
            first: number of finished steps.
            evaluation_owed: whether the evaluation after `first` has yet to be made.

        Returns:
            The last state and the last evaluation.

        Raises:
            RunError: a step was not finite and `cadence.on_nonfinite` is 'stop'; or data that are
                read as they are needed turned out unusable, and what was trained is saved.
            RetryError: the run was preempted, and is saved.
            KeyboardInterrupt: the run was interrupted, and is saved.
        """
        cadence, stops = self._cadence, self._monitors.stops
        results: Results = {}
        if evaluation_owed:
            results = self._evaluated(state, first)
            if figures := self._ranked_by(results, first):
                self._manager.rank(first, figures)
        stops.steps_begin()
        for step in range(first + 1, cadence.total_steps + 1):
            try:
                batch = self._next_batch(state, step)
            except UserError as error:
                raise self._unusable(error, state, step - 1) from error
            state = self._one_step(state, batch, step, beginning=step == first + 1)
            if cadence.due(cadence.log_every, step):
                self._window.close(step)
            evaluating = self._evaluate is not None and cadence.due(cadence.evaluate_every, step)
            stopping = stops.reached(step) and (evaluating or step < cadence.total_steps)
            saving = stopping or cadence.due(cadence.save_every, step)
            if evaluating or saving:
                self._flush()
            if evaluating and not stopping:
                results = self._evaluated_or_saved(state, step)
            if saving:
                owed = evaluating and stopping
                self._save(state, step, results if evaluating and not owed else None, owed)
            if stopping or step == cadence.total_steps:
                self._finish(step)
            if stopping:
                stops.stop(step)
        return state, results

    def _next_batch(self, state: TrainState, step: int) -> Batch:
        self._monitors.profiler.before(step, state)
        with self._monitors.goodput.measure("data"):
            return next(self._feed.batches)

    def _unusable(self, error: UserError, state: TrainState, step: int) -> RunError:
        """Saves what was trained before the data that `error` complains of."""
        # Other hosts may have met no error, and saving waits for all of them.
        if jax.process_count() == 1 and self._manager.latest_step() != step:
            self._flush()
            self._save(state, step, None, owed=False)
            self._finish(step)
        return RunError(
            f"the data of step {step + 1} cannot be used: {error} (the newest checkpoint is of "
            f"step {self._manager.latest_step()}; once that is mended, the same command goes on)"
        )

    def _one_step(
        self, state: TrainState, batch: Batch, step: int, *, beginning: bool
    ) -> TrainState:
        monitors = self._monitors
        compiled = monitors.compilations.count
        with (
            monitors.compilations.counting(),
            jax.profiler.StepTraceAnnotation("train", step_num=step),
        ):
            state, metrics = self._step_function(state, batch)
        if monitors.compilations.count > max(compiled, 1):
            self._progress.say(
                f"warning: step {step} compiled the training step again: a shape, type or sharding "
                "of the batch or the state has changed"
            )
        if beginning:
            monitors.goodput.started()
        self._flush()
        self._window.add(metrics)
        monitors.profiler.after(step, metrics)
        monitors.watchdog.beat()
        return state

    def _flush(self) -> None:
        line = self._window.read()
        if line is None:
            return
        step, figures, bad = line
        if bad and self._cadence.on_nonfinite == "stop":
            raise RunError(
                f"loss or gradient was not finite in {bad} of the steps up to {step}; the newest "
                f"checkpoint is of step {self._manager.latest_step()}, and "
                "on_nonfinite='skip' would go on without them"
            )
        self._writer.write(step, "train", {**figures, "nonfinite_steps": bad})
        if spikes := figures.get("spike_steps"):
            self._progress.say(
                f"warning: {spikes:.0f} of the steps up to {step} changed nothing: their loss or "
                "gradient was far above that of recent steps (train.skip_spikes)"
            )
        mfu = f"  MFU {figures['mfu']:.1%}" if "mfu" in figures else ""
        speed = f"{figures['tokens_per_second']:,.0f} tokens/s{mfu}"
        self._progress.update(step, f"loss {figures['loss']:.3f}  {speed}")

    def _evaluated_or_saved(self, state: TrainState, step: int) -> Results:
        """Evaluates; what was trained is not lost to an error of a task or a metric."""
        try:
            return self._evaluated(state, step)
        except Exception:
            # Other hosts may have met no error, and saving waits for all of them.
            if jax.process_count() == 1:
                self._save(state, step, None, owed=True)
                self._finish(step)
            raise

    def _evaluated(self, state: TrainState, step: int) -> Results:
        assert self._evaluate is not None
        with self._monitors.watchdog.paused(), self._monitors.goodput.measure("evaluation"):
            results = self._evaluate(state, step)
        for split, values in results.items():
            self._writer.write(step, split, values)
            self._progress.say(f"step {step}  {split}  {_figures(values)}")
        return results

    def _ranked_by(self, results: Results, step: int) -> dict[str, float]:
        figures = ranking_figures(results)
        if figures and (why := self._manager.unranked(figures)):
            self._progress.say(f"warning: step {step}: {why}")
        return figures

    def _save(self, state: TrainState, step: int, results: Results | None, owed: bool) -> None:
        ranked_by = None if results is None else self._ranked_by(results, step)
        with self._monitors.watchdog.paused(), self._monitors.goodput.measure("checkpoint"):
            self._manager.save(
                step,
                state.parameters,
                state.training(),
                {
                    **self._feed.cursor(),
                    "metrics": self._window.partial(),
                    "evaluation_owed": owed,
                    **self._saved(state),
                },
                ranked_by,
            )
        if step < self._cadence.total_steps:
            self._writer.write(step, goodput.SPLIT, self._monitors.goodput.line())

    def _finish(self, step: int) -> None:
        """Waits for the last save, so that its time is counted and nothing is left behind."""
        with self._monitors.watchdog.paused(), self._monitors.goodput.measure("checkpoint"):
            self._manager.wait()
        if step == self._cadence.total_steps:
            self._writer.write(step, goodput.SPLIT, self._monitors.goodput.line())


def ranking_figures(results: Results) -> dict[str, float]:
    """What the best checkpoints can be chosen by.

    Args:
        results: {split: figures} of one evaluation; a split is `eval/<task>`, or
            `eval/<task>@<split>` of other examples than those of validation.

    Returns:
        `<task>/<figure>` of every split, and `<figure>`, its mean over the tasks of validation that
        have it: examples of `test` never choose a checkpoint unless they are named.
    """
    named: dict[str, float] = {}
    of_validation: dict[str, list[float]] = {}
    for split, figures in results.items():
        task = split.removeprefix("eval/")
        for name, value in figures.items():
            named[f"{task}/{name}"] = value
            if "@" not in task:
                of_validation.setdefault(name, []).append(value)
    return named | {name: math.fsum(v) / len(v) for name, v in of_validation.items()}


def _figures(values: Mapping[str, float]) -> str:
    """The figures that have a standard error, with it; all of them where none has."""
    measured = [
        f"{name} {value:.3f} ± {values[f'{name}_se']:.3f}"
        for name, value in values.items()
        if f"{name}_se" in values
    ]
    return "  ".join(measured or [f"{name} {value:.4g}" for name, value in values.items()])
