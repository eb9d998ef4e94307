"""What XLA is told about compiling for the backend at hand."""

from __future__ import annotations

import functools

import jax

# XLA's newer CPU kernels fuse more but multiply large matrices more slowly than Eigen's, whose
# products the training step is made of; reductions stay with the newer ones.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


@functools.cache
def training_compiler_options() -> dict[str, str]:
    """Options for `jax.jit(…, compiler_options=…)` of a training step on the default backend.

    Returns:
        The options; none on accelerators, nor where this version of XLA does not know them.
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=_CPU_OPTIONS).lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(_CPU_OPTIONS)
