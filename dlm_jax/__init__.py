"""Turn masked language models into diffusion language models, in JAX/Flax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm_jax.api import DiffusionLanguageModel, load

__all__ = ["DiffusionLanguageModel", "load"]


def __getattr__(name: str) -> Any:
    """Imports the notebook API when it is first used: the command line must start without JAX."""
    if name in __all__:
        from dlm_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'dlm_jax' has no attribute {name!r}")
