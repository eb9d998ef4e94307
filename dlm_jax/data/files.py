"""Reading text that users put in folders, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlm_jax.errors import UserError

DATA_DIR_VARIABLE = "DLM_DATA_DIR"


def data_folder(dataset: str, contents: str) -> Path:
    """Returns the folder `dataset` under the folder that DLM_DATA_DIR names.

    Args:
      dataset: name of the sub-folder, for example `'multi30k'`.
      contents: what belongs there, in words for the error message.

    Raises:
      UserError: the variable is not set, or the folder is missing.
    """
    root = os.environ.get(DATA_DIR_VARIABLE)
    wanted = f"put {contents} into its sub-folder {dataset}/"
    if not root:
        raise UserError(f"Set {DATA_DIR_VARIABLE} to the folder of your data sets and {wanted}.")
    folder = Path(root) / dataset
    if not folder.is_dir():
        raise UserError(f"{DATA_DIR_VARIABLE}={root} has no folder {dataset}/: {wanted}.")
    return folder


def find_file(folder: Path, name: str) -> Path:
    """Returns `folder/name`, or its gzipped twin `folder/name.gz`.

    Raises:
      UserError: neither exists.
    """
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise UserError(f"{folder} holds neither {name} nor {name}.gz.")


def read_text(file: Path) -> str:
    """Returns the text of a UTF-8 file, gzipped or not.

    Raises:
      UserError: the file cannot be read, or is not UTF-8 (the line is named).
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{file} cannot be read ({error}).") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file} is not UTF-8 text: line {line} holds an invalid byte.") from error


def read_lines(file: Path) -> list[str]:
    """Returns the lines of a UTF-8 file without their ends; only `\\n` and `\\r\\n` end a line."""
    lines = read_text(file).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yields one record a line; blank lines are passed over.

    Raises:
      UserError: a line is not a JSON object (the line is named).
    """
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file} line {number} is not valid JSON.") from error
        if not isinstance(record, dict):
            raise UserError(f"{file} line {number} is not a JSON object.")
        yield record
