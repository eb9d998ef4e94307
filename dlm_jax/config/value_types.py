"""Whether a gin value fits the annotation of the parameter it is bound to, and how to say so."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import pathlib
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

from dlm_jax.config.values import Reference
from dlm_jax.errors import nearest

Produces = Callable[[Reference], Any]

_SEQUENCES = (
    collections.abc.Sequence,
    collections.abc.Collection,
    collections.abc.Iterable,
    collections.abc.MutableSequence,
)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def fits(value: Any, annotation: Any, produces: Produces) -> bool:
    """Whether a value can be passed to a parameter with this annotation.

    Args:
        value: literals and references; macros are already replaced by their values.
        annotation: a type, or anything of `typing`.
        produces: type of what a reference gives: of the result of `@name()`, or the target `@name`.
    """
    annotation = _plain(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (Any, object) or isinstance(annotation, (str, typing.TypeVar)):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, member, produces) for member in arguments)
    if isinstance(value, Reference):
        return _reference_fits(value, annotation, produces)
    if annotation is None or annotation is types.NoneType:
        return value is None
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if _is_callable(annotation) or origin is type:
        return callable(value)
    if origin is not None or annotation in (tuple, list, *_SEQUENCES, *_MAPPINGS):
        return _container_fits(value, origin or annotation, arguments, produces)
    return _literal_fits(value, annotation)


def _plain(annotation: Any) -> Any:
    """Removes what only names a type: `Annotated`, `NewType`, aliases."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def _is_callable(annotation: Any) -> bool:
    return collections.abc.Callable in (annotation, typing.get_origin(annotation))


def _literal_fits(value: Any, annotation: Any) -> bool:
    if not inspect.isclass(annotation):
        return True
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if issubclass(annotation, enum.Enum):
        return isinstance(value, annotation) or value in _options(annotation)
    if issubclass(annotation, pathlib.PurePath):
        return isinstance(value, (str, pathlib.PurePath))
    if getattr(annotation, "_is_protocol", False):
        return not isinstance(value, (str, int, float, tuple, list, dict, types.NoneType))
    return isinstance(value, annotation)


def _container_fits(value: Any, origin: Any, arguments: Any, produces: Produces) -> bool:
    if origin in _MAPPINGS:
        if not isinstance(value, dict):
            return False
        keys, items = arguments or (Any, Any)
        return all(fits(k, keys, produces) and fits(v, items, produces) for k, v in value.items())
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(arguments)
            and all(fits(item, kind, produces) for item, kind in zip(value, arguments))
        )
    if origin in (tuple, list, *_SEQUENCES):
        item_type = arguments[0] if arguments else Any
        return isinstance(value, (tuple, list)) and all(
            fits(item, item_type, produces) for item in value
        )
    return not inspect.isclass(origin) or isinstance(value, origin)


def _reference_fits(value: Reference, annotation: Any, produces: Produces) -> bool:
    target = produces(value)
    if not value.evaluate:
        if inspect.isclass(target) and _is_protocol(annotation):
            return False  # `@Name` is the class; an object with these methods is `@Name()`
        origin = typing.get_origin(annotation)
        return _is_callable(annotation) or (
            inspect.isclass(target)
            if origin is type or annotation is type
            else _is_protocol(annotation)
        )
    return _type_fits(target, annotation)


def _is_protocol(annotation: Any) -> bool:
    return bool(getattr(typing.get_origin(annotation) or annotation, "_is_protocol", False))


def _type_fits(produced: Any, annotation: Any) -> bool:
    """Whether a result of this type can be passed; doubtful cases are left to the program."""
    produced = _plain(produced)
    if produced in (Any, object):
        return True
    if typing.get_origin(produced) in (Union, types.UnionType):
        return any(_type_fits(member, annotation) for member in typing.get_args(produced))
    made = types.NoneType if produced is None else typing.get_origin(produced) or produced
    wanted = types.NoneType if annotation is None else typing.get_origin(annotation) or annotation
    if _is_callable(annotation):
        return (
            not inspect.isclass(made) or made is collections.abc.Callable or "__call__" in dir(made)
        )
    if not inspect.isclass(made) or not inspect.isclass(wanted) or _is_protocol(annotation):
        return True
    if wanted is float and made is int:
        return True
    return issubclass(made, wanted) or issubclass(wanted, made)


