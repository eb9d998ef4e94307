"""Named policies of rematerialisation: what the backward pass keeps of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")

# The outputs of the products with weights, and what attention's backward pass starts from.
MINIMAL_NAMES = (
    "qkv",
    "attention_context",
    "attention_normaliser",
    "attention_out",
    "mlp_up",
    "mlp_down",
)


def rematerialised(function: Callable[Inputs, Output], policy: str) -> Callable[Inputs, Output]:
    """Wraps the body of a layer scan so that its backward pass keeps what `policy` names.

    Args:
        function: body of `jax.lax.scan`.
        policy: 'none' keeps everything, 'minimal' the values of `MINIMAL_NAMES`, 'full' only the
            inputs of the body.

    Raises:
        ValueError: when `policy` is none of these.
    """
    if policy == "none":
        return function
    if policy == "full":
        saveable = jax.checkpoint_policies.nothing_saveable
    elif policy == "minimal":
        saveable = jax.checkpoint_policies.save_only_these_names(*MINIMAL_NAMES)
    else:
        raise ValueError(f"Unknown remat policy {policy!r}.")
    # Inside a scan the loop itself keeps recomputation and forward pass apart.
    return jax.checkpoint(function, policy=saveable, prevent_cse=False)
