"""The training loop: feed, step, log, evaluate, save."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np

from dlm_jax.checkpoints.manager import CheckpointManager
from dlm_jax.errors import RunError
from dlm_jax.training.metrics import MetricsWriter, Progress
from dlm_jax.training.state import TrainState

Evaluate = Callable[[TrainState, int], dict[str, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches on the devices, and the place in the stream after the last one handed out.

    Attributes:
        batches: endless iterator of device batches.
        cursor: returns the JSON that restores the stream behind the last batch handed out.
    """

    batches: Iterator[dict[str, jax.Array]]
    cursor: Callable[[], dict[str, Any]]


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


class _Window:
    """Metrics since the last line; read one step late, so that the devices never wait."""

    def __init__(self, learning_rate: Callable[[int], Any], flops_per_token: float, peak: float):
        self._learning_rate, self._flops, self._peak = learning_rate, flops_per_token, peak
        self._sums: list[Any] = []
        self._closed: tuple[int, list[Any]] | None = None
        self._began = time.monotonic()

    def add(self, metrics: Any) -> None:
        self._sums.append(metrics)

    def close(self, step: int) -> None:
        self._closed, self._sums = (step, self._sums), []

    def read(self) -> tuple[int, dict[str, float], int] | None:
        """Returns the step, its figures and the number of steps not finite; None if not due."""
        if self._closed is None:
            return None
        (step, entries), self._closed = self._closed, None
        host: list[Mapping[str, np.ndarray]] = jax.device_get(entries)
        total = {name: float(sum(entry[name] for entry in host)) for name in host[0]}
        now = time.monotonic()
        seconds, self._began = max(now - self._began, 1e-9), now
        tokens_per_second = total["tokens"] / seconds
        figures = {
            "loss": total["loss_sum"] / max(total["weight_sum"], 1e-9),
            "nll_per_absorbed_token": total["nll_sum"] / max(total["absorbed_tokens"], 1.0),
            "accuracy": total["correct"] / max(total["absorbed_tokens"], 1.0),
            "grad_norm": total["grad_norm"] / len(host),
            "learning_rate": float(self._learning_rate(step - 1)),
            "tokens_per_second": tokens_per_second,
            "seconds_per_step": seconds / len(host),
        }
        if self._peak:
            figures["mfu"] = 3 * self._flops * tokens_per_second / self._peak
        return step, figures, len(host) - round(total["finite"])


def run_loop(
    state: TrainState,
    step_function: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Any]],
    feed: Feed,
    cadence: Cadence,
    manager: CheckpointManager,
    writer: MetricsWriter,
    progress: Progress,
    *,
    evaluate: Evaluate | None = None,
    learning_rate: Callable[[int], Any],
    flops_per_token: float = 0.0,
    peak_flops: float = 0.0,
) -> tuple[TrainState, dict[str, dict[str, float]]]:
    """Trains from `state.step` to the last step.

    Args:
        state: where to start; its buffers are donated.
        step_function: the compiled step; its metrics are sums, with 'tokens' among them.
        feed: the data.
        cadence: how often to log, evaluate and save.
        manager: takes the checkpoints.
        writer: takes the metrics.
        progress: shows them.
        evaluate: returns {split: metrics} of a state after a step.
        learning_rate: of the n-th step, for the log.
        flops_per_token: forward FLOPs a token, for the MFU; the backward pass costs twice as many.
        peak_flops: FLOP/s of all devices together; 0 where unknown.

    Returns:
        The last state and the last evaluation.

    Raises:
        RunError: a step was not finite and `cadence.on_nonfinite` is 'stop'.
    """
    window = _Window(learning_rate, flops_per_token, peak_flops)
    results: dict[str, dict[str, float]] = {}

    def flush() -> None:
        line = window.read()
        if line is None:
            return
        step, figures, bad = line
        if bad and cadence.on_nonfinite == "stop":
            raise RunError(
                f"loss or gradient was not finite in {bad} of the steps up to {step}; the newest "
                f"checkpoint is of step {manager.latest_step()}, and train.on_nonfinite='skip' "
                "would go on without them"
            )
        writer.write(step, "train", {**figures, "nonfinite_steps": bad})
        mfu = f"  MFU {figures['mfu']:.1%}" if "mfu" in figures else ""
        speed = f"{figures['tokens_per_second']:,.0f} tokens/s{mfu}"
        progress.update(step, f"loss {figures['loss']:.3f}  {speed}")

    for step in range(int(state.step) + 1, cadence.total_steps + 1):
        state, metrics = step_function(state, next(feed.batches))
        flush()
        window.add(metrics)
        if cadence.due(cadence.log_every, step):
            window.close(step)
        evaluating = evaluate is not None and cadence.due(cadence.evaluate_every, step)
        saving = cadence.due(cadence.save_every, step)
        if evaluating or saving or step == cadence.total_steps:
            flush()
        if evaluate is not None and evaluating:
            results = evaluate(state, step)
            for split, values in results.items():
                writer.write(step, split, values)
                progress.say(f"step {step}  {split}  {_figures(values)}")
        if saving:
            best = {k: v for values in results.values() for k, v in values.items()}
            manager.save(
                step,
                state.parameters,
                state.training(),
                feed.cursor(),
                best if evaluating else None,
            )
    return state, results


def _figures(values: Mapping[str, float]) -> str:
    """The figures that have a standard error, with it; all of them where none has."""
    measured = [
        f"{name} {value:.3f} ± {values[f'{name}_se']:.3f}"
        for name, value in values.items()
        if f"{name}_se" in values
    ]
    return "  ".join(measured or [f"{name} {value:.4g}" for name, value in values.items()])
