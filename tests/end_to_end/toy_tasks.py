"""Tasks small enough to learn in seconds, as a user would write them."""

from __future__ import annotations

import random

from dlm_jax.data.tasks import register_mixture, register_task
from dlm_jax.evaluation.metrics import exact_match

LETTERS = "abcdefgh"


def _records(seed: int, count: int):
    rng = random.Random(seed)
    for _ in range(count):
        word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 4)))
        yield {"word": word, "echo": word, "upper": word.upper()}


def _counts(seed: int, count: int):
    rng = random.Random(seed)
    for _ in range(count):
        size = rng.randint(1, 6)
        yield {"marks": "x" * size, "answer": "ab" * size}


SPLITS = {"train": lambda: _records(1, 400), "validation": lambda: _records(2, 40)}

register_task(
    "toy_v1.echo", splits=SPLITS, inputs="echo {word} : ", targets="{echo}", metrics=(exact_match,)
)
register_task(
    "toy_v1.upper",
    splits=SPLITS,
    inputs="upper {word} : ",
    targets="{upper}",
    metrics=(exact_match,),
)
register_task("toy_v1.text", splits=SPLITS, targets="{word} {word} {word}")
# The length of an answer follows from its prompt.
register_task(
    "toy_v1.counted",
    splits={"train": lambda: _counts(1, 300), "validation": lambda: _counts(2, 40)},
    inputs="{marks} : ",
    targets="{answer}",
    metrics=(exact_match,),
)
register_mixture("toy_v1.mixture", {"toy_v1.echo": 2.0, "toy_v1.upper": 1.0})
