"""What the length predictor learns: from features of frozen prompts to the lengths of answers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dlm_jax.models import encoder as encoders
from dlm_jax.models import length_predictor as predictors
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel import rules
from dlm_jax.parallel.rules import constrain
from dlm_jax.training.program import compiled_by_all
from dlm_jax.training.sharding import placed, shardings_of
from dlm_jax.training.stage import Stage
from dlm_jax.training.step import Batch, Loss, Metrics

Features = Callable[[Batch, int], Batch]


def frozen_features(
    config: EncoderConfig, parameters: Any, width: int, *, seed: int = 0, dropout: bool = False
) -> Features:
    """What the predictor reads of a batch of examples, one a row.

    Args:
        config: of the frozen model.
        parameters: its arrays; no gradient ever reaches them.
        width: tokens that hold every prompt.
        seed: of dropout.
        dropout: whether the model drops as in training.

    Returns:
        A function of a batch [rows, length] and its number that gives `features`
        [rows, width, embed] and `segment_ids` [rows, width] of the prompts alone, and
        `target_tokens` int32 [rows], tokens of the answers with their `</s>`.
    """
    root = jax.random.key(seed + 2, impl="threefry2x32") if dropout else None

    @jax.jit
    def compute(parameters: Any, batch: Batch, number: jax.Array) -> Batch:
        # An answer is of another segment than its prompt, and is overwritten as well.
        prompt = (batch["segment_ids"] > 0) & ~batch["maskable"]
        inside = prompt[:, :width]
        segments = constrain(inside.astype(jnp.int32), ("batch", "length"))
        tokens = jnp.where(inside, batch["tokens"][:, :width], config.pad_id)
        features = encoders.from_parameters(config, parameters).features(
            tokens,
            jnp.where(inside, batch["positions"][:, :width], 0),
            segments,
            dropout_key=None if root is None else jax.random.fold_in(root, number),
        )
        return {
            "features": constrain(features, ("batch", "length", "embed")),
            "segment_ids": segments,
            "target_tokens": batch["maskable"].sum(-1, dtype=jnp.int32),
        }

    program = compiled_by_all(compute)
    return lambda batch, number: program(parameters, batch, np.uint32(number))


def length_loss(config: EncoderConfig, dropout_rate: float) -> Loss:
    """Mean cross-entropy of the true lengths, of batches as `frozen_features` makes them."""

    def loss(
        parameters: Any, batch: Batch, dropout_key: jax.Array, time_state: Any
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        predictor = predictors.from_parameters(config, parameters, dropout_rate=dropout_rate)
        logits = predictor(
            batch["features"],
            batch["segment_ids"],
            dropout_key=dropout_key if dropout_rate else None,
        )
        classes = predictors.length_classes(batch["target_tokens"], logits.shape[-1])
        log_probs = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(log_probs, classes[:, None], axis=-1)[:, 0]
        loss_sum = nll.sum()
        metrics = {
            "loss_sum": loss_sum,
            "weight_sum": jnp.float32(len(nll)),
            "correct": (logits.argmax(-1) == classes).sum(dtype=jnp.float32),
            "tokens": (batch["segment_ids"] > 0).sum(dtype=jnp.float32),
        }
        return loss_sum, (metrics, time_state)

    return loss


def length_stage(
    config: EncoderConfig,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    accumulation: int = 1,
    dropout_rate: float = 0.1,
) -> Stage:
    """The training of a length predictor from random weights.

    Args:
        config: of the frozen model.
        optimizer: the optax transformation.
        mesh: of the run.
        seed: of dropout and of the weights.
        accumulation: micro-batches a step.
        dropout_rate: within the predictor's layer.
    """
    shapes = predictors.abstract_parameters(config)
    parameters = placed(
        shapes,
        rules.parameter_shardings(
            predictors.logical_axes(config), mesh, rules.active_rules().parameters, shapes
        ),
    )

    def create() -> Any:
        def initialise() -> Any:
            return predictors.parameters(predictors.LengthPredictor(config, rngs=nnx.Rngs(seed)))

        return jax.jit(initialise, out_shardings=shardings_of(parameters))()

    return Stage.of(
        length_loss(config, dropout_rate),
        optimizer,
        parameters,
        create,
        seed=seed,
        accumulation=accumulation,
    )


def log_probs_program(config: EncoderConfig) -> Callable[[Any, Batch], jax.Array]:
    """`predicted_log_probs` for batches of one shape, which all processes of a run give it."""
    return compiled_by_all(jax.jit(functools.partial(predicted_log_probs, config)))


@functools.partial(jax.jit, static_argnums=0)
def predicted_log_probs(config: EncoderConfig, parameters: Any, batch: Batch) -> jax.Array:
    """Log-probabilities [rows, classes] of a batch as `frozen_features` makes them."""
    predictor = predictors.from_parameters(config, parameters)
    logits = predictor(batch["features"], batch["segment_ids"])
    # On every device: each host reads all of them.
    return constrain(jax.nn.log_softmax(logits), (None, None))
