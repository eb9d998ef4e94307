"""A training step whose compiled program can be looked at, and programs that processes share."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dlm_jax.parallel import multihost


def compiled_by_all(jitted: Any) -> Callable[..., Any]:
    """A jitted function that, of several processes, none runs before all have compiled it.

    Within a program they wait for each other for no more than seconds (gloo: 30), and the time of a
    compilation can differ by more. Its calls have to bring the same shapes, types and shardings,
    and all processes must make them, in the same order.
    """
    if jax.process_count() == 1:
        return jitted

    def on_compiled(lowered: Any, compiled: Any) -> None:
        multihost.exchange("compiled", "")

    return KeptProgram(jitted, on_compiled)


class KeptProgram:
    """A jitted step that is compiled by its first call, once, and keeps what was compiled.

    Later calls have to bring the same shapes, types and shardings.
    """

    def __init__(self, jitted: Any, on_compiled: Callable[[Any, Any], None] | None = None) -> None:
        """Args: jitted: the step. on_compiled: gets the lowered and the compiled program."""
        self._jitted, self._on_compiled = jitted, on_compiled
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Calls the step."""
        if self._compiled is None:
            lowered = self._jitted.lower(*arguments)
            self._compiled = lowered.compile()
            if self._on_compiled is not None:
                self._on_compiled(lowered, self._compiled)
        return self._compiled(*arguments)

    def text(self) -> str:
        """The optimized HLO; empty before the first call."""
        return "" if self._compiled is None else self._compiled.as_text()


def hlo_writer(folder: Path, say: Callable[[str], None]) -> Callable[[Any, Any], None]:
    """Returns a function that writes a lowered and a compiled program into `folder` and says so."""

    def write(lowered: Any, compiled: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train_step.stablehlo.txt").write_text(lowered.as_text(), encoding="utf-8")
        (folder / "train_step.hlo.txt").write_text(compiled.as_text(), encoding="utf-8")
        say(
            f"the training step: as it was traced (train_step.stablehlo.txt) and as it runs "
            f"(train_step.hlo.txt), in {shlex.quote(str(folder))}"
        )

    return write
