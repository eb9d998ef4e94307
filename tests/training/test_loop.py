"""The loop takes nothing from the devices, and gives nothing to them, that it does not ask for."""

from __future__ import annotations

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlm_jax.checkpoints.manager import CheckpointConfig, CheckpointManager
from dlm_jax.errors import RunError, UserError
from dlm_jax.training.compilations import CompilationCounter
from dlm_jax.training.feed import Feed
from dlm_jax.training.goodput import Goodput
from dlm_jax.training.loop import Cadence, Loop, Monitors, ranking_figures
from dlm_jax.training.metrics import MetricsWriter, Progress
from dlm_jax.training.preemption import StopRequests
from dlm_jax.training.profiling import StepProfiler
from dlm_jax.training.spikes import SkipSpikes
from dlm_jax.training.state import TrainState
from dlm_jax.training.step import make_step
from dlm_jax.training.watchdog import Watchdog
from dlm_jax.training.window import MetricsWindow

STEPS = 12


def _squares(parameters, batch, dropout_key, time_state):
    errors = batch["x"] @ parameters["w"] - batch["y"]
    loss, weight = jnp.sum(errors**2), jnp.float32(errors.size)
    return loss, ({"loss_sum": loss, "weight_sum": weight, "tokens": weight}, time_state)


def _batch(number):
    rng = np.random.default_rng(number)
    x = rng.normal(size=(16, 3)).astype(np.float32)
    y = x @ np.float32([1, -2, 3]) + rng.normal(size=16).astype(np.float32)
    return {"x": x, "y": 100 * y if number == 9 else y}


def _run(folder, batches, evaluate=None):
    rule, optimizer, said = SkipSpikes(window=8, factor=4.0), optax.adam(0.05), []
    state = TrainState.create(jax.device_put({"w": np.zeros(3, np.float32)}), optimizer)
    state = state._replace(recent=rule.empty())
    progress = Progress("run", STEPS, 0, silent=True)
    progress.say = said.append
    compilations = CompilationCounter()
    with StopRequests() as stops:
        monitors = Monitors(
            Goodput(time.time()),
            stops,
            Watchdog(0),
            StepProfiler(folder, None, said.append),
            compilations,
        )
        writer = MetricsWriter(folder / "metrics.jsonl")
        manager = CheckpointManager(folder / "checkpoints", CheckpointConfig(save_every=5))
        step = make_step(_squares, optimizer, seed=0, spikes=rule)
        loop = Loop(
            jax.jit(step, donate_argnums=0),
            Feed(batches, dict),
            Cadence(STEPS, log_every=2, evaluate_every=4 if evaluate else 0, save_every=5),
            manager,
            writer,
            progress,
            MetricsWindow(lambda step: 0.05),
            monitors,
            evaluate=evaluate,
        )
        try:
            with jax.transfer_guard("disallow"):
                state, _ = loop.run(state, 0)
        finally:
            monitors.close()
            writer.close()
            manager.close()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return state, [line for line in lines if line["split"] == "train"], said, compilations.count


def test_a_run_moves_nothing_unasked_and_compiles_once_and_counts_its_spikes(tmp_path):
    batches = iter([jax.device_put(_batch(number)) for number in range(1, STEPS + 1)])
    state, lines, said, compiled = _run(tmp_path, batches)
    assert compiled == 1
    assert {line["step"]: line["spike_steps"] for line in lines} == {
        step: int(step == 10) for step in range(2, STEPS + 1, 2)
    }
    assert (int(state.step), int(state.skipped)) == (STEPS, 1)
    [warning] = [text for text in said if "warning" in text]
    assert warning.startswith("warning: 1 of the steps up to 10 changed nothing")


def test_a_batch_that_is_still_on_the_host_is_noticed(tmp_path):
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        _run(tmp_path, iter([_batch(number) for number in range(1, STEPS + 1)]))


def test_data_found_unusable_on_the_way_end_the_run_and_lose_nothing(tmp_path):
    def batches():
        yield from (jax.device_put(_batch(number)) for number in range(1, 8))
        raise UserError("Task t, record 7: targets is empty")

    with pytest.raises(RunError, match=r"step 8 cannot be used: Task t, record 7.* of step 7;"):
        _run(tmp_path, batches())
    manager = CheckpointManager(tmp_path / "checkpoints")
    assert manager.steps() == [5, 7]
    manager.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6]


def test_an_evaluation_that_fails_loses_no_step(tmp_path):
    def evaluate(state, step):
        raise UserError("metric boom fails")

    batches = iter([jax.device_put(_batch(number)) for number in range(1, STEPS + 1)])
    with pytest.raises(UserError, match="metric boom fails"):
        _run(tmp_path, batches, evaluate)
    manager = CheckpointManager(tmp_path / "checkpoints")
    assert manager.steps() == [4]
    manager.close()
    assert '"evaluation_owed": true' in (tmp_path / "checkpoints/4/cursor/metadata").read_text()


def test_the_best_checkpoint_is_chosen_by_the_mean_of_validation_or_by_a_named_task():
    figures = ranking_figures(
        {
            "eval/en_de": {"nelbo": 2.0, "bleu": 30.0},
            "eval/gsm8k": {"nelbo": 4.0},
            "eval/en_de@test": {"nelbo": 100.0, "bleu": 99.0},
        }
    )
    assert figures["nelbo"] == 3.0 and figures["bleu"] == 30.0
    assert figures["gsm8k/nelbo"] == 4.0 and figures["en_de@test/bleu"] == 99.0
