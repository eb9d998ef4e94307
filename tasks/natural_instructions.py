"""Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705): held-out tasks, not examples.

Read from the folder `natural_instructions` under DLM_DATA_DIR, a copy of the repository
allenai/natural-instructions: `tasks/*.json`, each gzipped or not, and for the authors' division
`splits/default/train_tasks.txt` and `test_tasks.txt`. A folder without `splits` is divided by a
digest of the names of its tasks.

Training tasks are taken in the order of such a digest, so that the tasks of a smaller number are
among those of a larger one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dlm_jax.data.files import data_folder, find_file, read_json, read_lines
from dlm_jax.data.tasks import Record, TextTask, register_task
from dlm_jax.errors import UserError
from dlm_jax.evaluation.answers import Answer
from dlm_jax.evaluation.metrics import exact_match, rouge

FOLDER = "natural_instructions"
INSTANCES = 100
HELD_OUT_SHARE = 0.1
SPLITS = ("train", "test")

_CONTENTS = "the folders tasks and splits of allenai/natural-instructions"


def register_natural_instructions(
    name: str,
    *,
    folder: str = FOLDER,
    positive: int = 0,
    negative: int = 0,
    explanations: bool = False,
    train_tasks: int | None = None,
    instances: int = INSTANCES,
    description: str = "",
) -> TextTask:
    """Registers instructions with a train and a test split that share no task.

    A prompt is the definition of its task, then its first positive and negative examples (as many
    as it has, never the instance itself), then the instance.

    Args:
      name: name of the task.
      folder: where the files are, under DLM_DATA_DIR.
      positive, negative: examples in a prompt.
      explanations: whether these say why they are right or wrong.
      train_tasks: train on so many tasks only; None takes all. Test is the same for all numbers.
      instances: the first so many instances of each task (100, as the authors do).
      description: one sentence for `dlm tasks`.

    Raises:
      UserError: the name is taken or a number is out of range; when the task is read, if a file is
        missing or malformed.
    """
    if (
        min(positive, negative) < 0
        or instances < 1
        or (train_tasks is not None and train_tasks < 1)
    ):
        raise UserError(
            f"Task {name}: positive={positive} and negative={negative} must not be negative, "
            f"instances={instances} and train_tasks={train_tasks} must be at least 1."
        )

    def read(split: str) -> Iterator[dict[str, Any]]:
        limit = train_tasks if split == "train" else None
        for task in task_names(folder, split)[:limit]:
            yield from _instances(folder, task, instances)

    return register_task(
        name,
        splits={split: functools.partial(read, split) for split in SPLITS},
        inputs=functools.partial(
            prompt, positive=positive, negative=negative, explanations=explanations
        ),
        targets=_target,
        metrics=(exact_match, rouge),
        description=description,
    )


def task_names(folder: str, split: str) -> list[str]:
    """Returns the tasks of `train` or `test`, in the order of a digest of their names.

    Raises:
      UserError: the folder, its tasks or one of the lists is missing, or the lists overlap.
    """
    root = data_folder(folder, _CONTENTS)
    if (root / "splits").is_dir():
        lists = {
            part: _listed(find_file(root / "splits" / "default", f"{part}_tasks.txt"))
            for part in SPLITS
        }
        shared = sorted({*lists["train"]} & {*lists["test"]})
        if shared:
            raise UserError(f"{root}/splits/default lists {shared[0]} both for train and for test.")
        return sorted(lists[split], key=_digest)
    files = (root / "tasks").glob("*.json*")
    names = {file.name.removesuffix(".gz").removesuffix(".json") for file in files}
    if not names:
        raise UserError(f"{root} holds no tasks/*.json: put {_CONTENTS} there.")
    bound = round(HELD_OUT_SHARE * 2**64)
    held_out = {name for name in names if int(_digest(f"held out {name}")[:16], 16) < bound}
    return sorted(held_out if split == "test" else names - held_out, key=_digest)


def prompt(record: Record, *, positive: int, negative: int, explanations: bool) -> str:
    """Returns the definition, the examples and the open instance as text."""
    parts = [f"Definition: {record['definition']}"]
    for kind, wanted in (("Positive", positive), ("Negative", negative)):
        shown = [
            example
            for example in record[f"{kind} Examples"]
            if _same(example["input"]) != _same(record["input"])
        ]
        for number, example in enumerate(shown[:wanted], start=1):
            text = f"{kind} example {number}: Input: {example['input']} Output: {example['output']}"
            if explanations and example.get("explanation"):
                text += f" Explanation: {example['explanation']}"
            parts.append(text)
    return "\n\n".join([*parts, f"Input: {record['input']} Output:"])


def _instances(folder: str, task: str, limit: int) -> Iterator[dict[str, Any]]:
    file = find_file(data_folder(folder, _CONTENTS) / "tasks", f"{task}.json")
    content = read_json(file)
    try:
        shared = {
            "task": task,
            "definition": " ".join(_texts(content["Definition"])),
            "Positive Examples": content["Positive Examples"],
            "Negative Examples": content.get("Negative Examples", []),
        }
        for instance in content["Instances"][:limit]:
            outputs = [text for text in _texts(instance["output"]) if text.strip()]
            if outputs:
                yield {**shared, "input": instance["input"], "outputs": outputs}
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is not a task of Natural Instructions ({error!r}).") from error


def _target(record: Record) -> str:
    outputs = record["outputs"]
    return Answer(outputs[0], group=record["task"], references=outputs)


def _listed(file: Path) -> list[str]:
    return [line.strip() for line in read_lines(file) if line.strip()]


def _texts(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _same(text: str) -> str:
    return " ".join(text.split()).casefold()


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


for _what, _positive, _negative, _explanations, _description in (
    ("definition", 0, 0, False, "definition only"),
    ("definition_2_positive", 2, 0, False, "definition and two examples"),
    (
        "definition_2_positive_2_negative",
        2,
        2,
        False,
        "definition, two examples, two not to follow",
    ),
    ("definition_2_explained", 2, 0, True, "definition and two examples with explanations"),
):
    register_natural_instructions(
        f"natural_instructions_v2.{_what}",
        positive=_positive,
        negative=_negative,
        explanations=_explanations,
        description=f"Super-NaturalInstructions, {_description}; test holds unseen tasks.",
    )
for _tasks in (8, 32, 128, 512):
    for _positive in (0, 2):
        _shown = f"_{_positive}_positive" if _positive else ""
        register_natural_instructions(
            f"natural_instructions_v2.definition{_shown}_{_tasks}_tasks",
            positive=_positive,
            train_tasks=_tasks,
            description=f"Super-NaturalInstructions, {_tasks} tasks to train on, "
            f"{_positive} examples in a prompt.",
        )
