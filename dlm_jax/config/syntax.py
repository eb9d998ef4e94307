"""Reading of gin statements with gin-config's own parser; a syntax error becomes one sentence."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

from gin import config_parser

from dlm_jax.config.values import COMMAND_LINE, Binding, Import, Key, Location, Macro, Reference
from dlm_jax.errors import UserError

_OPTIONAL = re.compile(r"#\s*optional(:.*)?\s*$")
_PYTHON_SPELLING = {"true": "True", "false": "False", "none": "None", "null": "None"}


class Include:
    """One statement `include 'file'`."""

    def __init__(self, file: str, location: Location) -> None:
        self.file = file
        self.location = location


Statement = Binding | Import | Include


class _Delegate(config_parser.ParserDelegate):
    """Keeps references and macros as they are written; they get their meaning in the checks."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        *scope, name = scoped_configurable_name.split("/")
        return Reference(tuple(scope), name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def parse(text: str, file: str, locate: Callable[[str, int], Location]) -> Iterator[Statement]:
    """Yields the statements of one file, or of one binding of the command line, as it reads them.

    Args:
        text: gin source.
        file: its name in messages; `COMMAND_LINE` for a binding of the command line.
        locate: numbers a statement: (file, line) -> Location.

    Raises:
        UserError: the text is not gin.
    """
    lines = text.splitlines()
    start = 1
    try:
        parser = config_parser.ConfigParser(text, _Delegate())
        while True:
            start = parser.current_token.start[0]
            statement = parser.parse_statement()
            if statement is None:
                return
            if not isinstance(statement, config_parser.BlockDeclaration):
                yield _convert(statement, lines, file, locate)
    except tokenize.TokenError:
        while start < len(lines) and not lines[start - 1].split("#")[0].strip():
            start += 1
        raise UserError(_not_closed(lines, start, file)) from None
    except SyntaxError as error:
        line = error.lineno or start
        shown = lines[line - 1].strip() if line <= len(lines) else ""
        reason = str(error.msg).split("\n")[0]
        raise UserError(_explain(shown, reason, file, line)) from error


def _convert(
    statement: Any, lines: list[str], file: str, locate: Callable[[str, int], Location]
) -> Statement:
    line = statement.location.line_num
    location = locate(file, line)
    if isinstance(statement, config_parser.IncludeStatement):
        return Include(statement.filename, location)
    if isinstance(statement, config_parser.ImportStatement):
        if statement.module.startswith("__gin__."):
            raise UserError(
                f"{statement.format()} ({location}) is not needed: configurables have fixed names, "
                "so remove the line"
            )
        return Import(statement.module, location)
    scope = tuple(statement.scope.split("/")) if statement.scope else ()
    if statement.arg_name:
        key = Key(scope, statement.selector, statement.arg_name)
    else:
        key = Key(scope, "", statement.selector)
    optional = bool(line <= len(lines) and _OPTIONAL.search(lines[line - 1]))
    return Binding(key, statement.value, location, optional)


def _not_closed(lines: list[str], start: int, file: str) -> str:
    shown = lines[start - 1].strip() if start <= len(lines) else ""
    return f"{shown} ({_where(file, start)}) opens a bracket or quote that is never closed"


def _where(file: str, line: int) -> str:
    return file if file == COMMAND_LINE else f"{file}:{line}"


def _explain(shown: str, reason: str, file: str, line: int) -> str:
    """Says what is wrong with a line and, where its value is a bare text, how to quote it."""
    key, equals, value = (part.strip() for part in shown.partition("="))
    where = _where(file, line)
    if not equals:
        return f"{shown or 'this line'} ({where}) is not a gin statement: {_lower(reason)}"
    if not re.fullmatch(r"[A-Za-z_][\w./]*", key):
        return f"{shown} ({where}) does not set a name that gin can read, such as train.steps"
    value = _without_comment(value)
    if not value:
        return f"{key} ({where}) has no value after the equals sign"

    def written(correct: str) -> str:
        if file != COMMAND_LINE:
            return f"{key} = {correct}"
        return f'--gin.{key}="{correct}"' if "'" in correct else f"--gin.{key}={correct}"

    start = f"{key} = {value} ({where})"
    if value.lower() in _PYTHON_SPELLING:
        return (
            f"{start} is not spelled as in Python: write {written(_PYTHON_SPELLING[value.lower()])}"
        )
    if re.fullmatch(r"[\d._eE\s()]+([-+*/%]+[\d._eE\s()]+)+", value):
        return f"{start} is an expression, and gin computes nothing: write the resulting number"
    if value[0] not in "'\"[({@%":
        text = repr(value.replace("'", "’")) if "'" in value else repr(value)
        return f"{start} is not a value; a text needs quotes: write {written(text)}"
    return f"{start} cannot be read: {_lower(reason)}"


def _without_comment(value: str) -> str:
    """Cuts a trailing comment off; a '#' inside quotes stays."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(value).readline):
            if token.type == tokenize.COMMENT:
                return value[: token.start[1]].strip()
    except (tokenize.TokenError, SyntaxError):
        pass
    return value


def _lower(reason: str) -> str:
    reason = re.sub(r"\s+", " ", reason).strip().rstrip(".")
    return reason[:1].lower() + reason[1:]
