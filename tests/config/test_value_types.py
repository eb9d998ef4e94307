"""Which literals fit which annotations, enumerated, and the names of types."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, TypeVar, Union

import pytest

from dlm_jax.config import value_types
from dlm_jax.config.signatures import signature
from dlm_jax.config.values import Reference

LITERALS = {
    "None": None,
    "bool": True,
    "int": 3,
    "float": 0.5,
    "str": "red",
    "tuple": (1, 2),
    "list": [1, 2],
    "texts": ["a"],
    "dict": {"a": 1},
}
EVERYTHING = set(LITERALS)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Part:
    size: int = 0


FITS: list[tuple[Any, set[str]]] = [
    (Any, EVERYTHING),
    (object, EVERYTHING),
    (TypeVar("T"), EVERYTHING),
    (None, {"None"}),
    (bool, {"bool"}),
    (int, {"int"}),
    (float, {"int", "float"}),
    (str, {"str"}),
    (Path, {"str"}),
    (int | None, {"int", "None"}),
    (Optional[float], {"int", "float", "None"}),  # noqa: UP045
    (Union[str, bool], {"str", "bool"}),  # noqa: UP007
    (Literal["red", 3], {"str", "int"}),
    (Literal["blue", 4], set()),
    (Colour, {"str"}),
    (tuple, {"tuple", "list", "texts"}),
    (tuple[int, ...], {"tuple", "list"}),
    (tuple[int, int], {"tuple", "list"}),
    (tuple[str], {"texts"}),
    (list[float], {"tuple", "list"}),
    (collections.abc.Sequence[str], {"texts"}),
    (collections.abc.Iterable[int], {"tuple", "list"}),
    (dict, {"dict"}),
    (dict[str, int], {"dict"}),
    (collections.abc.Mapping[str, str], set()),
    (Annotated[int, "steps"], {"int"}),
    (NewType("Steps", int), {"int"}),
    (collections.abc.Callable[..., Any], set()),
    (type[Part], set()),
    (Part, set()),
]


@pytest.mark.parametrize(("annotation", "names"), FITS, ids=[str(a) for a, _ in FITS])
def test_literals(annotation, names):
    def produces(reference):
        raise AssertionError(reference)

    found = {name for name, v in LITERALS.items() if value_types.fits(v, annotation, produces)}
    assert found == names


class Sub(Part):
    pass


def made_of(kind):
    return lambda reference: kind


@pytest.mark.parametrize(
    ("evaluate", "produced", "annotation", "expected"),
    [
        (True, Part, Part, True),
        (True, Sub, Part, True),
        (True, Colour, Part, False),
        (True, Any, Part, True),
        (True, int, float, True),
        (True, str, float, False),
        (True, Part | None, Part, True),
        (True, Part, Part | None, True),
        (True, Part, collections.abc.Callable[[int], int], False),
        (True, collections.abc.Callable[[int], int], collections.abc.Callable, True),
        (True, list[int], list[int], True),
        (False, Part, Part, False),
        (False, Part, type[Part], True),
        (False, made_of, type[Part], False),
        (False, made_of, collections.abc.Callable[[int], int], True),
        (False, made_of, int | collections.abc.Callable[[int], int], True),
    ],
)
def test_references(evaluate, produced, annotation, expected):
    reference = Reference((), "name", evaluate)
    assert value_types.fits(reference, annotation, made_of(produced)) is expected


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ([1, [2]], tuple[int, tuple[int, ...]], (1, (2,))),
        ([1, 2], list[int], [1, 2]),
        ([1], tuple[int, ...] | None, (1,)),
        (None, tuple[int, ...] | None, None),
        ("RED", Colour, Colour.RED),
        ("red", Colour, Colour.RED),
        ("red", Colour | str, "red"),
        ("x", Path, Path("x")),
        ("x", str | Path, "x"),
        ("x", Path | None, Path("x")),
        (3, float, 3),
    ],
)
def test_conversion(value, annotation, expected):
    converted = value_types.convert(value, annotation)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int | None, "int or None"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (Colour, "one of 'RED'"),
        (tuple[int, str], "(int, str)"),
        (tuple[int, ...], "a list of int"),
        (dict[str, int], "a dict"),
        (Part, "@Part()"),
        (Path | str, "str"),
        (collections.abc.Callable, "a reference such as @name"),
    ],
)
def test_names_of_types(annotation, text):
    assert value_types.describe(annotation) == text


@dataclasses.dataclass
class Base:
    path: Path
    unknown: NoSuchName = None  # noqa: F821


@dataclasses.dataclass
class Derived(Base):
    size: int = 1


def test_signature_of_an_inherited_dataclass():
    read = signature(Derived)
    assert read.annotations == {"path": Path, "unknown": Any, "size": int}
    assert read.defaults == {"unknown": None, "size": 1}
    assert read.returns is Derived
    assert not read.open


def test_signature_of_a_function():
    def function(first: int, /, second, *rest, third: str = "x", **others) -> Part: ...

    read = signature(function)
    assert read.annotations == {"second": Any, "third": str}
    assert read.open
    assert read.returns is Part


def test_signature_of_a_class_behind_a_metaclass():
    class Meta(type):
        def __call__(cls, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    class Module(metaclass=Meta):
        def __init__(self, width: int):
            self.width = width

    class Plain:
        pass

    assert signature(Module).annotations == {"width": int}
    assert signature(Plain).annotations == {}
