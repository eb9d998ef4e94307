from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from dlm_jax.evaluation import metrics
from dlm_jax.evaluation.generation import (
    Example,
    GeneratedBatch,
    GenerationRequest,
    evaluate_generation,
)

TRACE = (
    "<!DOCTYPE html><html><head><style>:root{color-scheme:light dark}body{font:14px monospace}"
    "</style></head><body><p>step 3: the answer &quot;42&quot;</p></body></html>"
)


def write_metrics(folder: Path, lines: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def train_lines(steps: int, start: float, end: float) -> list[dict[str, object]]:
    noise = random.Random(steps)
    return [
        {
            "step": step,
            "split": "train",
            "time": 1.7e9 + step,
            "loss": end + (start - end) * math.exp(-step / (0.2 * steps)) + noise.gauss(0, 0.12),
            "accuracy": 0.9 - 0.8 * math.exp(-step / (0.3 * steps)) + noise.gauss(0, 0.02),
            "learning_rate": 3e-4 * min(1.0, step / (0.05 * steps)),
            "tokens_per_second": 21500.0 + noise.gauss(0, 600.0),
            "grad_norm": 1.0,
        }
        for step in range(10, steps + 1, 10)
    ]


def evaluate(folder: Path, task: str, step: int, rate: float, canvas: str = "fixed") -> dict:
    """Evaluates a fake model that answers correctly with probability `rate`."""
    noise = random.Random(step)
    examples = [
        Example(
            index=index,
            inputs=f"Reverse the list of words: alpha{index} beta <b>&gamma</b> delta",
            targets=f"delta <b>&gamma</b> beta alpha{index}",
            prompt_ids=[0, *range(10, 10 + index % 5), 2],
            target_ids=[4, 5, 6, 7],
        )
        for index in range(120)
    ]

    def generate(request: GenerationRequest) -> GeneratedBatch:
        texts, scores = [], []
        for row in request.row_ids:
            right = noise.random() < rate
            texts.append(examples[row].targets if right else "delta beta alpha alpha")
            scores.append(noise.gauss(-0.15, 0.08) if right else noise.gauss(-0.9, 0.3))
        return GeneratedBatch(texts, scores, [10] * len(texts), [8] * len(texts))

    return evaluate_generation(
        generate,
        examples,
        [metrics.exact_match, metrics.token_f1],
        task=task,
        step=step,
        run_dir=folder,
        response_length=8,
        canvas=canvas,
    )


def write_run(folder: Path) -> Path:
    """Writes a run of three stages, as a quickstart would leave it."""
    write_metrics(folder / "warmup", train_lines(600, 6.5, 3.4))
    prose = [
        {"step": step, "split": "eval/prose", "nelbo": value, "nelbo_se": 0.05, "n": 256}
        for step, value in ((0, 7.9), (300, 5.1), (600, 4.3), (900, 4.0))
    ]
    write_metrics(folder / "adapt", train_lines(900, 5.2, 3.9) + prose)
    finetune = train_lines(1500, 4.0, 0.2)
    for task, rates in (("word_reversal", (0.0, 0.55, 0.93)), ("letter_count", (0.02, 0.3, 0.62))):
        for step, rate in zip((0, 750, 1500), rates):
            figures = evaluate(folder / "finetune", task, step, rate)
            finetune.append({"step": step, "split": f"eval/{task}", **figures})
    write_metrics(folder / "finetune", finetune)
    (folder / "finetune" / "trace.html").write_text(TRACE, encoding="utf-8")
    (folder / "finetune" / "config.gin").write_text(
        "# set in examples/quickstart.gin\ntrain.steps = 1500  # http://example.org/a?b&c\n"
    )
    (folder / "finetune" / "model_info.txt").write_text("parameters  4,416,698\nlength      128\n")
    summary = {
        "tasks": {
            "word_reversal": {"before": 0.0, "exact_match": 0.925, "n": 120},
            "letter_count": {"before": 0.017, "exact_match": 0.617, "n": 120},
        },
        "nelbo": {"before": [7.9, 0.05], "after": [4.0, 0.05]},
        "seconds": 583.2,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture
def evaluate_task():
    return evaluate
