"""Parameters of a configurable and their annotations, without calling it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

_GIVEN_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclasses.dataclass(frozen=True)
class Signature:
    """What can be bound.

    Attributes:
        annotations: parameter -> its type; `Any` where it cannot be told.
        defaults: parameter -> default, for those that have one.
        open: whether other names are accepted as well (`**kwargs`).
        positional: names of the parameters that positional arguments fill, in order.
        returns: type of the result; `Any` where it cannot be told.
    """

    annotations: Mapping[str, Any]
    defaults: Mapping[str, Any]
    open: bool
    positional: tuple[str, ...]
    returns: Any


@functools.cache
def signature(target: Callable[..., Any]) -> Signature:
    """Reads the signature of a function, a class or a partial application."""
    parameters = inspect.signature(_constructor(target)).parameters
    own = list(parameters.values())
    if inspect.isclass(target) and own:
        own = own[1:]
    named = [parameter for parameter in own if parameter.kind in _GIVEN_BY_NAME]
    return Signature(
        annotations={item.name: _resolve(target, item.name, item.annotation) for item in named},
        defaults={
            item.name: item.default for item in named if item.default is not inspect.Parameter.empty
        },
        open=any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own),
        positional=tuple(
            item.name for item in named if item.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ),
        returns=_returns(target),
    )


def _constructor(target: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose parameters are bound; the metaclass of Flax NNX hides a class's own."""
    if not inspect.isclass(target):
        return target
    for base in inspect.getmro(target):
        for name in ("__init__", "__new__"):
            if name in base.__dict__ and base is not object:
                return base.__dict__[name].__func__ if name == "__new__" else base.__dict__[name]
    return lambda self: None


def _returns(target: Callable[..., Any]) -> Any:
    if inspect.isclass(target):
        return target
    return _resolve(target, "return", inspect.signature(target).return_annotation)


def _resolve(target: Callable[..., Any], name: str, annotation: Any) -> Any:
    """Evaluates an annotation that `from __future__ import annotations` left as text."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, _namespace(target, name))
    except Exception:  # a name of `if TYPE_CHECKING`, which does not exist when the program runs
        return Any


def _namespace(target: Callable[..., Any], name: str) -> dict[str, Any]:
    """Global names where the annotation is written; an inherited field's are its own module's."""
    if inspect.isclass(target):
        for base in inspect.getmro(target):
            if name in base.__dict__.get("__annotations__", {}):
                return vars(sys.modules[base.__module__])
        return vars(sys.modules[_constructor(target).__module__])
    while isinstance(target, functools.partial):
        target = target.func
    return getattr(inspect.unwrap(target), "__globals__", {})
