"""What a task looks like to the model: decoded examples with their maskable part marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dlm_jax.data.table import CUT_LEFT, ExampleTable, Truncation, TruncationCounts, build_table
from dlm_jax.data.tasks import Mixture, Task, members
from dlm_jax.data.vocabularies import Vocabulary

OPENING, CLOSING = "⟦", "⟧"


@dataclasses.dataclass(frozen=True)
class PreviewedExample:
    """One example as a model gets it.

    Attributes:
      task: name of its task.
      record: number of the record it came from.
      prompt: decoded prompt, never noised.
      response: decoded maskable part, without `</s>`.
      pieces: surface form of every token, special ones included.
      maskable: for each token whether the process may absorb it.
      text: prompt and response with the maskable part between `⟦` and `⟧`.
    """

    task: str
    record: int
    prompt: str
    response: str
    pieces: tuple[str, ...]
    maskable: tuple[bool, ...]
    text: str


@dataclasses.dataclass(frozen=True)
class TaskPreview:
    """The first examples of a task, or of each task of a mixture.

    Attributes:
      name: name of the task or mixture.
      split: the split shown.
      proportions: share of each task.
      sizes: number of examples read of each task.
      mean_lengths: for each task its mean (prompt, response) tokens, `<s>` and `</s>` included.
      counts: what truncation did to each task.
      examples: the examples, task by task.
    """

    name: str
    split: str
    proportions: dict[str, float]
    sizes: dict[str, int]
    mean_lengths: dict[str, tuple[float, float]]
    counts: dict[str, TruncationCounts]
    examples: tuple[PreviewedExample, ...]


def preview(
    task: str | Task | Mixture | Mapping[str, float],
    vocabulary: Vocabulary,
    n: int = 3,
    *,
    split: str | None = None,
    length: int = 512,
    truncation: Truncation = CUT_LEFT,
    limit: int | None = 1000,
) -> TaskPreview:
    """Tokenises the beginning of a task and decodes its first examples.

    Args:
      task: a name, a task, a mixture, or rates by name.
      vocabulary: how text becomes ids.
      n: examples to show of each task.
      split: which split; by default the first one of each task.
      length: tokens of a row.
      truncation: what becomes of longer examples.
      limit: records to read and count of each task; None reads all.

    Raises:
      UserError: the task, its split or its data is unusable.
    """
    name, resolved = members(task)
    tables = {
        member.name: build_table(
            member, split or member.split_names[0], vocabulary, length, truncation, limit=limit
        )
        for member, _ in resolved
    }
    return TaskPreview(
        name=name,
        split=split or resolved[0][0].split_names[0],
        proportions={member.name: share for member, share in resolved},
        sizes={key: len(table) for key, table in tables.items()},
        mean_lengths={key: _mean_lengths(table) for key, table in tables.items()},
        counts={key: table.counts for key, table in tables.items()},
        examples=tuple(
            _previewed(key, table, index, vocabulary)
            for key, table in tables.items()
            for index in range(min(n, len(table)))
        ),
    )


def _mean_lengths(table: ExampleTable) -> tuple[float, float]:
    prompt = float(table.prompt_lengths.mean())
    return prompt, float(table.lengths.mean()) - prompt


def _previewed(
    task: str, table: ExampleTable, index: int, vocabulary: Vocabulary
) -> PreviewedExample:
    tokens, prompt_length = table.example(index)
    prompt = vocabulary.decode(tokens[:prompt_length])
    response = vocabulary.decode(tokens[prompt_length:])
    end = vocabulary.piece(vocabulary.eos_id)
    marked = f"{OPENING}{response} {end}{CLOSING}"
    return PreviewedExample(
        task=task,
        record=int(table.records[index]),
        prompt=prompt,
        response=response,
        pieces=tuple(vocabulary.piece(int(token)) for token in tokens),
        maskable=tuple(place >= prompt_length for place in range(len(tokens))),
        text=f"{prompt} {marked}" if prompt else marked,
    )
