"""Autoregressive decoding with kept keys and values, beside samplers that encode the whole canvas.

    python -m benchmarks.cached_decode [--rows 32] [--prompt 18] [--tokens 25] [--rounds 5]

One encoder size, random weights and random prompts; no row ends early. `autoregressive` is a causal
model that reads its prompt once and then one token of each row a step; `left-to-right` writes as
many tokens with a model that sees both sides, a whole pass for each; `diffusion` takes 10 passes.
The three run in turn; times are medians, ratios are medians of the paired ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from flax import nnx

from dlm_jax.models.config import SIZES
from dlm_jax.models.encoder import Encoder
from dlm_jax.sampling import Policy, generate, infilling_canvas
from dlm_jax.sampling.autoregressive import DENOISING_STRATEGY, STRATEGY, NextToken

VOCABULARY = SimpleNamespace(pad_id=1, bos_id=0, eos_id=2, mask_id=29999, size=30000)
SHAPE = dataclasses.replace(
    SIZES["base"],
    vocab_size=VOCABULARY.size,
    embed_dim=256,
    num_layers=6,
    num_heads=8,
    mlp_dim=1024,
)


def _sides(rows: int, prompt: int, tokens: int) -> dict[str, tuple[Any, ...]]:
    random = np.random.default_rng(0)
    texts = [[random.integers(5, VOCABULARY.mask_id, prompt).tolist()] for _ in range(rows)]
    whole = infilling_canvas([[*text, tokens] for text in texts], VOCABULARY)
    # One of the tokens is where `</s>` could stand.
    open_ended = infilling_canvas([[*text, tokens - 1] for text in texts], VOCABULARY, ended=False)
    denoiser = Encoder(SHAPE, rngs=nnx.Rngs(0))
    causal = dataclasses.replace(SHAPE, attention_pattern="causal")
    return {
        "autoregressive": (
            NextToken(Encoder(causal, rngs=nnx.Rngs(0))),
            open_ended,
            Policy.parse(STRATEGY),
        ),
        "left-to-right": (denoiser, whole, Policy.parse("left-to-right", steps=None)),
        "diffusion": (denoiser, whole, Policy.parse(DENOISING_STRATEGY, steps=10)),
    }


def _seconds(side: tuple[Any, ...]) -> tuple[float, float]:
    """Seconds of one decoding, and evaluations of a row."""
    began = time.perf_counter()
    denoiser, canvas, policy = side
    key = jax.random.key(0, impl="threefry2x32")
    result = generate(denoiser, canvas, policy, key, mask_id=VOCABULARY.mask_id)
    jax.block_until_ready(result.tokens)
    return time.perf_counter() - began, float(np.mean(result.nfe))


def main() -> None:
    """Measures, prints the figures, and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=18)
    parser.add_argument("--tokens", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sides = _sides(options.rows, options.prompt, options.tokens)
    evaluations = {name: _seconds(side)[1] for name, side in sides.items()}
    rounds = [
        {name: _seconds(side)[0] for name, side in sides.items()} for _ in range(options.rounds)
    ]
    seconds = {name: statistics.median(times[name] for times in rounds) for name in sides}
    ratios = {
        name: statistics.median(times[name] / times["autoregressive"] for times in rounds)
        for name in sides
    }
    print(f"{options.rows} rows, prompts of {options.prompt} tokens, {options.tokens} to write")
    print(f"{'':<16}{'evaluations':>12}{'seconds':>10}{'ratio':>8}")
    for name in sides:
        print(f"{name:<16}{evaluations[name]:>12.0f}{seconds[name]:>10.2f}{ratios[name]:>8.2f}")
    summary = {
        **vars(options),
        "device": jax.devices()[0].device_kind,
        "evaluations": evaluations,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ratio": {name: round(value, 2) for name, value in ratios.items()},
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
