"""`dlm sample`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_jax.errors import UserError

if TYPE_CHECKING:
    from dlm_jax.api import DiffusionLanguageModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument(
        "--run_dir",
        required=True,
        metavar="FOLDER",
        help="run folder, one of its checkpoints, or a Hugging Face folder",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="text to answer; may be repeated; - reads one prompt a line from the standard input",
    )
    parser.add_argument(
        "--infill",
        action="append",
        default=[],
        metavar="TEXT",
        help="text whose gaps to fill: <mask> is one token, <mask>*3 three",
    )
    parser.add_argument("--steps", type=int, help="denoiser evaluations of an answer")
    parser.add_argument(
        "--length",
        type=_lengths,
        metavar="TOKENS",
        help="tokens of an answer (16); of several (1,2,4) the best-scored answer is kept; "
        "predicted asks the predictor that dlm length has trained; of a causal model, which ends "
        "its answers itself, the most",
    )
    parser.add_argument(
        "--length_beam", type=int, metavar="N", help="predicted lengths that are tried (1)"
    )
    parser.add_argument(
        "--mbr",
        type=int,
        metavar="N",
        help="answers of each length (1); more need a temperature or a strategy with noise",
    )
    parser.add_argument(
        "--rerank",
        metavar="HOW",
        help="which answer is kept: mean (best score), joint (with that of the length), or the one "
        "that the others support by bleu, rougeL or exact_match",
    )
    parser.add_argument("--strategy", help="decoding, such as cmlm or left-to-right")
    parser.add_argument(
        "--temperature", type=float, help="of sampled tokens; 0 takes the likeliest"
    )
    parser.add_argument(
        "--no_special_tokens",
        dest="special_tokens",
        action="store_false",
        help="never write </s> or its like within an answer, which may leave it shorter or empty",
    )
    parser.add_argument("--seed", type=_seed, help="of everything random")
    parser.add_argument("--trace", metavar="FILE.html", help="write how the answers came about")


def run(arguments: argparse.Namespace) -> None:
    """Prints one answer a line, in the order of the prompts or texts."""
    prompts = _prompts(arguments.prompt)
    for text in [*prompts, *arguments.infill]:
        if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
            raise UserError(f"{text!r} is not UTF-8 text")
    if arguments.prompt and not prompts:
        raise UserError("--prompt=-: the standard input is empty")
    if bool(prompts) == bool(arguments.infill):
        raise UserError("dlm sample needs either --prompt (repeatable, - for stdin) or --infill")
    candidates = ("length", "length_beam", "mbr", "rerank")
    for name in candidates:
        if arguments.infill and getattr(arguments, name) is not None:
            raise UserError(
                f"--{name} goes with --prompt: the gaps of --infill have their own lengths"
            )
    if arguments.trace and not Path(arguments.trace).parent.is_dir():
        raise UserError(f"--trace={arguments.trace} cannot be written: its folder does not exist")
    names = (*candidates, "steps", "strategy", "temperature", "seed", "special_tokens")
    options = {name: getattr(arguments, name) for name in names}
    options = {name: value for name, value in options.items() if value is not None}
    import dlm_jax.api

    model = dlm_jax.api.load(arguments.run_dir)
    if arguments.trace:
        options["trace"] = True
    answers = (
        model.generate(prompts, **options) if prompts else model.infill(arguments.infill, **options)
    )
    for text, answer in zip(prompts or arguments.infill, answers, strict=True):
        print(answer.text)
        if not answer.tokens:
            why = "wrote only special tokens such as </s>, which --no_special_tokens forbids"
            if model.denoiser.config.causal:
                why = "ended it at once"
            print(f"The answer to {text!r} is empty: the model {why}.", file=sys.stderr)
    if arguments.trace:
        _write_trace(Path(arguments.trace), model, _titles(prompts, model) or arguments.infill)


def _titles(prompts: list[str], model: DiffusionLanguageModel) -> list[str]:
    """One heading a row: each prompt has a row for every candidate."""
    rows = model.candidates
    if len(rows) == len(prompts):
        return prompts
    return [f"{prompts[row.prompt]} ({row.length} tokens)" for row in rows]


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {2**32 - 1}")
    return int(text)


def _lengths(text: str) -> int | list[int] | str:
    """Reads '16', '1,2,4' or 'predicted'."""
    if text == "predicted":
        return text
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of tokens, nor several (1,2,4), nor predicted"
        )
    return [int(part) for part in parts] if len(parts) > 1 else int(text)


def _write_trace(path: Path, model: DiffusionLanguageModel, titles: list[str]) -> None:
    from dlm_jax.sampling.trace_page import trace_html

    assert model.trace is not None
    page = trace_html(
        model.trace, model.vocabulary.piece, rows=range(len(titles)), row_titles=titles
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--trace={path} cannot be written: {error.strerror}") from error
    print(f"trace: {path}", file=sys.stderr)


def _prompts(flags: list[str]) -> list[str]:
    prompts: list[str] = []
    for flag in flags:
        if flag != "-":
            prompts.append(flag)
            continue
        try:
            prompts += [line.rstrip("\r\n") for line in sys.stdin]
        except UnicodeDecodeError as error:
            raise UserError("--prompt=-: the standard input is not UTF-8 text") from error
    return prompts
