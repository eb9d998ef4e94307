"""A loaded model for notebooks and for the evaluators: generate, infill, score, logits."""

from dlm_jax.api.model import DiffusionLanguageModel, Likelihood, load
from dlm_jax.api.writing import Answer

__all__ = ["Answer", "DiffusionLanguageModel", "Likelihood", "load"]
