"""The denoiser: a Transformer encoder of the BERT and RoBERTa families.

Post-LN (BERT, RoBERTa, XLM-R) and pre-LN (XLM-R XL and XXL) differ by configuration only. The
layers are stacked on a leading `layers` axis of every parameter and applied by `lax.scan`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from dlm_jax.models import parameter_trees
from dlm_jax.models.activations import ACTIVATIONS
from dlm_jax.models.attention import attention
from dlm_jax.models.cached_attention import CHUNK, cached_attention, with_new
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.dropout import dropout, seed_words
from dlm_jax.models.layers import INITIAL_STDDEV, Embedding, LayerNorm, Linear, Stack
from dlm_jax.models.parameter_trees import Parameters
from dlm_jax.models.remat import rematerialised
from dlm_jax.parallel.rules import constrain


class Embeddings(nnx.Module):
    """Sum of the token, position and token-type rows, normalised in post-LN encoders."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        stack = Stack(rngs)
        width = config.embed_dim
        self.token = Embedding(stack, config.vocab_size, width, "vocab")
        self.position = Embedding(stack, config.max_positions, width, None)
        if config.type_vocab_size:
            self.token_type = Embedding(stack, config.type_vocab_size, width, None)
        if config.norm_placement == "post":
            self.norm = LayerNorm(stack, width, config.layer_norm_epsilon)
        self._offset = config.position_offset

    @jax.named_scope("embeddings")
    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """float32 [batch, length, embed] of int32 tokens and positions [batch, length]."""
        x = self.token(tokens) + self.position(positions + self._offset)
        if hasattr(self, "token_type"):
            x += self.token_type.embedding[...][0]
        return self.norm(x) if hasattr(self, "norm") else x


