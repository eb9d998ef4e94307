"""The reverse process: one jitted loop and the hooks it composes."""

from dlm_jax.sampling.canvas import (
    Canvas,
    infilling_canvas,
    make_canvas,
    response_canvas,
    written_tokens,
)
from dlm_jax.sampling.loop import Generation, generate
from dlm_jax.sampling.policy import Policy
from dlm_jax.sampling.trace import Trace, remask_counts, reveal_steps

__all__ = [
    "Canvas",
    "Generation",
    "Policy",
    "Trace",
    "generate",
    "infilling_canvas",
    "make_canvas",
    "remask_counts",
    "response_canvas",
    "reveal_steps",
    "written_tokens",
]
