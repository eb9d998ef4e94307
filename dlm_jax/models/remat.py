"""Named policies of rematerialisation: what the backward pass keeps of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import jax

from dlm_jax.models.config import LAYER_VALUES
from dlm_jax.models.dense import PRODUCT

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


def rematerialised(
    function: Callable[Inputs, Output], policy: str | Sequence[str]
) -> Callable[Inputs, Output]:
    """Wraps the body of a layer scan so that its backward pass keeps what `policy` names.

    Args:
        function: body of `jax.lax.scan`.
        policy: 'none' keeps everything, 'minimal' the values of `LAYER_VALUES`, 'dots' the outputs
            of the products with weights, whatever their names (attention is computed again), 'full'
            only the inputs of the body; a list of names keeps these values.

    Raises:
        ValueError: when `policy` is none of these.
    """
    policies = jax.checkpoint_policies
    if not isinstance(policy, str):
        saveable = policies.save_only_these_names(*policy)
    elif policy == "none":
        return function
    elif policy == "full":
        saveable = policies.nothing_saveable
    elif policy == "minimal":
        saveable = policies.save_only_these_names(*LAYER_VALUES)
    elif policy == "dots":
        saveable = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(PRODUCT)
        )
    else:
        raise ValueError(f"Unknown remat policy {policy!r}.")
    # Inside a scan the loop itself keeps recomputation and forward pass apart.
    return jax.checkpoint(function, policy=saveable, prevent_cse=False)
