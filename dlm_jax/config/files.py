"""Where gin files are found, and the program that they make together with the command line."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlm_jax.config.syntax import Include, parse
from dlm_jax.config.values import COMMAND_LINE, Binding, Import, Key, Location
from dlm_jax.errors import UserError, nearest

_INSTALLED = "dlm_jax.gin_configs"


class Program:
    """All statements, in the order in which they are read; for each key the last one wins.

    Attributes:
        bindings: key -> its statements, the winning one last.
        imports: modules to import.
    """

    def __init__(self) -> None:
        self.bindings: dict[Key, list[Binding]] = {}
        self.imports: list[Import] = []
        self._count = 0

    def locate(self, file: str, line: int) -> Location:
        """Numbers a statement."""
        self._count += 1
        return Location(file, line, self._count)

    def winners(self) -> Iterator[Binding]:
        """Yields the statement in force of every key, in the order in which they are read."""
        yield from sorted(
            (statements[-1] for statements in self.bindings.values()),
            key=lambda binding: binding.location.order,
        )

    def macro(self, name: str) -> Binding | None:
        """Returns the statement in force of a macro."""
        *scope, name = name.split("/")
        statements = self.bindings.get(Key(tuple(scope), "", name))
        return statements[-1] if statements else None

    def add(self, binding: Binding) -> None:
        """Adds a statement; it takes precedence over all earlier ones of its key."""
        self.bindings.setdefault(binding.key, []).append(binding)


def read_program(
    files: Sequence[str | os.PathLike[str]],
    bindings: Sequence[str],
    search_paths: Sequence[str | os.PathLike[str]],
) -> Program:
    """Reads files, what they include, then the bindings of the command line.

    Args:
        files: names of gin files; found in the current folder, in `search_paths`, and among the
            installed ones, in this order.
        bindings: gin statements, each `key = value` or `import module`.
        search_paths: folders to look into.

    Raises:
        UserError: a file is missing, includes itself, defines a key twice, or is not gin.
    """
    program = Program()
    folders = [Path(), *(Path(path).expanduser() for path in search_paths), *_installed()]
    for name in files:
        _read(program, os.fspath(name), folders, (), None)
    for text in bindings:
        for statement in parse(text, COMMAND_LINE, program.locate):
            if isinstance(statement, Include):
                raise UserError(
                    f"include '{statement.file}' ({COMMAND_LINE}) cannot be a binding: give the "
                    f"file with --gin_file={statement.file}"
                )
            _add(program, statement)
    return program


def _installed() -> list[Path]:
    """Folder of the gin files that come with the package; found without importing it."""
    spec = importlib.util.find_spec(_INSTALLED)
    return [Path(path) for path in (spec.submodule_search_locations or ())] if spec else []


def _add(program: Program, statement: Binding | Import) -> None:
    if isinstance(statement, Import):
        program.imports.append(statement)
    else:
        program.add(statement)


def _read(
    program: Program,
    name: str,
    folders: Sequence[Path],
    including: tuple[Path, ...],
    include: Include | None,
) -> None:
    beside = [including[-1].parent] if including else []
    path = _find(name, [*beside, *folders], include)
    shown = _shown(path)
    if path in including:
        raise UserError(
            f"include '{name}' ({include.location if include else shown}) makes a circle: "
            + " includes ".join(
                _shown(file) for file in (*including[including.index(path) :], path)
            )
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"gin file {shown} cannot be read as UTF-8 text: {error}") from error
    own: dict[Key, Binding] = {}
    for statement in parse(text, shown, program.locate):
        if isinstance(statement, Include):
            _read_included(program, statement, folders, (*including, path), own)
            continue
        if isinstance(statement, Binding):
            _refuse_duplicate(own, statement)
        _add(program, statement)


def _read_included(
    program: Program,
    include: Include,
    folders: Sequence[Path],
    including: tuple[Path, ...],
    own: dict[Key, Binding],
) -> None:
    """Reads an included file, which may not overwrite what the including one has already set."""
    _read(program, include.file, folders, including, include)
    for key, binding in own.items():
        winner = program.bindings[key][-1]
        if winner is not binding:
            raise UserError(
                f"{binding} is overwritten by {winner.location}, which is included after it: move "
                f"include '{include.file}' ({include.location}) to the top of the file"
            )


def _refuse_duplicate(own: dict[Key, Binding], binding: Binding) -> None:
    first = own.setdefault(binding.key, binding)
    if first is not binding:
        kind = "macro" if binding.key.is_macro else "parameter"
        raise UserError(
            f"{binding} sets a {kind} that the same file has already set on line "
            f"{first.location.line}"
        )


def _find(name: str, folders: Sequence[Path], include: Include | None) -> Path:
    path = Path(name).expanduser()
    candidates = [path] if path.is_absolute() else [folder / path for folder in folders]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    start = f"include '{name}' ({include.location})" if include else f"--gin_file={name}"
    known = sorted(set(_known(path, folders)))
    raise UserError(f"{start} names a file that does not exist{nearest(name, known)}")


def _known(path: Path, folders: Sequence[Path]) -> Iterator[str]:
    """Names of the gin files that could have been meant: all installed ones, and the neighbours."""
    if path.is_absolute():
        yield from (str(file) for file in path.parent.glob("*.gin"))
        return
    for folder in folders:
        yield from (
            (path.parent / file.name).as_posix() for file in (folder / path.parent).glob("*.gin")
        )
    for folder in _installed():
        yield from (file.relative_to(folder).as_posix() for file in folder.rglob("*.gin"))


def _shown(path: Path) -> str:
    """Name of a file in messages and records: the same on every machine where that is possible."""
    for folder in _installed():
        if path.is_relative_to(folder.resolve()):
            return (
                Path(_INSTALLED.replace(".", "/")) / path.relative_to(folder.resolve())
            ).as_posix()
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)
