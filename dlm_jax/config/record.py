"""The record of a run's configuration, in its folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dlm_jax.config.operative import Config


def record(config: Config, run_dir: str | os.PathLike[str], name: str = "config.gin") -> Path:
    """Writes `config.gin`, which can be loaded again.

    A file of another content (the run is resumed with other values) is kept as `config.1.gin`,
    `config.2.gin` and so on. A killed process leaves either the old file or the new one.

    Args:
        config: what runs.
        run_dir: folder of the run; made if it is missing.
        name: name of the file.

    Returns:
        Path of the written file.
    """
    path = Path(run_dir) / name
    text = config.text()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        if path.read_text(encoding="utf-8") == text:
            return path
        number = 1
        while (older := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
            number += 1
        # Beside it first: at no moment is there a run without its configuration.
        _keep(path, older)
    draft = path.with_name(f".{name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def _keep(path: Path, name: Path) -> None:
    """Gives a file a second name; on file systems without links, such as a mounted bucket, a copy
    has it."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)
