"""Training throughput beside the same algorithm in torch + transformers, and beside a plain GEMM.

    python -m benchmarks.train_step [--rounds 5] [--cases full pairs]

XLM-R-base layer shapes with a pruned vocabulary of the same size on both sides, dropout 0.1,
coupled corruption (two rows an example), the vocabulary projected at absorbed positions only,
AdamW, gradients clipped at norm 1, float32, two threads. The sides are two processes that are asked
in turn, one step each on the same examples; ratios are of neighbouring steps, and their median is
reported. Cases: `full` rows, where every token is useful, and real `pairs` (Multi30k, English to
German), which torch pads to the longest of its batch, as the paper's code does, and we pack.
Only useful tokens count: clean tokens of examples, without padding, once an example and step.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
ANSWER = "answer "
SHAPE = {"embed_dim": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072}
NUM_TIMESTEPS = 50
DROPOUT_RATE = 0.1
# Not a power of two: rows 16 KiB apart drive each other out of the first cache.
GEMM_SIZE = 4112

# What a step frees stays with the process for the next one; by default glibc returns every large
# buffer, and the kernel clears gigabytes of pages again in each step. Where the heap still grows,
# it does so by huge pages. Both sides gain.
KEEP_FREED_MEMORY = (
    "glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"
    ":glibc.malloc.trim_threshold=" + str(2**64 - 1)
)

Example = tuple[list[int], int]


class Side:
    """A child process that answers one question at a time."""

    def __init__(self, module: str, arguments: list[str], threads: int) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "GLIBC_TUNABLES": KEEP_FREED_MEMORY,
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if hasattr(os, "sched_setaffinity"):  # XLA takes every core that it may run on
            os.sched_setaffinity(self._process.pid, sorted(os.sched_getaffinity(0))[:threads])
        self._answer()

    def ask(self, command: str, index: int) -> dict[str, float]:
        """Sends one command and waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command} {index}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError(f"{self._process.args!r} ended with code {self._process.wait()}")

    def close(self) -> None:
        """Ends the child."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def full_rows(rows: int, length: int, vocab_size: int, steps: int) -> list[list[Example]]:
    """Random examples that fill their row, half prompt, half response."""
    generator = np.random.default_rng(0)
    return [
        [(generator.integers(4, vocab_size - 1, length).tolist(), length // 2) for _ in range(rows)]
        for _ in range(steps)
    ]


def pair_stream(data_folder: Path, vocabulary: Any) -> Iterator[Example]:
    """English to German pairs `<s> prompt target </s>` in a shuffled order; endless."""
    sides = []
    for language in ("en", "de"):
        path = data_folder / "multi30k" / f"train.{language}.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            sides.append(file.read().splitlines())
    order = np.random.default_rng(0).permutation(len(sides[0]))
    for index in itertools.cycle(order):
        prompt = [vocabulary.bos_id, *vocabulary.encode(sides[0][index])]
        yield [*prompt, *vocabulary.encode(sides[1][index]), vocabulary.eos_id], len(prompt)


def packed_steps(
    stream: Iterator[Example], rows: int, length: int, steps: int
) -> list[list[Example]]:
    """Cuts the stream into steps of as many examples as the loader packs into [rows, length]."""
    from dlm_jax.data.packing import RowPacker

    cut: list[list[Example]] = []
    packer = RowPacker(rows, length, pack=True)
    current: list[Example] = []
    while len(cut) < steps:
        example = next(stream)
        if packer.place(len(example[0])) is None:
            cut.append(current)
            packer, current = RowPacker(rows, length, pack=True), []
            packer.place(len(example[0]))
        current.append(example)
    return cut


def save_examples(path: Path, cases: dict[str, list[list[Example]]]) -> None:
    """Writes what both children read."""
    arrays: dict[str, NDArray[Any]] = {}
    for case, steps in cases.items():
        for index, step in enumerate(steps):
            name = f"{case}/{index:04d}"
            arrays[f"{name}/tokens"] = np.concatenate([ids for ids, _ in step]).astype(np.int32)
            arrays[f"{name}/lengths"] = np.array([len(ids) for ids, _ in step])
            arrays[f"{name}/prompt_lengths"] = np.array([prompt for _, prompt in step])
    np.savez(path, **arrays)  # type: ignore[arg-type]


def useful_flops(step: list[Example], absorbed: float, vocab_size: int) -> float:
    """FLOPs that the algorithm needs for one step, without recomputation and padding.

    6 per weight and token (2 forward, 4 backward) for both rows of each example; attention
    3 * 4 * layers * embed * length^2 a row; head transform and projection at absorbed positions.
    """
    embed, mlp, layers = SHAPE["embed_dim"], SHAPE["mlp_dim"], SHAPE["num_layers"]
    lengths = np.array([len(ids) for ids, _ in step], dtype=np.float64)
    weights = layers * (4 * embed**2 + 2 * embed * mlp)
    attention = 12 * layers * embed * float((lengths**2).sum())
    head = 6 * absorbed * embed * (embed + vocab_size)
    return 2 * (6 * weights * float(lengths.sum()) + attention) + head


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each side and case")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first timed one")
    parser.add_argument("--cases", nargs="+", default=["full", "pairs"], choices=["full", "pairs"])
    parser.add_argument("--full_rows", default="8x256", help="examples x tokens of a step")
    parser.add_argument("--pair_rows", default="16x128", help="packed rows x tokens of a step")
    parser.add_argument("--vocab_size", type=int, default=34_483)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def build_cases(arguments: argparse.Namespace) -> dict[str, list[list[Example]]]:
    """The examples of each step of each case."""
    steps = arguments.rounds + arguments.warmup
    cases = {}
    if "full" in arguments.cases:
        rows, length = (int(size) for size in arguments.full_rows.split("x"))
        cases["full"] = full_rows(rows, length, arguments.vocab_size, steps)
    if "pairs" in arguments.cases:
        folders = [os.environ.get(name) for name in ("DLM_DATA_DIR", "DLM_MODELS_DIR")]
        if not all(folders):
            print("pairs: skipped, DLM_DATA_DIR and DLM_MODELS_DIR name no folders")
            return cases
        from dlm_jax.data.vocabularies import load_vocabulary

        vocabulary = load_vocabulary(Path(str(folders[1])) / "e5-small-en-de-fr")
        rows, length = (int(size) for size in arguments.pair_rows.split("x"))
        stream = pair_stream(Path(str(folders[0])), vocabulary)
        cases["pairs"] = packed_steps(stream, rows, length, steps)
    return cases


def measure(
    sides: dict[str, Side], case: str, steps: list[list[Example]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Alternates the sides over the steps of a case; medians of what neighbouring steps give."""
    rounds: list[dict[str, dict[str, float]]] = []
    for index, step in enumerate(steps):
        # Who goes first changes, so that neither always follows the other's cache and clock.
        order = list(sides) if index % 2 else list(reversed(sides))
        answers = {}
        for name in order:
            answers[name] = sides[name].ask(case, index)
            answers[name]["gemm"] = sides[name].ask("gemm", GEMM_SIZE)["flops_per_second"]
        if index < arguments.warmup:
            continue
        useful = sum(len(ids) for ids, _ in step)
        peak = max(answer["gemm"] for answer in answers.values())
        for answer in answers.values():
            flops = useful_flops(step, answer["absorbed"], arguments.vocab_size)
            answer["tokens_per_second"] = useful / answer["seconds"]
            answer["flops_per_second"] = flops / answer["seconds"]
            answer["peak_fraction"] = answer["flops_per_second"] / peak
            answer["useful_share"] = 2 * useful / answer["positions"]
        rounds.append(answers)
        print(
            f"{case} round {len(rounds)}: {len(step)} examples, {useful} tokens; "
            + "; ".join(f"{name} {rounds[-1][name]['seconds']:.2f} s" for name in sides),
            flush=True,
        )

    def median(name: str, key: str) -> float:
        return statistics.median(answers[name][key] for answers in rounds)

    keys = ("tokens_per_second", "flops_per_second", "gemm", "peak_fraction", "useful_share")
    ratios = [r["torch"]["seconds"] / r["dlm_jax"]["seconds"] for r in rounds]
    return {
        "speedup": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        **{name: {key: median(name, key) for key in keys} for name in sides},
    }