def _options(annotation: type[enum.Enum]) -> list[Any]:
    return [*(member.name for member in annotation), *(member.value for member in annotation)]


def convert(value: Any, annotation: Any) -> Any:
    """Gives a value that fits the exact type: tuples for lists, members of enums, paths."""
    annotation = _plain(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        exact = [kind for kind in arguments if inspect.isclass(kind) and type(value) is kind]
        for member in exact or [m for m in arguments if fits(value, m, lambda reference: Any)]:
            return convert(value, member)
        return value
    if (origin or annotation) is tuple and isinstance(value, (list, tuple)):
        fixed = bool(arguments) and arguments[-1] is not Ellipsis
        kinds = arguments if fixed else [arguments[0] if arguments else Any] * len(value)
        return tuple(convert(item, kind) for item, kind in zip(value, kinds))
    if inspect.isclass(annotation) and origin is None:
        if issubclass(annotation, enum.Enum) and not isinstance(value, annotation):
            return annotation[value] if value in annotation.__members__ else annotation(value)
        if issubclass(annotation, pathlib.PurePath) and isinstance(value, str):
            return annotation(value)
    return value


def describe(annotation: Any) -> str:
    """Names a type for people: 'int', 'float or None', "one of 'a', 'b'", '@EncoderConfig()'."""
    annotation = _plain(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is types.NoneType:
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(member) for member in arguments))
    if origin is Literal:
        shown = ", ".join(repr(option) for option in arguments)
        return f"one of {shown}" if len(arguments) > 1 else shown
    if _is_callable(annotation):
        return "a reference such as @name"
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"({', '.join(describe(kind) for kind in arguments)})"
    if origin in (tuple, list, *_SEQUENCES):
        return f"a list of {describe(arguments[0])}"
    if annotation in (tuple, list, *_SEQUENCES):
        return "a list"
    if origin in _MAPPINGS or annotation in _MAPPINGS:
        return "a dict"
    if annotation in (int, float, str, bool):
        return annotation.__name__
    if inspect.isclass(annotation):
        if issubclass(annotation, enum.Enum):
            return f"one of {', '.join(repr(member.name) for member in annotation)}"
        if issubclass(annotation, pathlib.PurePath):
            return "str"
        return f"@{annotation.__name__}()"
    return str(annotation)


def describe_value(value: Any, produces: Produces) -> str:
    """Names the kind of a value for people: 'a str', 'None', 'a list', 'AdamW' of a reference."""
    if isinstance(value, Reference):
        made = produces(value)
        if not value.evaluate:
            return "a reference without ()"
        name = getattr(made, "__name__", str(made))
        return f"of type {name}"
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def suggestion(value: Any, annotation: Any) -> str:
    """Returns what the user probably meant, as ' (did you mean …?)', or ''."""
    annotation = _plain(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return next(filter(None, (suggestion(value, member) for member in arguments)), "")
    if isinstance(value, Reference):
        if not value.evaluate and inspect.isclass(annotation):
            return f" (did you mean {value!r}()?)"
        return ""
    if isinstance(value, float) and annotation is int and value.is_integer():
        return f" (did you mean {int(value)}?)"
    if not isinstance(value, str):
        return ""
    options: list[Any] = []
    if origin is Literal:
        options = list(arguments)
    elif inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        options = [member.name for member in annotation]
    elif annotation in (int, float, bool) and _reads_as(value, annotation):
        return f" (did you mean {value.strip()}, without quotes?)"
    return nearest(value, [repr(o)[1:-1] for o in options if isinstance(o, str)])


def _reads_as(text: str, kind: type) -> bool:
    if kind is bool:
        return text in ("True", "False")
    try:
        kind(text)
    except ValueError:
        return False
    return True
