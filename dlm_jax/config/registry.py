"""Names of configurables: an explicit table, and what users' own modules register with gin.

This is the one module that reads gin's private tables; they are those of gin-config 0.5.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin

from dlm_jax.config.values import Import
from dlm_jax.errors import UserError

Table = Mapping[str, str | Callable[..., Any]]
Importer = Callable[[str], Any]


class Registry:
    """Looks names up; imports the module of a configurable only when its target is needed.

    Args:
        table: public name -> 'module:attribute', or the callable itself.
        imports: modules of the user, imported once, and at the latest by `import_modules`.
        importer: imports a module by the name that the user gave.
    """

    def __init__(
        self,
        table: Table,
        imports: Sequence[Import],
        importer: Importer = importlib.import_module,
    ) -> None:
        self._table = table
        self._imports = imports
        self._importer = importer
        self._imported = False

    def canonical(self, name: str) -> str | None:
        """Returns the one full name of a configurable, or None for an unknown one.

        Raises:
            UserError: the name fits several configurables that users' modules registered.
        """
        if name in self._table:
            return name
        self.import_modules()
        try:
            found = gin.config._REGISTRY.get_match(name)
        except KeyError:
            choices = sorted(gin.config._REGISTRY.matching_selectors(name))
            raise UserError(
                f"{name} is the name of several configurables: write one of {', '.join(choices)}"
            ) from None
        return None if found is None or found.module == "gin" else found.selector

    def target(self, canonical: str) -> Callable[..., Any]:
        """Returns the class or function itself."""
        entry = self._table.get(canonical)
        if entry is None:
            return gin.config._REGISTRY[canonical].wrapped
        if not isinstance(entry, str):
            return entry
        module, _, attribute = entry.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def names(self) -> list[str]:
        """Returns all names that can be written."""
        registered = [
            gin.config._REGISTRY.minimal_selector(selector)
            for selector, found in gin.config._REGISTRY.items()
            if found.module != "gin"
        ]
        return [*self._table, *registered]

    def has_constant(self, name: str) -> bool:
        """Whether a user's module has defined this one constant with `gin.constant`."""
        return len(gin.config._CONSTANTS.matching_selectors(name)) == 1

    def constant(self, name: str) -> Any:
        """Returns the value of a constant."""
        return gin.config._CONSTANTS.get_match(name)

    def import_modules(self) -> None:
        """Imports the user's modules, which register tasks and configurables.

        Raises:
            UserError: one of them does not exist, or raises.
        """
        if self._imported:
            return
        self._imported = True
        for statement in self._imports:
            try:
                self._importer(statement.module)
            except Exception as error:
                raise UserError(_import_failure(statement, error)) from error


def _import_failure(statement: Import, error: Exception) -> str:
    start = f"import {statement.module} ({statement.location})"
    if isinstance(error, UserError):
        return f"{start} fails: {error}"
    missing = getattr(error, "name", None)
    if isinstance(error, ModuleNotFoundError) and f"{statement.module}.".startswith(f"{missing}."):
        return (
            f"{start} finds no module of that name: start in its folder, or give the file with "
            "--import=FOLDER/MODULE.py"
        )
    return f"{start} fails with {type(error).__name__}: {' '.join(str(error).split())}"
