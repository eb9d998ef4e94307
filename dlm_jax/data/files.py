"""Reading text that users put in folders, with errors that name the file and the line."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
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
    except (OSError, EOFError, zlib.error) as error:
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


def stream_lines(file: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file one at a time, for files that do not fit in memory.

    Raises:
      UserError: the file cannot be read, or is not UTF-8 (the line is named).
    """
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for line in lines:
                number += 1
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text: line {number} holds an invalid byte."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({error}).") from error


def read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yields one record a line, the file read as they are asked for; blank lines are passed over.

    Raises:
      UserError: a line is not a JSON object (the line is named), or the file cannot be read.
    """
    for number, line in enumerate(stream_lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file} line {number} is not valid JSON.") from error
        if not isinstance(record, dict):
            raise UserError(f"{file} line {number} is not a JSON object.")
        yield record


def read_json(file: Path) -> dict[str, Any]:
    """Returns the JSON object that a file holds.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(read_text(file))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object.")
    return content


def read_parallel(files: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Yields the lines that stand at the same place of several files, stripped.

    Raises:
      UserError: the files differ in their number of lines, or cannot be read.
    """
    columns = [read_lines(file) for file in files]
    for file, column in zip(files[1:], columns[1:]):
        if len(column) != len(columns[0]):
            raise UserError(
                f"{files[0]} has {len(columns[0])} lines and {file} has {len(column)}: they must "
                "be parallel."
            )
    for row in zip(*columns):
        yield tuple(line.strip() for line in row)
