"""One process at a time trains in a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dlm_jax.errors import UserError

_FILE = ".lock"
# A job that is started again may meet the last moments of the one before.
_PATIENCE_SECONDS = 15.0


@contextlib.contextmanager
def run_lock(folder: Path, patience: float = _PATIENCE_SECONDS) -> Iterator[None]:
    """Holds the lock of a run folder; the kernel lets go of it when the process ends, however.

    Where the file system, or the platform, has no locks, nothing is held.

    Args:
        folder: exists.
        patience: seconds to wait for another process to end.

    Raises:
        UserError: another process holds it.
    """
    with (folder / _FILE).open("a+", encoding="utf-8") as file:
        until = time.monotonic() + patience
        while not _locked(file):
            if time.monotonic() > until:
                file.seek(0)
                raise UserError(
                    f"{file.read().strip() or 'another process'} is training in {folder}: wait for "
                    "it, stop it, or name another run_dir"
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _locked(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
