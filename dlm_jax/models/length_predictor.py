"""The length predictor: how many tokens an answer takes, read off the features of its prompt.

One Transformer layer on the features of the frozen encoder, their mean over the prompt, and two
dense layers that score every length (Ye et al. 2023, arXiv 2308.12219, official code).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dlm_jax.models import parameter_trees
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import EncoderLayer
from dlm_jax.models.layers import INITIAL_STDDEV, Linear, Stack
from dlm_jax.models.parameter_trees import Parameters

# Fields of an encoder's configuration that decide the predictor's shape.
SHAPE_FIELDS = ("embed_dim", "num_heads", "mlp_dim", "max_positions")


class LengthPredictor(nnx.Module):
    """Scores the lengths of an answer; class c stands for c + 1 tokens, `</s>` not counted.

    The layer is post-LN with ReLU whatever the encoder's are, as PyTorch's
    `TransformerEncoderLayer` is by default; unlike PyTorch's it drops nothing between the two
    products of its feed-forward block, as the encoder's own layers do not.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs, dropout_rate: float = 0.1) -> None:
        """Draws initial parameters from `rngs.params`.

        Args:
            config: of the encoder; there are as many classes as it has rows of positions.
            rngs: stream of initialisation keys.
            dropout_rate: of the layer and of its attention.
        """
        layer = dataclasses.replace(
            config,
            num_layers=1,
            norm_placement="post",
            activation="relu",
            layer_norm_epsilon=1e-5,
            dropout_rate=dropout_rate,
            attention_dropout_rate=dropout_rate,
            attention="auto",
        )
        stack = Stack(rngs)
        width, hidden = (config.embed_dim,), (config.mlp_dim,)
        self.layer = EncoderLayer(layer, stack)
        self.hidden = Linear(stack, width, hidden, ("embed",), ("mlp",))
        self.classes = Linear(stack, hidden, (config.max_positions,), ("mlp",), (None,))
        attention, mlp = self.layer.attention, self.layer.mlp
        for linear in (attention.qkv, attention.out, mlp.up, mlp.down, self.hidden, self.classes):
            _rescale(linear)

    def __call__(
        self, features: jax.Array, segment_ids: jax.Array, *, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Scores lengths.

        Args:
            features: [batch, length, embed] of prompts.
            segment_ids: int32 [batch, length]; 0 marks what is no part of the prompt.
            dropout_key: typed key; None computes without dropout.

        Returns:
            float32 logits [batch, classes].
        """
        x = self.layer(features, segment_ids, dropout_key)
        present = (segment_ids > 0).astype(jnp.float32)
        total = jnp.einsum("bl,ble->be", present, x.astype(jnp.float32))
        # An empty row, which only fills a batch up, has no mean.
        pooled = total / jnp.maximum(present.sum(-1, keepdims=True), 1.0)
        return self.classes(jnp.tanh(self.hidden(pooled)))


def _rescale(linear: Linear) -> None:
    """Gives a kernel the variance 1 / (3 inputs) that PyTorch's layers start from.

    At the width of XLM-R base it is that of the encoder's own; a narrow predictor would learn
    nothing for long from matrices as small as those.
    """
    kernel = linear.kernel[...]
    inputs = kernel.size // linear.bias[...].size
    linear.kernel[...] = kernel / (INITIAL_STDDEV * math.sqrt(3.0 * inputs))


def length_classes(target_tokens: jax.Array, num_classes: int) -> jax.Array:
    """The classes of answers.

    Args:
        target_tokens: int32 [...], tokens of each answer with its `</s>`.
        num_classes: of the predictor.

    Returns:
        int32 [...]; an empty answer counts as one token, as in the paper's code, and one longer
        than any class as the longest.
    """
    return jnp.clip(target_tokens, 2, num_classes + 1) - 2


def num_parameters(config: EncoderConfig) -> int:
    """Number of scalar parameters of the predictor of an encoder."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(config)))


def abstract_parameters(config: EncoderConfig) -> Parameters:
    """The tree of parameters as `jax.ShapeDtypeStruct`; allocates nothing."""
    return parameter_trees.shapes(_structure(config, 0.0))


def logical_axes(config: EncoderConfig) -> Parameters:
    """The tree of parameters with a tuple of logical axis names in place of each array."""
    return parameter_trees.axes(_structure(config, 0.0))


def parameters(predictor: LengthPredictor) -> Parameters:
    """The arrays of a predictor as a tree of dicts; the arrays are shared, not copied."""
    return parameter_trees.parameters(predictor)


def from_parameters(
    config: EncoderConfig, tree: Parameters, *, dropout_rate: float = 0.0
) -> LengthPredictor:
    """A predictor that holds the arrays of `tree`; nothing is initialised or copied.

    Args:
        config: of the encoder.
        tree: the tree of `abstract_parameters(config)` with arrays (or tracers) as leaves.
        dropout_rate: see `LengthPredictor`.

    Raises:
        ValueError: when the tree's names or shapes are not those of `config`.
    """
    return parameter_trees.build(_structure(config, dropout_rate), tree)


@functools.lru_cache(maxsize=32)
def _structure(config: EncoderConfig, dropout_rate: float) -> parameter_trees.Structure:
    return parameter_trees.structure_of(
        lambda: LengthPredictor(config, rngs=nnx.Rngs(0), dropout_rate=dropout_rate)
    )
