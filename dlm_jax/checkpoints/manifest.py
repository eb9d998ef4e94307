"""A seal on a finished checkpoint: the size and checksum of every file in it.

Orbax makes a checkpoint appear by one rename, so a killed process never leaves half of one. The
seal finds what happens later: a truncated copy, a lost file, a flipped bit. Array stores may read
a lost chunk as zeros without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path

from dlm_jax.errors import UserError

MANIFEST = "manifest.json"
_BLOCK = 1 << 22


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def seal(folder: Path) -> None:
    """Writes the manifest of a finished checkpoint `folder`, once."""
    target = folder / MANIFEST
    if target.exists():
        return
    entries = {
        str(path.relative_to(folder)): [path.stat().st_size, _checksum(path)]
        for path in _files(folder)
    }
    draft = folder / f".{MANIFEST}.{os.getpid()}"
    draft.write_text(json.dumps({"files": entries}, indent=0), encoding="utf-8")
    draft.replace(target)


def digest(folder: Path) -> str | None:
    """Sixteen hexadecimal digits of a checkpoint's seal, those of no other; None without one."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16]
    except OSError:
        return None


def verify(folder: Path) -> None:
    """Compares a checkpoint with its seal; a checkpoint without one (killed before sealing) passes.

    Raises:
        UserError: naming the first file that is missing, truncated or altered.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        return
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {folder} is damaged: {MANIFEST} cannot be read") from error
    for name, (size, checksum) in entries.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"checkpoint {folder} is damaged: {name} is missing")
        if path.stat().st_size != size:
            raise UserError(
                f"checkpoint {folder} is damaged: {name} has {path.stat().st_size} bytes, "
                f"not {size}"
            )
        if _checksum(path) != checksum:
            raise UserError(f"checkpoint {folder} is damaged: {name} has other contents than saved")
