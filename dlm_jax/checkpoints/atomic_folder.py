"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty hidden folder beside `path` and renames it to `path` on success.

    Everything in it is flushed to disk before the rename, so that a power cut cannot leave `path`
    with empty files. On an exception the folder is removed; after a `kill -9` it stays behind
    under a name that starts with `partial_prefix(path)`, and `path` is untouched.

    Args:
        path: the folder to create; its parent must exist, and it must be absent or empty.

    Raises:
        OSError: when the parent cannot be written or `path` is neither absent nor empty.
    """
    temporary = path.with_name(f"{partial_prefix(path)}{secrets.token_hex(8)}")
    temporary.mkdir()
    try:
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            _flush(entry)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(path.parent)


def partial_prefix(path: Path) -> str:
    """How the name of every unfinished folder of `path` starts."""
    return f".{path.name}.partial-"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
