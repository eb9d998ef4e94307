"""Files of one JSON object a line: written whole, read even when their writer was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dlm_jax.errors import UserError


def write_json_lines(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes the records; the file appears whole or not at all.

    Raises:
      ValueError: a record holds a NaN or an infinity, which JSON does not have.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json_lines(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """Returns (records, number of lines that are no JSON object).

    A process killed while it appended leaves its last line cut short; the process that resumed
    may then have written on in the same line. Both cost that line only.

    Raises:
      UserError: the file cannot be read, or has lines and none of them is a JSON object.
    """
    try:
        # Not `splitlines`: it also splits at U+2028 and the like, which JSON strings may hold.
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    records: list[dict[str, Any]] = []
    unreadable = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            unreadable += 1
    if unreadable > 1 and not records:
        raise UserError(
            f"{path} is not a file of JSON lines: none of its {unreadable} lines is one"
        )
    return records, unreadable
