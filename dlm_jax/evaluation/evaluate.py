"""`dlm eval`: judges the checkpoint of a run and rebuilds its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from dlm_jax.checkpoints.loading import find_model
from dlm_jax.checkpoints.run_folder import RunFolder
from dlm_jax.errors import UserError
from dlm_jax.evaluation.report import write_report
from dlm_jax.models.encoder import from_parameters
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.evaluators import (
    Evaluator,
    check_evaluators,
    check_figures,
    recorded,
)
from dlm_jax.training.metrics import append_metrics
from dlm_jax.training.sharding import placed_parameters


def evaluate(
    run_dir: str | Path,
    *,
    evaluators: Sequence[Evaluator],
    step: int | None = None,
    mesh: MeshConfig | None = None,
    report: bool = True,
) -> dict[str, dict[str, float]]:
    """Runs evaluators on a checkpoint; figures are added to `metrics.jsonl`.

    Args:
        run_dir: folder of the run.
        evaluators: what to measure; no two of them the same of a task, such as its answers.
        step: of the checkpoint; None = the newest.
        mesh: how devices are arranged, for a model that one alone cannot hold; None = the first
            device.
        report: whether to rebuild `report.html`.

    Returns:
        {split: figures}, where a split is `eval/<task>`, or `eval/<task>@test` of other examples
        than those of validation.

    Raises:
        UserError: the run, its checkpoint or a task cannot be read.
    """
    folder = RunFolder(run_dir)
    if not folder.is_run:
        raise UserError(f"{run_dir} is not a run folder: dlm import makes one of foreign weights")
    model = find_model(run_dir, step=step)
    config, reached = model.description.config, model.step or 0
    check_evaluators(evaluators, config)
    check_figures(evaluators, model.description)
    results: dict[str, dict[str, float]] = {}
    devices = jax.local_devices() if mesh else jax.local_devices()[:1]
    device_mesh = make_mesh(mesh or MeshConfig(), devices)
    with jax.set_mesh(device_mesh):
        denoiser = from_parameters(config, model.read(placed_parameters(config, device_mesh)))
        for evaluator in evaluators:
            found = evaluator(denoiser, model.vocabulary, model.description, folder, reached)
            for split, values in recorded(evaluator, found).items():
                results.setdefault(split, {}).update(values)
    append_metrics(folder.metrics, reached, results)
    if report:
        write_report(run_dir)
    return results
