"""The project's own training step as a child of `train_step.py`: packed rows, one compiled call."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.worker import Examples, gemm_rate, load_examples, serve
from dlm_jax.data.packing import Batch, PlacedExample, RowPacker, fill_rows
from dlm_jax.diffusion.objectives import DiffusionObjective
from dlm_jax.diffusion.process import AbsorbingProcess
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel.compiler import training_compiler_options
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.optimizers import AdamW
from dlm_jax.training.stage import adaptation
from dlm_jax.training.state import TrainState

PAD_ID = 1
TOTAL_STEPS = 1000


def pack(examples: Examples, rows: int, length: int, first_id: int) -> Batch:
    """Packs ragged examples into [rows, length]; all of them have to fit."""
    count = len(examples.lengths)
    begins = np.cumsum(examples.lengths) - examples.lengths
    packer = RowPacker(rows, length, pack=True)
    content: list[list[PlacedExample]] = [[] for _ in range(rows)]
    for index, size in enumerate(examples.lengths):
        row = packer.place(int(size))
        if row is None:
            raise ValueError(f"{count} examples do not fit into {rows} rows of {length} tokens")
        tokens = examples.tokens[begins[index] : begins[index] + size]
        prompt_length = int(examples.prompt_lengths[index])
        content[row].append(PlacedExample(tokens, prompt_length, first_id + index))
    return fill_rows(content, length, PAD_ID)


class Trainer:
    """Model, optimizer and the compiled step, on one CPU device."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        config = EncoderConfig(
            vocab_size=arguments.vocab_size,
            embed_dim=arguments.embed_dim,
            num_layers=arguments.num_layers,
            num_heads=arguments.num_heads,
            mlp_dim=arguments.mlp_dim,
            dropout_rate=arguments.dropout_rate,
            attention_dropout_rate=arguments.dropout_rate,
        )
        process = AbsorbingProcess(
            mask_id=arguments.vocab_size - 1, num_timesteps=arguments.num_timesteps
        )
        optimizer = AdamW(learning_rate=1e-5, weight_decay=0.01, b2=0.98, max_grad_norm=1.0)
        transformation = optimizer.build(TOTAL_STEPS)
        objective, mesh = DiffusionObjective(process), make_mesh(MeshConfig())
        length = config.max_length
        step = adaptation(config, None, objective, transformation, mesh, length=length, seed=0).step
        options = training_compiler_options()
        self._step = jax.jit(step, donate_argnums=0, compiler_options=options)
        self._state = TrainState.create(_initial_parameters(config), transformation)

    def step(self, batch: Batch) -> dict[str, float]:
        """One update; wall-clock seconds, the loss and how many positions were projected."""
        start = time.perf_counter()
        self._state, metrics = jax.block_until_ready(self._step(self._state, batch))
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "loss": float(metrics["loss_sum"] / metrics["weight_sum"]),
            "absorbed": float(metrics["absorbed_tokens"]),
            "positions": 2 * batch["tokens"].size,
        }


def _initial_parameters(config: EncoderConfig) -> encoders.Parameters:
    # Values do not matter to time, as long as nothing overflows: normal, 0.02, scales at one.
    generator = np.random.default_rng(0)

    def draw(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name in ("scale", "bias"):
            return jax.numpy.full(leaf.shape, name == "scale", leaf.dtype)
        return jax.device_put(0.02 * generator.standard_normal(leaf.shape, np.float32))

    return jax.tree_util.tree_map_with_path(draw, encoders.abstract_parameters(config))


def main() -> None:
    """Serves the steps of every case, and the GEMM that XLA reaches on this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", required=True)
    parser.add_argument("--rows", type=str, required=True, help="case=rowsxlength,...")
    parser.add_argument("--num_timesteps", type=int, required=True)
    parser.add_argument("--dropout_rate", type=float, required=True)
    for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "mlp_dim"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    trainer = Trainer(arguments)
    shapes: dict[str, tuple[int, int]] = {}
    for item in arguments.rows.split(","):
        case, shape = item.split("=")
        rows, length = shape.split("x")
        shapes[case] = (int(rows), int(length))
    cases = {
        case: [pack(step, *shapes[case], first_id=1000 * i) for i, step in enumerate(steps)]
        for case, steps in load_examples(arguments.examples).items()
    }

    def gemm(size: int) -> dict[str, float]:
        left, right = jax.random.uniform(jax.random.key(0), (2, size, size))
        multiply = jax.jit(jax.numpy.matmul)
        return {
            "flops_per_second": gemm_rate(lambda: multiply(left, right).block_until_ready(), size)
        }

    def stepper(batches: list[Batch]) -> Callable[[int], dict[str, float]]:
        return lambda index: trainer.step(batches[index % len(batches)])

    serve({"gemm": gemm} | {case: stepper(batches) for case, batches in cases.items()})


if __name__ == "__main__":
    main()