def show(case: str, result: dict[str, Any]) -> None:
    """Prints a case for people."""
    print(f"\n{case}: medians of the rounds")
    print("           tokens/s  GFLOP/s  GEMM GFLOP/s  fraction of best  useful positions")
    for name in ("dlm_jax", "torch"):
        side = result[name]
        print(
            f"  {name:8} {side['tokens_per_second']:8.1f} {side['flops_per_second'] / 1e9:8.1f} "
            f"{side['gemm'] / 1e9:13.1f} {side['peak_fraction']:17.3f} {side['useful_share']:17.3f}"
        )
    low, high = result["speedup_range"]
    print(f"  dlm_jax is {result['speedup']:.2f} times as fast ({low:.2f} to {high:.2f})\n")


def main() -> None:
    """Runs the cases, prints a table of each and one line of JSON."""
    arguments = parse_arguments()
    cases = build_cases(arguments)
    shared = [f"--{name}={value}" for name, value in SHAPE.items()]
    shared += [f"--vocab_size={arguments.vocab_size}", f"--num_timesteps={NUM_TIMESTEPS}"]
    shared += [f"--dropout_rate={DROPOUT_RATE}"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "examples.npz"
        save_examples(path, cases)
        shared += [f"--examples={path}"]
        rows = f"full={arguments.full_rows},pairs={arguments.pair_rows}"
        threads = arguments.threads
        sides = {
            "dlm_jax": Side("benchmarks.dlm_jax_step", [*shared, f"--rows={rows}"], threads),
            "torch": Side("benchmarks.torch_baseline", [*shared, f"--threads={threads}"], threads),
        }
        print("both sides are ready; steps that compile and claim memory are not counted")
        results = {case: measure(sides, case, steps, arguments) for case, steps in cases.items()}
    for side in sides.values():
        side.close()
    for case, result in results.items():
        show(case, result)
    versions = {name: metadata.version(name) for name in ("jax", "torch", "transformers")}
    record = {"benchmark": "train_step", "vocab_size": arguments.vocab_size, **results}
    print(json.dumps(record | {"versions": versions, "machine": platform.machine()}))


if __name__ == "__main__":
    main()
