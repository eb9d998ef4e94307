"""A small world of configurables, with every kind of annotation that the checks know."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from dlm_jax.errors import UserError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Model:
    width: int
    depth: int = 2
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.width % 2:
            raise UserError(f"Model.width={self.width} is odd.")


@dataclasses.dataclass(frozen=True)
class Sgd:
    learning_rate: float = 0.1
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.99)


@dataclasses.dataclass(frozen=True)
class Momentum(Sgd):
    momentum: float = 0.9


class Evaluator(Protocol):
    def __call__(self, step: int) -> float: ...


@dataclasses.dataclass(frozen=True)
class Accuracy:
    sizes: tuple[int, ...] = ()

    def __call__(self, step: int) -> float:
        return float(step)


def exact(targets: Sequence[str], threshold: float = 0.5) -> dict[str, Any]:
    return {"targets": list(targets), "threshold": threshold}


def make_model(width: int, bias: bool = True) -> Model:
    return Model(width * 2 if bias else width)


def train(
    run_dir: str | Path,
    *,
    task: str,
    steps: int = 10,
    model: Model | None = None,
    optimizer: Sgd = Sgd(),
    evaluators: Sequence[Evaluator] = (),
    metric: Callable[..., Any] | None = None,
    rates: Mapping[str, float] | None = None,
    colour: Colour = Colour.RED,
    folder: Path | None = None,
    verbose: bool = False,
    extra: Any = None,
) -> dict[str, Any]:
    return dict(locals())


def evaluate(run_dir: str, *, task: str | None = None, metrics: Sequence[Any] = ()) -> Any:
    return dict(locals())


@pytest.fixture
def table() -> dict[str, Callable[..., Any]]:
    names = [train, evaluate, Model, Sgd, Momentum, Accuracy, exact, make_model]
    return {target.__name__: target for target in names}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Writes files into a fresh current folder."""
    monkeypatch.chdir(tmp_path)

    def files(contents: dict[str, str]) -> None:
        for name, text in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return files