class Attention(nnx.Module):
    """Projections of multi-head self-attention."""

    def __init__(self, config: EncoderConfig, stack: Stack) -> None:
        heads = (config.num_heads, config.head_dim)
        self.qkv = Linear(
            stack, (config.embed_dim,), (3, *heads), ("embed",), (None, "heads", "kv")
        )
        self.out = Linear(stack, heads, (config.embed_dim,), ("heads", "kv"), ("embed",))
        self._dropout_rate = config.attention_dropout_rate
        self._implementation = config.attention
        self._causal = config.causal

    @jax.named_scope("attention")
    def __call__(
        self, x: jax.Array, segment_ids: jax.Array, dropout_seed: jax.Array | None
    ) -> jax.Array:
        """[batch, length, embed] of x [batch, length, embed]."""
        qkv = checkpoint_name(self.qkv(x), "qkv")
        qkv = constrain(qkv, ("batch", "length", None, "heads", "kv"))
        context = attention(
            qkv,
            segment_ids,
            causal=self._causal,
            dropout_rate=self._dropout_rate,
            dropout_seed=dropout_seed,
            implementation=self._implementation,
        )
        context = constrain(context, ("batch", "length", "heads", "kv"))
        return checkpoint_name(self.out(context), "attention_out")

    def extend(
        self,
        x: jax.Array,
        places: jax.Array,
        cache: jax.Array,
        layer: jax.Array,
        first_row: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """The same for x [rows, width, embed] at `places` of rows whose past is in the cache."""
        qkv = self.qkv(x)
        cache = with_new(cache, qkv[:, :, 1:], layer, first_row, places)
        return self.out(cached_attention(qkv[:, :, 0], cache, layer, first_row, places)), cache


class Mlp(nnx.Module):
    """The position-wise feed-forward block."""

    def __init__(self, config: EncoderConfig, stack: Stack) -> None:
        self.up = Linear(stack, (config.embed_dim,), (config.mlp_dim,), ("embed",), ("mlp",))
        self.down = Linear(stack, (config.mlp_dim,), (config.embed_dim,), ("mlp",), ("embed",))
        self._activation = config.activation

    @jax.named_scope("mlp")
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, length, embed] of x [batch, length, embed]."""
        hidden = checkpoint_name(self.up(x), "mlp_up")
        hidden = constrain(hidden, ("batch", "length", "mlp"))
        return checkpoint_name(self.down(ACTIVATIONS[self._activation](hidden)), "mlp_down")


class EncoderLayer(nnx.Module):
    """One Transformer layer, or the stack of all of them."""

    def __init__(self, config: EncoderConfig, stack: Stack) -> None:
        self.attention = Attention(config, stack)
        self.attention_norm = LayerNorm(stack, config.embed_dim, config.layer_norm_epsilon)
        self.mlp = Mlp(config, stack)
        self.mlp_norm = LayerNorm(stack, config.embed_dim, config.layer_norm_epsilon)
        self._config = config

    def __call__(
        self, x: jax.Array, segment_ids: jax.Array, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Applies one layer to x [batch, length, embed]; `dropout_key` None drops nothing."""
        attention_seed = first_seed = second_seed = None
        if dropout_key is not None:
            seeds = jax.vmap(seed_words)(jax.random.split(dropout_key, 3))
            attention_seed, first_seed, second_seed = seeds[0], seeds[1], seeds[2]
        update = self.attention(self._attended(x), segment_ids, attention_seed)
        return self._after_attention(x, update, first_seed, second_seed)

    def extend(
        self,
        x: jax.Array,
        places: jax.Array,
        cache: jax.Array,
        layer: jax.Array,
        first_row: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Applies one causal layer to x [rows, width, embed]; see `Encoder.extend`."""
        update, cache = self.attention.extend(self._attended(x), places, cache, layer, first_row)
        return self._after_attention(x, update, None, None), cache

    def _attended(self, x: jax.Array) -> jax.Array:
        return self.attention_norm(x) if self._config.norm_placement == "pre" else x

    def _after_attention(
        self,
        x: jax.Array,
        update: jax.Array,
        first_seed: jax.Array | None,
        second_seed: jax.Array | None,
    ) -> jax.Array:
        if self._config.norm_placement == "pre":
            x = self._residual(x, update, first_seed)
            return self._residual(x, self.mlp(self.mlp_norm(x)), second_seed)
        x = self.attention_norm(self._residual(x, update, first_seed))
        return self.mlp_norm(self._residual(x, self.mlp(x), second_seed))

    def _residual(self, x: jax.Array, update: jax.Array, seed: jax.Array | None) -> jax.Array:
        if seed is not None and self._config.dropout_rate:
            update = dropout(update, seed, self._config.dropout_rate)
        return constrain(x + update, ("batch", "length", "embed"))


class Head(nnx.Module):
    """The masked-LM head: transform, norm, and the bias (and, untied, the rows) of the logits."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        stack = Stack(rngs)
        width = config.embed_dim
        self.transform = Linear(stack, (width,), (width,), ("embed",), (None,))
        self.norm = LayerNorm(stack, width, config.layer_norm_epsilon)
        self.bias = stack.parameter(nnx.initializers.zeros_init(), (config.vocab_size,), ("vocab",))
        if not config.tie_embeddings:
            self.decoder = Decoder(config, stack)
        self._activation = config.activation

    def __call__(self, features: jax.Array) -> jax.Array:
        """The transform of [..., embed], same shape and dtype."""
        return self.norm(ACTIVATIONS[self._activation](self.transform(features)))


class Decoder(nnx.Module):
    """The output projection of an encoder whose tables are not tied."""

    def __init__(self, config: EncoderConfig, stack: Stack) -> None:
        self.kernel = stack.parameter(
            nnx.initializers.normal(INITIAL_STDDEV),
            (config.vocab_size, config.embed_dim),
            ("vocab", "embed"),
        )


class Encoder(nnx.Module):
    """A masked language model whose one forward pass is a step of the reverse process."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        """Draws initial parameters from `rngs.params`."""
        self.config = config
        self.embeddings = Embeddings(config, rngs)
        self.layers = EncoderLayer(config, Stack(rngs, (config.num_layers,), ("layers",)))
        if config.norm_placement == "pre":
            self.final_norm = LayerNorm(Stack(rngs), config.embed_dim, config.layer_norm_epsilon)
        self.head = Head(config, rngs)

    def features(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes a batch.

        Args:
            tokens: int32 [batch, length].
            positions: int32 [batch, length], from 0 within each example.
            segment_ids: int32 [batch, length]; a token attends to the tokens of equal id,
                in a causal encoder to itself and those before it only.
            dropout_key: typed key; None computes without dropout.

        Returns:
            [batch, length, embed] in the compute dtype. Padding holds finite, meaningless values.
        """
        x = self.embeddings(tokens, positions)
        embedding_key = layer_keys = None
        if dropout_key is not None:
            embedding_key, layers_key = jax.random.split(dropout_key)
            layer_keys = jax.random.split(layers_key, self.config.num_layers)
        if embedding_key is not None and self.config.dropout_rate:
            x = dropout(x, seed_words(embedding_key), self.config.dropout_rate)
        x = constrain(x.astype(self.config.dtype), ("batch", "length", "embed"))
        x = self._apply_layers(x, segment_ids, layer_keys)
        return self.final_norm(x) if self.config.norm_placement == "pre" else x

    @jax.named_scope("layers")
    def _apply_layers(
        self, x: jax.Array, segment_ids: jax.Array, layer_keys: jax.Array | None
    ) -> jax.Array:
        graphdef, stacked = nnx.split(self.layers)

        def apply(
            x: jax.Array, layer: tuple[nnx.State, jax.Array | None]
        ) -> tuple[jax.Array, None]:
            state, key = layer
            return nnx.merge(graphdef, state)(x, segment_ids, key), None

        body = rematerialised(apply, self.config.remat_policy)
        unroll = min(self.config.scan_unroll, self.config.num_layers)
        return jax.lax.scan(body, x, (stacked, layer_keys), unroll=unroll)[0]

    def empty_cache(self, rows: int, length: int) -> jax.Array:
        """Zeros [layers, rows, length (rounded up), 2, heads, kv] for keys and values."""
        config = self.config
        length = -(-length // CHUNK) * CHUNK
        shape = (config.num_layers, rows, length, 2, config.num_heads, config.head_dim)
        return jnp.zeros(shape, config.dtype)

    def extend(
        self, tokens: jax.Array, places: jax.Array, cache: jax.Array, first_row: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes tokens that follow those in the cache; for causal encoders.

        Args:
            tokens: int32 [rows, width].
            places: int32 [rows, width], where they stand in their rows, which are their positions.
                What the cache holds of the places before them is read, of others nothing.
            cache: of `empty_cache`, with room for the places.
            first_row: int32 scalar; the rows are this one of the cache and those after it.

        Returns:
            Features [rows, width, embed] in the compute dtype, and the cache with the new tokens.
        """
        # Places that only fill a piece up may lie beyond the last row of the table.
        x = self.embeddings(tokens, jnp.minimum(places, self.config.max_length - 1))
        graphdef, stacked = nnx.split(self.layers)

        def apply(
            carry: tuple[jax.Array, jax.Array], layer: tuple[nnx.State, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            state, number = layer
            module = nnx.merge(graphdef, state)
            return module.extend(carry[0], places, carry[1], number, first_row), None

        layers = (stacked, jnp.arange(self.config.num_layers))
        (x, cache), _ = jax.lax.scan(apply, (x.astype(self.config.dtype), cache), layers)
        return (self.final_norm(x) if self.config.norm_placement == "pre" else x), cache

    def head_features(self, features: jax.Array) -> jax.Array:
        """Transforms features [..., embed] into what the output rows are compared with."""
        return self.head(features)

    def logits(self, features: jax.Array) -> jax.Array:
        """float32 [..., vocab] scores of features [..., embed]."""
        table, bias = self.output_embedding()
        hidden = self.head_features(features)
        scores = jnp.einsum(
            "...e,ve->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        return scores + bias

    def output_embedding(self) -> tuple[jax.Array, jax.Array]:
        """Rows [vocab, embed] and bias [vocab] of the output projection, float32."""
        if self.config.tie_embeddings:
            return self.embeddings.token.embedding[...], self.head.bias[...]
        return self.head.decoder.kernel[...], self.head.bias[...]


def abstract_parameters(config: EncoderConfig) -> Parameters:
    """The tree of parameters as `jax.ShapeDtypeStruct`; allocates nothing."""
    return parameter_trees.shapes(_structure(config))


def logical_axes(config: EncoderConfig) -> Parameters:
    """The tree of parameters with a tuple of logical axis names in place of each array."""
    return parameter_trees.axes(_structure(config))


@functools.lru_cache(maxsize=32)
def _structure(config: EncoderConfig) -> parameter_trees.Structure:
    return parameter_trees.structure_of(lambda: Encoder(config, rngs=nnx.Rngs(0)))


def parameters(encoder: Encoder) -> Parameters:
    """The arrays of an encoder as a tree of dicts; the arrays are shared, not copied."""
    return parameter_trees.parameters(encoder)


def from_parameters(config: EncoderConfig, tree: Parameters) -> Encoder:
    """An encoder that holds the arrays of `tree`; nothing is initialised or copied.

    Args:
        config: shape of the encoder.
        tree: the tree of `abstract_parameters(config)` with arrays (or tracers) as leaves.

    Raises:
        ValueError: when the tree's names or shapes are not those of `config`.
    """
    return parameter_trees.build(_structure(config), tree)


def rounded_kernels(tree: Parameters, dtype: str) -> Parameters:
    """The tree with the kernels of its layers rounded to the compute dtype, as each layer does.

    Differentiated with respect to these, their gradients are of that dtype as well, as the products
    are that make them: 16 bits of all layers, not 32, wait for the end of the backward pass.
    """

    def rounded(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

    if dtype == "float32" or "layers" not in tree:
        return tree
    return {**tree, "layers": jax.tree_util.tree_map_with_path(rounded, tree["layers"])}
