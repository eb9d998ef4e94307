"""A checked configuration: calling its entry function, and writing it down."""

from __future__ import annotations

import functools
import pprint
from collections.abc import Callable
from typing import Any

from dlm_jax.config import value_types
from dlm_jax.config.files import Program
from dlm_jax.config.reach import Reach, Scope
from dlm_jax.config.registry import Registry
from dlm_jax.config.signatures import signature
from dlm_jax.config.values import Binding, Macro, Reference
from dlm_jax.errors import UserError

_WIDTH = 88
_WRITABLE = (str, bool, int, float, type(None))


class _LocatedError(UserError):
    """A `UserError` that already says which statement is to blame."""


class Config:
    """A program that has passed all checks.

    Attributes:
        entry: name of the function that `call` calls.
    """

    def __init__(self, program: Program, registry: Registry, reach: Reach, entry: str) -> None:
        self.entry = entry
        self._program = program
        self._registry = registry
        self._reach = reach

    def call(self, **overrides: Any) -> Any:
        """Builds the arguments of the entry function and calls it.

        Args:
            **overrides: arguments that take precedence over the bindings.

        Returns:
            What the entry function returns.

        Raises:
            UserError: a constructor refused its values; the sentence names the binding.
        """
        return self._invoke(self.entry, (), (), overrides)

    def values(self) -> dict[str, str]:
        """Returns what is in force: 'scope/name.parameter' or macro -> value as gin source."""
        return {str(binding.key): repr(binding.value) for binding in self._operative()}

    def value(self, name: str) -> Any:
        """Returns what a macro, or a binding 'scope/name.parameter', is in the end.

        Raises:
            KeyError: nothing in force has that name.
        """
        for binding in self._operative():
            if str(binding.key) == name:
                inner = (binding.key.parameter,) if binding.key.is_macro else ()
                return self._evaluate(binding.value, (*binding.key.scope, *inner), binding)
        raise KeyError(name)

    def _operative(self) -> list[Binding]:
        return [binding for binding in self._program.winners() if self._reach.operative(binding)]

    def _invoke(self, name: str, scope: Scope, args: Any, kwargs: dict[str, Any]) -> Any:
        target = self._registry.target(name)
        parameters = signature(target)
        given = {*parameters.positional[: len(args)], *kwargs}
        built = {}
        for parameter, binding in self._reach.bound(name, scope).items():
            if parameter not in given:
                value = self._evaluate(binding.value, scope, binding)
                annotation = parameters.annotations.get(parameter, Any)
                built[parameter] = value_types.convert(value, annotation)
        return target(*args, **{**built, **kwargs})

    def _evaluate(self, value: Any, scope: Scope, binding: Binding) -> Any:
        """Returns a value as Python sees it; containers are built anew, so nothing is shared."""
        if isinstance(value, Macro):
            macro = self._program.macro(value.name)
            if macro is None:
                return self._registry.constant(value.name)
            return self._evaluate(macro.value, tuple(value.name.split("/")), macro)
        if isinstance(value, Reference):
            return self._refer(value, value.scope or scope, binding)
        if isinstance(value, dict):
            return {
                self._evaluate(key, scope, binding): self._evaluate(item, scope, binding)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return type(value)(self._evaluate(item, scope, binding) for item in value)
        return value

    def _refer(self, reference: Reference, scope: Scope, binding: Binding) -> Any:
        name = self._registry.canonical(reference.name) or ""
        if not reference.evaluate:
            return self._callable(name, scope)
        try:
            return self._invoke(name, scope, (), {})
        except _LocatedError:
            raise
        except (UserError, ValueError) as error:
            text = " ".join(str(error).split()).rstrip(".")
            raise _LocatedError(f"{binding} cannot be built: {text}") from error

    def _callable(self, name: str, scope: Scope) -> Callable[..., Any]:
        target = self._registry.target(name)
        if not self._reach.bound(name, scope):
            return target

        @functools.wraps(target, updated=())
        def configured(*args: Any, **kwargs: Any) -> Any:
            return self._invoke(name, scope, args, kwargs)

        return configured

    def text(self) -> str:
        """Returns every value in force and where it was set, as gin source that loads to the same.

        Parameters that have their defaults are listed as comments.
        """
        lines = [f"# What `{self.entry}` ran with: every value, and where it was set.", ""]
        operative = self._operative()
        modules = {item.module: item for item in self._program.imports}
        lines += [f"import {item.module}  # {item.location}" for item in modules.values()]
        lines += [""] if modules else []
        macros = [binding for binding in operative if binding.key.is_macro]
        if macros:
            lines += ["# Macros", *map(self._statement, macros), ""]
        groups: dict[str, list[Binding]] = {name: [] for name, _ in sorted(self._reach.visited)}
        for binding in operative:
            if not binding.key.is_macro:
                canonical = self._registry.canonical(binding.key.configurable) or ""
                groups[canonical].append(binding)
        for name in sorted(groups, key=lambda name: (name != self.entry, name)):
            lines += [f"# {name}", *map(self._statement, groups[name])]
            lines += [*self._defaults(name, groups[name]), ""]
        return "\n".join(lines).rstrip("\n") + "\n"

    def _statement(self, binding: Binding) -> str:
        where = str(binding.location)
        if binding.location.on_command_line:
            where += f" (--gin.{binding.key})"
        earlier = self._program.bindings[binding.key][:-1]
        if earlier:
            where += f", instead of {earlier[-1].location}"
        value = pprint.pformat(binding.value, width=_WIDTH, sort_dicts=False)
        return f"{binding.key} = {value}  # {where}"

    def _defaults(self, name: str, group: list[Binding]) -> list[str]:
        bound = {binding.key.parameter for binding in group if not binding.key.scope}
        return [
            f"#   {name}.{parameter} = {default!r}"
            for parameter, default in signature(self._registry.target(name)).defaults.items()
            if parameter not in bound and isinstance(default, _WRITABLE)
        ]
