"""All checks of a program, before anything runs; of several mistakes, the first in file order."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from dlm_jax.config import value_types
from dlm_jax.config.files import Program
from dlm_jax.config.reach import Call, Problem, Reach
from dlm_jax.config.registry import Registry
from dlm_jax.config.signatures import signature
from dlm_jax.config.values import REQUIRED, Binding, Macro, Reference, leaves, shorten
from dlm_jax.errors import UserError, nearest


class Checker:
    """Checks one program.

    Args:
        program: all statements.
        registry: names of configurables.
        reach: what the entry functions reach; already walked.
        entry: the function that will be called.
        supplied: parameters of the entry function that its caller gives.
    """

    def __init__(
        self,
        program: Program,
        registry: Registry,
        reach: Reach,
        entry: str,
        supplied: Collection[str],
    ) -> None:
        self._program = program
        self._registry = registry
        self._reach = reach
        self._entry = entry
        self._supplied = supplied

    def check(self) -> None:
        """Raises the first problem as a `UserError`.

        Names are checked first, because that needs no import; signatures are read only of what
        stands before the first wrong name.
        """
        first = _first([*self._reach.problems, *self._names()])
        limit = first.order if first else math.inf
        later = _first([*self._values(limit), *self._missing(limit)])
        for problem in (later, first):
            if problem:
                raise UserError(problem.message)
        if not first:
            for problem in self._missing_of(Call(self._entry, (), None), self._supplied):
                raise UserError(problem.message)

    def _names(self) -> list[Problem]:
        problems = []
        for binding in self._program.winners():
            key = binding.key
            if not key.is_macro and self._registry.canonical(key.configurable) is None:
                hint = nearest(key.configurable, self._registry.names())
                message = f"{binding} names no configurable{hint}"
            elif self._reach.operative(binding) or self._reach.excused(binding):
                continue
            else:
                message = f"{binding} {self._why_unused(binding)}"
            problems.append(Problem(binding.location.order, message))
        return problems

    def _why_unused(self, binding: Binding) -> str:
        key = binding.key
        if key.is_macro:
            used = [
                str(other.key)
                for other in self._program.winners()
                if other.key.is_macro and self._reach.operative(other)
            ]
            return f"sets a macro that nothing uses{nearest(str(key), used)}"
        scopes = {scope for _, scope in self._reach.visited}
        if key.scope not in {scope[: len(key.scope)] for scope in scopes}:
            hint = nearest("/".join(key.scope), ["/".join(scope) for scope in scopes if scope])
            return f"is in scope {'/'.join(key.scope)}, which is never entered{hint}"
        name = self._registry.canonical(key.configurable)
        if name in {visited for visited, _ in self._reach.visited}:
            return f"is in scope {'/'.join(key.scope)}, in which {key.configurable} is never used"
        return f"binds {key.configurable}, which {self._entry} does not use"

    def _values(self, limit: float) -> list[Problem]:
        problems = []
        for binding in self._program.winners():
            if binding.key.is_macro or not self._reach.operative(binding):
                continue
            origin = self._origin(binding)
            if min(origin.location.order, binding.location.order) < limit:
                problems += self._value(binding, origin)
        return [problem for problem in problems if problem.order < limit]

    def _origin(self, binding: Binding) -> Binding:
        """The statement that holds the value itself, behind macros."""
        seen = [binding]
        while isinstance(seen[-1].value, Macro):
            macro = self._program.macro(seen[-1].value.name)
            if macro is None or macro in seen:
                break
            seen.append(macro)
        return seen[-1]

    def _value(self, binding: Binding, origin: Binding) -> list[Problem]:
        key = binding.key
        name = self._registry.canonical(key.configurable) or ""
        parameters = signature(self._registry.target(name))
        annotation = parameters.annotations.get(key.parameter, Any)
        if key.parameter not in parameters.annotations and not parameters.open:
            hint = nearest(key.parameter, parameters.annotations)
            message = f"{binding} sets no parameter of {key.configurable}{hint}"
            return [Problem(binding.location.order, message)]
        if self._has_problem(origin.value, ()):
            return []
        value = self._expand(origin.value)
        if value_types.fits(value, annotation, self._produces):
            return []
        kind = value_types.describe_value(value, self._produces)
        wanted = value_types.describe(annotation)
        hint = value_types.suggestion(value, annotation)
        if origin is binding:
            shown = "" if value == origin.value else f" (= {shorten(value)})"
            message = f"{binding} is {kind}{shown}, and {key.parameter} takes {wanted}{hint}"
        else:
            message = f"{origin} is {kind}, and {key} ({binding.location}) takes {wanted}{hint}"
        return [Problem(origin.location.order, message)]

    def _has_problem(self, value: Any, stack: tuple[Macro | Reference, ...]) -> bool:
        """Whether names inside a value are unknown, unset or circular, which is said elsewhere."""
        for leaf in leaves(value):
            if isinstance(leaf, Reference):
                if self._registry.canonical(leaf.name) is None:
                    return True
                continue
            macro = self._program.macro(leaf.name)
            if leaf in stack or leaf.name == REQUIRED:
                return True
            if macro is None and not self._registry.has_constant(leaf.name):
                return True
            if macro is not None and self._has_problem(macro.value, (*stack, leaf)):
                return True
        return False

    def _expand(self, value: Any) -> Any:
        """Replaces macros by their values."""
        if isinstance(value, Macro):
            macro = self._program.macro(value.name)
            return self._expand(macro.value) if macro else self._registry.constant(value.name)
        if isinstance(value, dict):
            return {self._expand(key): self._expand(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._expand(item) for item in value)
        return value

    def _produces(self, reference: Reference) -> Any:
        target = self._registry.target(self._registry.canonical(reference.name) or "")
        return signature(target).returns if reference.evaluate else target

    def _missing(self, limit: float) -> list[Problem]:
        problems = []
        for call in self._reach.calls:
            if call.origin and call.origin.location.order < limit:
                problems += self._missing_of(call, ())
        return problems

    def _missing_of(self, call: Call, supplied: Collection[str]) -> list[Problem]:
        parameters = signature(self._registry.target(call.name))
        given = {*self._reach.bound(call.name, call.scope), *parameters.defaults, *supplied}
        for parameter in parameters.annotations:
            if parameter in given:
                continue
            full = "/".join((*call.scope, f"{call.name}.{parameter}"))
            if call.origin is None:
                message = (
                    f"{full} is not set, and {call.name} needs it: give it with --gin.{full}=VALUE"
                )
                return [Problem(math.inf, message)]
            message = f"{call.origin} needs {full}, which is not set"
            return [Problem(call.origin.location.order, message)]
        return []


def _first(problems: list[Problem]) -> Problem | None:
    return min(problems, key=lambda problem: problem.order, default=None)
