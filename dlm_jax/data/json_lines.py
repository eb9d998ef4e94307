"""Tasks over files of JSON lines with `inputs` and `targets`, the common form of instruction data.

`jsonl:/path` is the name of such a task wherever a task is named, in gin files too; a module that
wants another name, other keys or metrics registers it with `register_json_lines`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dlm_jax.data.files import find_file, read_json_lines
from dlm_jax.data.tasks import Metric, Record, Template, TextTask, register_task
from dlm_jax.errors import UserError

PREFIX = "jsonl:"
SPLITS = ("train", "validation", "test")


def json_lines_task(name: str) -> TextTask:
    """Returns the task behind a name `jsonl:PATH`.

    PATH is a file, which is the split `train`; or a folder of `train.jsonl`, `validation.jsonl`
    and `test.jsonl`, of which those that are there are the splits; each gzipped or not.

    Raises:
      UserError: nothing is there.
    """
    path = Path(name.removeprefix(PREFIX)).expanduser()
    if path.is_file():
        files = {"train": path}
    else:
        found = {split: [path / f"{split}.jsonl", path / f"{split}.jsonl.gz"] for split in SPLITS}
        files = {
            split: file for split, both in found.items() for file in both[::-1] if file.is_file()
        }
    if not files:
        raise UserError(
            f"Task {name}: {path} is neither a file of JSON lines nor a folder that holds "
            "train.jsonl, validation.jsonl or test.jsonl."
        )
    return TextTask(
        name,
        {split: functools.partial(read_json_lines, file) for split, file in files.items()},
        targets="{targets}",
        inputs="{inputs}",
        description=f"JSON lines of {path}.",
    )


def register_json_lines(
    name: str,
    files: Mapping[str, str],
    folder: Callable[[], Path],
    *,
    inputs: Template = "{inputs}",
    targets: Template = "{targets}",
    metrics: Sequence[Metric] = (),
    evaluation_only: bool = False,
    description: str = "",
) -> TextTask:
    """Registers a task over files of JSON lines, which are read one line at a time.

    Args:
      name: name of the task.
      files: for each split the name of its file in `folder`, gzipped or not.
      folder: finds the folder when the task is read, for example a partial of
        `dlm_jax.data.files.data_folder`.
      inputs, targets: how a record reads.
      metrics: functions of (targets, predictions).
      evaluation_only: refuse to train on it unless forced.
      description: one sentence for `dlm tasks`.

    Raises:
      UserError: the name is taken; when the task is read, if a file is missing or malformed.
    """

    def read(file: str) -> Iterable[Record]:
        return read_json_lines(find_file(folder(), file))

    return register_task(
        name,
        splits={split: functools.partial(read, file) for split, file in files.items()},
        inputs=inputs,
        targets=targets,
        metrics=metrics,
        evaluation_only=evaluation_only,
        description=description,
    )
