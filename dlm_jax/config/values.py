"""What a gin statement becomes once it is read: values, references, macros, locations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

COMMAND_LINE = "command line"
REQUIRED = "gin.REQUIRED"


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a statement stands.

    Attributes:
        file: name to show to people; `COMMAND_LINE` for bindings that were given there.
        line: line of the file, from 1; of no meaning on the command line.
        order: running number of the statement over all files, in the order in which they are read.
    """

    file: str
    line: int
    order: int

    @property
    def on_command_line(self) -> bool:
        """Whether the statement was given on the command line."""
        return self.file == COMMAND_LINE

    def __str__(self) -> str:
        return COMMAND_LINE if self.on_command_line else f"{self.file}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/name` (the configurable itself) or `@scope/name()` (its result)."""

    scope: tuple[str, ...]
    name: str
    evaluate: bool

    def __repr__(self) -> str:
        return f"@{'/'.join((*self.scope, self.name))}{'()' if self.evaluate else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%name`: the value of a macro, or a constant of gin."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Key:
    """What a statement sets: a parameter of a configurable, or (no `configurable`) a macro."""

    scope: tuple[str, ...]
    configurable: str
    parameter: str

    @property
    def is_macro(self) -> bool:
        """Whether the statement sets a macro."""
        return not self.configurable

    def __str__(self) -> str:
        name = f"{self.configurable}.{self.parameter}" if self.configurable else self.parameter
        return "/".join((*self.scope, name))


@dataclasses.dataclass(frozen=True)
class Binding:
    """One statement `key = value`.

    Attributes:
        key: what it sets.
        value: Python literals, with `Reference` and `Macro` anywhere inside.
        location: where it stands.
        optional: whether its line ends in `# optional`, so that nothing has to use it.
    """

    key: Key
    value: Any
    location: Location
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.key} = {shorten(self.value)} ({self.location})"


@dataclasses.dataclass(frozen=True)
class Import:
    """One statement `import module`."""

    module: str
    location: Location


def leaves(value: Any) -> Iterator[Reference | Macro]:
    """Yields the references and macros inside a value, in the order in which they are written."""
    if isinstance(value, (Reference, Macro)):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(key)
            yield from leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)


def shorten(value: Any, limit: int = 60) -> str:
    """Returns a value as gin writes it, on one line of at most `limit` characters."""
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"
