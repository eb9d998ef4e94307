"""Loading of a configuration: reading, then checking all of it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Collection, Sequence

from dlm_jax.config.checks import Checker
from dlm_jax.config.files import read_program
from dlm_jax.config.operative import Config
from dlm_jax.config.reach import Reach
from dlm_jax.config.registry import Importer, Registry, Table


def load(
    files: Sequence[str | os.PathLike[str]],
    bindings: Sequence[str],
    entry: str,
    configurables: Table,
    search_paths: Sequence[str | os.PathLike[str]] = (),
    *,
    other_entries: Collection[str] = (),
    supplied: Collection[str] = (),
    importer: Importer = importlib.import_module,
) -> Config:
    """Reads and checks a configuration; nothing of it has run when this returns or raises.

    Args:
        files: gin files; of two statements for the same name the later one wins. They are found in
            the current folder, in `search_paths`, and in the installed `dlm_jax.gin_configs`.
        bindings: statements of the command line (`key = value`, `import module`), which win.
        entry: name of the function to call.
        configurables: public name -> 'module:attribute' or the callable itself.
        search_paths: folders to look into for files.
        other_entries: functions that another command may call with the same files. What they use
            is in use, but values that only they require may be missing.
        supplied: parameters of the entry function that the caller of `Config.call` gives; what
            only they would use may be missing.
        importer: imports the modules that `import` statements name; what they register with gin
            (`@gin.register`) can be bound as well.

    Returns:
        The checked configuration.

    Raises:
        UserError: one sentence on the first mistake in file order.
    """
    program = read_program(files, bindings, search_paths)
    registry = Registry(configurables, program.imports, importer)
    reach = Reach(program, registry)
    reach.walk(entry, strict=True, supplied=supplied)
    for other in other_entries:
        if other != entry and reach.bound(other, ()):
            reach.walk(other, strict=False)
    Checker(program, registry, reach, entry, supplied).check()
    registry.import_modules()
    return Config(program, registry, reach, entry)


def imported_modules(file: str | os.PathLike[str]) -> list[str]:
    """Returns the modules that a gin file imports, without importing them.

    Raises:
        UserError: the file is missing or not gin.
    """
    return list(dict.fromkeys(item.module for item in read_program([file], [], ()).imports))
