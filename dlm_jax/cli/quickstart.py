"""`dlm quickstart`: the whole road on real input, from a package's weights to a report."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

STAGES = ("warm_up", "adapt", "finetune")
_FOLDER = "examples/quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument(
        "--run_dir", default="runs/quickstart", metavar="FOLDER", help="folder of the three runs"
    )
    parser.add_argument(
        "--initial_checkpoint", metavar="SOURCE", help="weights to start from, instead of BERT-tiny"
    )
    parser.add_argument(
        "--examples", type=int, default=200, help="unseen questions of each task that are answered"
    )
    parser.add_argument(
        "--gin_bindings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="binding for the three trainings, such as --gin.TOTAL_STEPS=20",
    )


def run(arguments: argparse.Namespace) -> None:
    """Checks all stages, runs what is not yet done of them, evaluates, and prints the results."""
    began, training = time.monotonic(), 0.0
    folder = Path(arguments.run_dir)
    configs = {stage: _load(stage, "train", folder, arguments) for stage in STAGES}
    judge = _load("evaluate", "evaluate", folder, arguments)
    prose = _load("evaluate_prose", "evaluate", folder, arguments)

    from dlm_jax import config
    from dlm_jax.evaluation.report import write_report
    from dlm_jax.training.goodput import working_seconds

    before = _import_weights(configs["warm_up"], folder)
    results: dict[str, dict[str, dict[str, float]]] = {}
    results["prose before"] = prose.call(run_dir=before, report=False)
    for stage in STAGES:
        _say(f"stage {STAGES.index(stage) + 1} of {len(STAGES)}: {stage}")
        config.record(configs[stage], folder / stage)
        stage_began = time.monotonic()
        configs[stage].call(run_dir=folder / stage)
        training += time.monotonic() - stage_began
        if stage == "adapt":
            results["prose after"] = prose.call(run_dir=folder / stage, report=False)
            _say("answers before finetuning")
            results["tasks before"] = judge.call(run_dir=folder / stage, report=False)
    _say("answers after finetuning")
    results["tasks after"] = judge.call(run_dir=folder / "finetune", report=False)
    _trace(folder / "finetune")
    # Trainings count with the time that they took, in this call or in earlier ones.
    trained = sum(working_seconds(folder / stage / "metrics.jsonl") for stage in STAGES)
    summary = summarise(results, trained + time.monotonic() - began - training)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    report = write_report(folder, {stage: folder / stage for stage in STAGES}, title="Quickstart")
    print(table(summary))
    print(f"\nreport: {report}")


def summarise(results: dict[str, dict[str, dict[str, float]]], seconds: float) -> dict[str, Any]:
    """Returns the contents of `summary.json`: what each figure was before and after."""

    def nelbo(name: str) -> list[float]:
        [figures] = results[name].values()
        return [figures["nelbo"], figures["nelbo_se"]]

    tasks = {}
    for split, figures in results["tasks after"].items():
        # Of test examples, which the summary is about.
        tasks[split.removeprefix("eval/").partition("@")[0]] = {
            "before": results["tasks before"][split]["exact_match"],
            "exact_match": figures["exact_match"],
            "exact_match_se": figures["exact_match_se"],
            "n": int(figures["n"]),
        }
    return {
        "tasks": tasks,
        "nelbo": {"before": nelbo("prose before"), "after": nelbo("prose after")},
        "seconds": round(seconds, 1),
    }


def table(summary: dict[str, Any]) -> str:
    """Lays the summary out as text."""
    width = max(map(len, summary["tasks"]))
    lines = [f"{'exact match on unseen questions':<{width}}  before   after"]
    for name, figures in summary["tasks"].items():
        error = f"± {figures['exact_match_se']:.3f}"
        lines.append(
            f"{name:<{width}}  {figures['before']:6.3f}  {figures['exact_match']:6.3f} {error}"
            f"  (n = {figures['n']})"
        )
    (old, old_error), (new, new_error) = summary["nelbo"]["before"], summary["nelbo"]["after"]
    lines.append(
        f"NELBO of held-out prose, nats/token: {old:.3f} ± {old_error:.3f} before, "
        f"{new:.3f} ± {new_error:.3f} after adaptation"
    )
    lines.append(f"{summary['seconds']:.0f} seconds")
    return "\n".join(lines)


def _load(name: str, entry: str, folder: Path, arguments: argparse.Namespace) -> Any:
    from dlm_jax import config
    from dlm_jax.cli.configurables import CONFIGURABLES, ENTRIES
    from dlm_jax.cli.flags import import_task_module

    bindings = []
    if name in STAGES[1:]:
        previous = folder / STAGES[STAGES.index(name) - 1]
        bindings.append(f"INITIAL_CHECKPOINT = {str(previous)!r}")
    elif name == STAGES[0] and arguments.initial_checkpoint:
        bindings.append(f"INITIAL_CHECKPOINT = {arguments.initial_checkpoint!r}")
    elif name == "evaluate":
        bindings.append(f"GenerationEvaluator.max_examples = {arguments.examples}")
    if entry == "train":
        bindings += arguments.gin_bindings
    return config.load(
        [f"{_FOLDER}/{name}.gin"],
        bindings,
        entry,
        CONFIGURABLES,
        other_entries=ENTRIES,
        supplied=("run_dir",),
        importer=import_task_module,
    )


def _import_weights(warm_up: Any, folder: Path) -> Path:
    """Makes a run folder of the imported weights, to know what they were worth."""
    from dlm_jax.checkpoints.run_folder import RunFolder
    from dlm_jax.cli.import_model import import_weights

    imported = folder / "imported"
    if not RunFolder(imported).is_run:
        import_weights(warm_up.value("INITIAL_CHECKPOINT"), imported)
    return imported


def _trace(run_dir: Path) -> None:
    """Writes how the answers to a few unseen questions came about, step by step, for the report."""
    from dlm_jax import api
    from dlm_jax.data.tasks import Mixture, get_task
    from dlm_jax.evaluation.traces import write_trace

    model = api.load(run_dir)
    task = get_task(model.description.task or "")
    names = list(task.rates) if isinstance(task, Mixture) else [task.name]
    prompts = []
    for name in names:
        member = get_task(name)
        if not isinstance(member, Mixture):
            prompts.append(next(member.examples("test")).inputs)
    write_trace(model, run_dir, prompts, lengths=range(1, 9), steps=8)


def _say(text: str) -> None:
    from dlm_jax.training.metrics import say

    say(f"\n== {text}")
