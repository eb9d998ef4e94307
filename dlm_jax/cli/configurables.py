"""The names that gin files can use, and what each stands for; a module is imported when used."""

from __future__ import annotations

# Functions that a command calls; the same gin files may bind several of them.
ENTRIES = ("train", "length_stage", "evaluate", "sweep")

CONFIGURABLES = {
    "train": "dlm_jax.training.train:train",
    "length_stage": "dlm_jax.training.length_stage:train_length_predictor",
    "evaluate": "dlm_jax.evaluation.evaluate:evaluate",
    "sweep": "dlm_jax.evaluation.sweep:Sweep",
    # Models.
    "EncoderConfig": "dlm_jax.models.config:EncoderConfig",
    # Objectives and their parts.
    "Diffusion": "dlm_jax.training.objectives:Diffusion",
    "MaskedLanguageModel": "dlm_jax.training.objectives:MaskedLanguageModel",
    "Autoregressive": "dlm_jax.training.objectives:Autoregressive",
    "DiffusionObjective": "dlm_jax.diffusion.objectives:DiffusionObjective",
    "MaskedLanguageModelObjective": "dlm_jax.diffusion.objectives:MaskedLanguageModelObjective",
    "AutoregressiveObjective": "dlm_jax.diffusion.autoregressive:AutoregressiveObjective",
    "AbsorbingProcess": "dlm_jax.diffusion.process:AbsorbingProcess",
    "Linear": "dlm_jax.diffusion.schedules:Linear",
    "Cosine": "dlm_jax.diffusion.schedules:Cosine",
    "Polynomial": "dlm_jax.diffusion.schedules:Polynomial",
    # Training.
    "AdamW": "dlm_jax.training.optimizers:AdamW",
    "SkipSpikes": "dlm_jax.training.spikes:SkipSpikes",
    "CheckpointConfig": "dlm_jax.checkpoints.manager:CheckpointConfig",
    "MeshConfig": "dlm_jax.parallel.mesh:MeshConfig",
    "ShardingRules": "dlm_jax.parallel.rules:ShardingRules",
    "Truncation": "dlm_jax.data.table:Truncation",
    # Sampling and evaluation.
    "Policy": "dlm_jax.sampling.policy:Policy",
    "LikelihoodEvaluator": "dlm_jax.evaluation.evaluators:LikelihoodEvaluator",
    "GenerationEvaluator": "dlm_jax.evaluation.evaluators:GenerationEvaluator",
    "ReasoningOrderEvaluator": "dlm_jax.evaluation.order_evaluator:ReasoningOrderEvaluator",
}
