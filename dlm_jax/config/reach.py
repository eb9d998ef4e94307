"""What an entry function reaches through references and macros, found without calling anything."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from dlm_jax.config.files import Program
from dlm_jax.config.registry import Registry
from dlm_jax.config.values import REQUIRED, Binding, Key, Macro, Reference, leaves
from dlm_jax.errors import nearest

Scope = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong; `order` is that of the statement to mend, so the first one can be told."""

    order: float
    message: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A configurable that is called when the entry function's arguments are built."""

    name: str
    scope: Scope
    origin: Binding | None


class Reach:
    """Walks from entry functions through the values in force and through the overridden ones.

    A binding in force is *operative*. One that only an overridden value would use (a file's default
    optimizer, replaced by another) does no harm where it stands before the override; after it, or
    on the command line, it is a mistake.

    Attributes:
        problems: unknown names, circles, values that are required and not set.
        calls: calls whose arguments must be complete.
        visited: (configurable, scope) pairs that are reached by values in force.
    """

    def __init__(self, program: Program, registry: Registry) -> None:
        self.problems: list[Problem] = []
        self.calls: list[Call] = []
        self.visited: set[tuple[str, Scope]] = set()
        self._program = program
        self._registry = registry
        self._limits: dict[Key, float] = {}
        self._seen: dict[tuple[str, Scope], float] = {}
        self._strict = True
        self._index: dict[tuple[Scope, str], dict[str, list[Binding]]] = {}
        for statements in program.bindings.values():
            for statement in statements:
                self._index_statement(statement)

    def _index_statement(self, statement: Binding) -> None:
        key = statement.key
        canonical = None if key.is_macro else self._registry.canonical(key.configurable)
        if canonical is not None:
            parameters = self._index.setdefault((key.scope, canonical), {})
            parameters.setdefault(key.parameter, []).append(statement)
            parameters[key.parameter].sort(key=lambda binding: binding.location.order)

    def bound(self, name: str, scope: Scope) -> dict[str, Binding]:
        """Returns the statement in force of each parameter; inner scopes override outer ones."""
        result: dict[str, Binding] = {}
        for depth in range(len(scope) + 1):
            for parameter, statements in self._index.get((scope[:depth], name), {}).items():
                result[parameter] = statements[-1]
        return result

    def walk(self, entry: str, *, strict: bool, supplied: Collection[str] = ()) -> None:
        """Follows an entry function; `strict` for the one that runs: its values must be set.

        What only parameters in `supplied` use may be missing: their values come from elsewhere.
        """
        self._strict = strict
        self._seen = {}
        self._call(entry, (), math.inf, None, (), without=supplied)
        self._strict = False
        given = self._index.get(((), entry), {})
        for statements in (given[parameter] for parameter in given if parameter in supplied):
            self._statements(statements, (), math.inf, ((entry, ()),))

    def operative(self, binding: Binding) -> bool:
        """Whether a statement has an effect."""
        return (
            self._limits.get(binding.key) == math.inf
            and self._program.bindings[binding.key][-1] is binding
        )

    def excused(self, binding: Binding) -> bool:
        """Whether a statement without effect is harmless: overridden later, or optional."""
        overridden = self._limits.get(binding.key, 0.0) > binding.location.order
        return binding.optional or (overridden and not binding.location.on_command_line)

    def _call(
        self,
        name: str,
        scope: Scope,
        limit: float,
        origin: Binding | None,
        stack: tuple[Any, ...],
        without: Collection[str] = (),
    ) -> None:
        if (name, scope) in stack and origin:
            self._report(
                origin, limit, f"{origin} makes a circle: {name} would be built from itself"
            )
            return
        if self._seen.get((name, scope), 0.0) >= limit:
            return
        self._seen[name, scope] = limit
        if limit == math.inf:
            self.visited.add((name, scope))
        for depth in range(len(scope) + 1):
            for parameter, statements in self._index.get((scope[:depth], name), {}).items():
                if parameter not in without:
                    self._statements(statements, scope, limit, (*stack, (name, scope)))

    def _statements(
        self, statements: list[Binding], scope: Scope, limit: float, stack: tuple[Any, ...]
    ) -> None:
        winner = statements[-1]
        for statement in statements:
            within = limit if statement is winner else min(limit, winner.location.order)
            self._limits[statement.key] = max(self._limits.get(statement.key, 0.0), within)
            for leaf in leaves(statement.value):
                if isinstance(leaf, Macro):
                    self._macro(leaf, statement, within, stack)
                else:
                    self._reference(leaf, statement, scope, within, stack)

    def _macro(self, macro: Macro, user: Binding, limit: float, stack: tuple[Any, ...]) -> None:
        if macro.name == REQUIRED:
            if self._strict:
                self._report(user, limit, _required(user))
            return
        *scope, name = macro.name.split("/")
        statements = self._program.bindings.get(Key(tuple(scope), "", name))
        if statements and macro in stack:
            self._report(user, limit, f"{user} makes a circle: {macro} would be its own value")
        elif statements:
            # gin evaluates the value of a macro in the scope that has the macro's name.
            self._statements(statements, (*scope, name), limit, (*stack, macro))
        elif limit == math.inf:
            self._registry.import_modules()
            if not self._registry.has_constant(macro.name):
                known = [str(key) for key in self._program.bindings if key.is_macro]
                hint = nearest(macro.name, known)
                self._report(user, limit, f"{user} uses macro {macro.name}, which is not set{hint}")

    def _reference(
        self,
        reference: Reference,
        user: Binding,
        scope: Scope,
        limit: float,
        stack: tuple[Any, ...],
    ) -> None:
        name = self._registry.canonical(reference.name)
        if name is None:
            hint = nearest(reference.name, self._registry.names())
            message = f"{user} refers to {reference.name}, which is no configurable{hint}"
            self._report(user, limit, message)
            return
        inner = reference.scope or scope
        if reference.evaluate and limit == math.inf and self._strict:
            self.calls.append(Call(name, inner, user))
        # What is passed on uncalled may well refer to itself.
        self._call(name, inner, limit, user, stack if reference.evaluate else ())

    def _report(self, user: Binding, limit: float, message: str) -> None:
        problem = Problem(user.location.order, message)
        if limit == math.inf and problem not in self.problems:
            self.problems.append(problem)


def _required(binding: Binding) -> str:
    return (
        f"{binding.key} ({binding.location}) is required and has no value: give it with "
        f"--gin.{binding.key}=VALUE"
    )
