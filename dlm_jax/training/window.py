"""The metrics of the steps since the last line, added up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


class MetricsWindow:
    """Sums over the steps of a line; read one step late, so that the devices never wait.

    The sums are float64 and added in the order of the steps, and a checkpoint carries those of a
    line that is not complete. So a resumed run writes the same lines as one that never stopped.
    """

    def __init__(
        self,
        learning_rate: Callable[[int], Any],
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
        carried: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts a line.

        Args:
            learning_rate: of the n-th step.
            flops_per_token: forward FLOPs a token; the backward pass costs twice as many.
            peak_flops: FLOP/s of all devices together; 0 where unknown.
            carried: what `partial` returned when the run was saved.
        """
        self._learning_rate = learning_rate
        self._flops, self._peak = flops_per_token, peak_flops
        self._entries: list[Any] = []
        self._closed: tuple[int, list[Any]] | None = None
        self._carried_steps = int(carried["steps"]) if carried else 0
        self._carried = dict(carried["sums"]) if carried else {}
        self._began = time.monotonic()

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the sums of one step, which may not have been computed yet."""
        self._entries.append(metrics)

    def close(self, step: int) -> None:
        """Ends the line of the steps up to `step`."""
        self._closed, self._entries = (step, self._entries), []

    def partial(self) -> dict[str, Any]:
        """Returns the sums of the line that is not complete, as JSON; waits for its steps."""
        steps, sums, _ = self._total(self._entries)
        return {"steps": steps, "sums": sums}

    def read(self) -> tuple[int, dict[str, float], int] | None:
        """Returns the step, its figures and the number of steps not finite; None if not due."""
        if self._closed is None:
            return None
        (step, entries), self._closed = self._closed, None
        steps, total, tokens = self._total(entries)
        self._carried_steps, self._carried = 0, {}
        now = time.monotonic()
        seconds, self._began = max(now - self._began, 1e-9), now
        figures = {
            "loss": total["loss_sum"] / max(total["weight_sum"], 1e-9),
            **_of_predictions(total),
            "grad_norm": total["grad_norm"] / steps,
            "learning_rate": float(self._learning_rate(step - 1)),
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / len(entries),
        }
        if "spike" in total:
            figures["spike_steps"] = round(total["spike"])
        if self._peak and self._flops:
            figures["mfu"] = 3 * self._flops * tokens / seconds / self._peak
        return step, figures, steps - round(total["finite"])

    def _total(self, entries: list[Any]) -> tuple[int, dict[str, float], float]:
        """Steps and sums with what was carried over, and the tokens of this process alone."""
        sums, tokens = dict(self._carried), 0.0
        for entry in jax.device_get(entries):
            tokens += float(entry["tokens"])
            for name, value in entry.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return self._carried_steps + len(entries), sums, tokens


def _of_predictions(total: Mapping[str, float]) -> dict[str, float]:
    """What a loss says of the absorbed tokens that it predicts, or of the examples."""
    if "correct" not in total:
        return {}
    if "absorbed_tokens" not in total:
        return {"accuracy": total["correct"] / max(total["weight_sum"], 1.0)}
    count = max(total["absorbed_tokens"], 1.0)
    return {
        "nll_per_absorbed_token": total["nll_sum"] / count,
        "accuracy": total["correct"] / count,
    }
