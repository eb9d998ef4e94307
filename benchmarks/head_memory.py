"""The loss over 250k tokens of vocabulary: memory and time, chunked against dense.

    python benchmarks/head_memory.py [--positions 1024] [--embed 256] [--absorbed 0.5] [--rounds 3]

Both sides compute the loss and its gradients with respect to hidden states, table and bias, in
float32. The dense side makes the logits of all positions, as a head without care does; ours
projects the absorbed positions only, a chunk at a time. Memory is what the compiled program needs
beside its arguments (`temp` plus outputs, as XLA's buffer assignment counts it). The two run in
turn; times are medians and the ratio is the median of the paired ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.models.cross_entropy import linear_cross_entropy

_MIB = 2**20


def _dense(
    hidden: jax.Array, table: jax.Array, bias: jax.Array, targets: jax.Array, weight: jax.Array
) -> jax.Array:
    log_p = jax.nn.log_softmax(hidden @ table.T + bias)
    return (weight * -jnp.take_along_axis(log_p, targets[:, None], -1)[:, 0]).sum()


def _chunked(
    hidden: jax.Array, table: jax.Array, bias: jax.Array, targets: jax.Array, weight: jax.Array
) -> jax.Array:
    return linear_cross_entropy(hidden, table, bias, targets, weight, jnp.zeros_like(weight))[0]


def _arrays(positions: int, embed: int, vocab: int, absorbed: float) -> tuple[jax.Array, ...]:
    random = np.random.default_rng(0)
    chosen = random.uniform(size=positions) < absorbed
    return (
        jnp.asarray(random.normal(size=(positions, embed)), jnp.float32),
        jnp.asarray(random.normal(size=(vocab, embed)) / embed**0.5, jnp.float32),
        jnp.asarray(random.normal(size=vocab), jnp.float32),
        jnp.asarray(random.integers(0, vocab, positions), jnp.int32),
        jnp.asarray(chosen * random.uniform(0.5, 2.0, positions), jnp.float32),
    )


def _compiled(loss: Callable[..., jax.Array], arrays: tuple[jax.Array, ...]) -> tuple[Any, float]:
    program = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arrays).compile()
    memory = program.memory_analysis()
    assert memory is not None  # every backend that runs programs has one
    return program, (memory.temp_size_in_bytes + memory.output_size_in_bytes) / _MIB


def _seconds(program: Any, arrays: tuple[jax.Array, ...]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(program(*arrays))
    return time.perf_counter() - began


def _largest_difference(ours: Any, theirs: Any) -> float:
    """Largest difference of two trees, relative to the largest element of each array."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


def main() -> None:
    """Measures, prints the figures, and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--embed", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=250002)
    parser.add_argument("--absorbed", type=float, default=0.5, help="share of the positions")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    arrays = _arrays(options.positions, options.embed, options.vocab, options.absorbed)
    dense, dense_mib = _compiled(_dense, arrays)
    chunked, chunked_mib = _compiled(_chunked, arrays)
    difference = _largest_difference(chunked(*arrays), dense(*arrays))
    times = [
        (_seconds(chunked, arrays), _seconds(dense, arrays)) for _ in range(max(1, options.rounds))
    ]
    ours, theirs = (statistics.median(column) for column in zip(*times))
    ratio = statistics.median(dense_time / chunked_time for chunked_time, dense_time in times)
    tables_mib = 4 * (arrays[1].size + arrays[2].size + arrays[0].size) / _MIB
    print(
        f"{options.positions} positions, {options.absorbed:.0%} absorbed, width {options.embed}, "
        f"vocabulary {options.vocab:,}; the gradients themselves take {tables_mib:,.0f} MiB"
    )
    print(f"{'':<10}{'memory, MiB':>14}{'seconds':>10}")
    print(f"{'dense':<10}{dense_mib:>14,.0f}{theirs:>10.2f}")
    print(f"{'chunked':<10}{chunked_mib:>14,.0f}{ours:>10.2f}")
    print(f"largest relative difference of loss and gradients: {difference:.1e}")
    summary = {
        "positions": options.positions,
        "embed": options.embed,
        "vocab": options.vocab,
        "absorbed": options.absorbed,
        "device": jax.devices()[0].device_kind,
        "gradients_mib": round(tables_mib),
        "dense_mib": round(dense_mib),
        "chunked_mib": round(chunked_mib),
        "dense_seconds": round(theirs, 3),
        "chunked_seconds": round(ours, 3),
        "speedup": round(ratio, 2),
        "largest_difference": difference,
        "equal_to_1e-5": difference < 1e-5,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
