"""Prompts that a model has no room for: cut, left out or refused, and counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dlm_jax.data.table import Truncation
from dlm_jax.errors import UserError
from dlm_jax.evaluation.generation import Example


def fit_prompts(
    examples: Sequence[Example],
    response_lengths: Sequence[int],
    max_length: int,
    truncation: Truncation,
    task: str,
) -> tuple[list[Example], dict[str, float]]:
    """Makes every prompt fit beside its response, in the way that training examples are cut.

    Args:
      examples: what is to be answered.
      response_lengths: most tokens of each answer, `</s>` not counted.
      max_length: tokens of a row.
      truncation: what becomes of longer prompts; `<s>` stays where they are cut.
      task: its name, for messages.

    Returns:
      (examples, figures): `prompts_cut` and `examples_dropped`, each where it is not 0.

    Raises:
      UserError: a response alone fills the row, nothing is left, or a prompt is too long under
        `Truncation(overlong='error')`.
    """
    fitted: list[Example] = []
    cut = 0
    for example, response in zip(examples, response_lengths):
        room = max_length - 1 - response
        prompt = example.prompt_ids
        if room < 1 or (len(prompt) > room and truncation.overlong == "error"):
            raise UserError(
                f"task {task!r}, example {example.index}: a prompt of {len(prompt)} tokens, an "
                f"answer of {response} and </s> do not fit into a row of {max_length}"
            )
        if len(prompt) <= room:
            fitted.append(example)
        elif truncation.overlong == "cut":
            cut += 1
            tail = room - 1
            if truncation.side == "left":
                kept = [prompt[0], *prompt[len(prompt) - tail :]]
            else:
                kept = list(prompt[:room])
            fitted.append(dataclasses.replace(example, prompt_ids=kept))
    dropped = len(examples) - len(fitted)
    if examples and not fitted:
        raise UserError(f"task {task!r}: all {dropped} prompts are longer than a row and dropped")
    counts = {"prompts_cut": float(cut), "examples_dropped": float(dropped)}
    return fitted, {name: count for name, count in counts.items() if count}
