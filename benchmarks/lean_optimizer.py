"""What a leaner optimizer state costs in loss: four settings of AdamW, same data and same noise.

    python benchmarks/lean_optimizer.py [--steps 400] [--seeds 1]

Trains a small encoder by diffusion, from random weights, once for each setting and seed, with the
real training step. The language is made up, so that a short training gets somewhere: a text has one
of 16 subjects, each with a Zipf distribution over the words of its own, and what is visible of a
text tells its subject. Prints the bytes that the state takes for each parameter, and the diffusion
loss of held-out texts under fixed noise with its difference to float32 AdamW, paired by batch and
seed, beside the loss of a model that knows no subject; ends with one line of JSON. The standard
error is that over batches: with few seeds it leaves out how much one run differs from the next.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.objectives import Diffusion
from dlm_jax.training.optimizers import AdamW
from dlm_jax.training.scoring import score
from dlm_jax.training.stage import adaptation
from dlm_jax.training.state import TrainState

SETTINGS: dict[str, dict[str, Any]] = {
    "float32, full": {},
    "bfloat16, full": {"first_moment": "bfloat16"},
    "float32, factored": {"second_moment": "factored"},
    "bfloat16, factored": {"first_moment": "bfloat16", "second_moment": "factored"},
}
ROWS, LENGTH, HELD_OUT = 16, 64, 16
TEXTS, SUBJECTS, WORDS = 8192, 16, 200
CONFIG = EncoderConfig(
    vocab_size=264,
    embed_dim=128,
    num_layers=2,
    num_heads=1,  # of width 128, as XXL's, so that all large arrays are factored
    mlp_dim=512,
    max_positions=LENGTH + 2,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
)
# Each token's loss at each time counts alike, which makes the loss easy to compare.
OBJECTIVE = Diffusion(pairing="single", weighting="constant").build(ByteVocabulary())

Batch = dict[str, jax.Array]


def _texts() -> tuple[np.ndarray, float]:
    """int32 [texts, length] ids, and their entropy in nats for who knows no subject."""
    random = np.random.default_rng(0)
    frequency = 1.0 / np.arange(1, WORDS + 1)
    frequency /= frequency.sum()
    words = np.stack([random.permutation(WORDS) for _ in range(SUBJECTS)])
    subject = random.integers(SUBJECTS, size=(TEXTS, 1))
    ranks = random.choice(WORDS, size=(TEXTS, LENGTH), p=frequency)
    mixture = np.zeros(WORDS)
    for order in words:
        mixture[order] += frequency / SUBJECTS
    return (words[subject, ranks] + 5).astype(np.int32), float(-(mixture * np.log(mixture)).sum())


def _batch(texts: np.ndarray, first_id: int) -> Batch:
    rows = len(texts)
    return {
        "tokens": jnp.asarray(texts),
        "segment_ids": jnp.ones((rows, LENGTH), jnp.int32),
        "positions": jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), (rows, 1)),
        "example_ids": jnp.tile(jnp.arange(rows, dtype=jnp.int32)[:, None] + first_id, (1, LENGTH)),
        "maskable": jnp.ones((rows, LENGTH), bool),
    }


@jax.jit
def _held_out_loss(parameters: Any, batch: Batch) -> jax.Array:
    noised = OBJECTIVE.noise(batch, jax.random.key(1, impl="threefry2x32"))
    scores = score(encoders.from_parameters(CONFIG, parameters), noised)
    return scores.nll.sum() / noised.absorbed.sum()


def _train(optimizer: AdamW, texts: np.ndarray, steps: int, seed: int) -> tuple[list[float], int]:
    """Held-out losses, nats per absorbed token, one for each batch; and bytes of the state."""
    transformation = optimizer.build(steps)
    parameters = encoders.parameters(encoders.Encoder(CONFIG, rngs=nnx.Rngs(seed)))
    state = TrainState.create(parameters, transformation)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer_state))
    mesh = make_mesh(MeshConfig())
    stage = adaptation(CONFIG, None, OBJECTIVE, transformation, mesh, length=LENGTH, seed=seed)
    step = jax.jit(stage.step, donate_argnums=0)
    held_out, training = texts[: HELD_OUT * ROWS], texts[HELD_OUT * ROWS :]
    order = np.random.default_rng(seed).integers(len(training), size=(steps, ROWS))
    for number, chosen in enumerate(order):
        state, _ = step(state, _batch(training[chosen], number * ROWS))
    batches = [
        _batch(rows, 10**6 + i * ROWS) for i, rows in enumerate(np.split(held_out, HELD_OUT))
    ]
    return [float(_held_out_loss(state.parameters, batch)) for batch in batches], size


def main() -> None:
    """Trains, prints the figures, and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    options = parser.parse_args()
    (texts, blind), figures = _texts(), {}
    exact = np.zeros(0)
    print(f"loss without knowing the subject: {blind:.4f} nats/token")
    print(f"{'first, second moment':<22}{'bytes a parameter':>18}{'loss':>9}{'difference':>22}")
    for name, setting in SETTINGS.items():
        began = time.monotonic()
        optimizer = AdamW(learning_rate=options.learning_rate, **setting)
        runs = [_train(optimizer, texts, options.steps, seed) for seed in range(options.seeds)]
        losses = np.asarray([loss for run, _ in runs for loss in run])
        exact = exact if exact.size else losses
        difference = losses - exact
        error = difference.std(ddof=1) / len(difference) ** 0.5
        size = runs[0][1] / CONFIG.num_parameters()
        print(
            f"{name:<22}{size:>18.2f}{losses.mean():>9.4f}"
            f"{difference.mean():>+13.4f} ± {error:.4f}  ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
        figures[name] = {
            "bytes_a_parameter": round(size, 3),
            "loss": round(float(losses.mean()), 4),
            "difference": [round(float(difference.mean()), 4), round(float(error), 4)],
        }
    print(
        json.dumps(
            {"steps": options.steps, "seeds": options.seeds, "blind": round(blind, 4), **figures}
        )
    )


if __name__ == "__main__":
    main()
