"""The shape of an encoder: one frozen dataclass, its named sizes, and what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from dlm_jax.errors import UserError, nearest

FAMILIES = ("bert", "roberta", "xlm-roberta", "xlm-roberta-xl")
NORM_PLACEMENTS = ("post", "pre")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
COMPUTE_DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "dots", "full")
# Values of a layer that a remat policy can keep by name: the outputs of the products with weights,
# and what attention's backward pass starts from.
LAYER_VALUES = (
    "qkv",
    "attention_context",
    "attention_normaliser",
    "attention_out",
    "mlp_up",
    "mlp_down",
)
ATTENTIONS = ("auto", "xla", "splash", "dot_product")
ATTENTION_PATTERNS = ("bidirectional", "causal")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape and numerics of a Transformer encoder with a masked-LM head.

    Attributes:
        vocab_size: rows of the token table, and of the output projection.
        embed_dim: width of the residual stream; a multiple of `num_heads`.
        num_layers: Transformer layers.
        num_heads: attention heads.
        mlp_dim: hidden width of the feed-forward block.
        max_positions: rows of the position table, including the `position_offset` unused ones.
        position_offset: row of the table used by position 0 (2 in the RoBERTa family, 0 in BERT).
        type_vocab_size: rows of the token-type table, of which only row 0 is read; 0 for no table.
        norm_placement: 'post' (BERT, XLM-R: norm after each residual sum, and on the embeddings)
            or 'pre' (XLM-R XL and XXL: norm before each block, and after the last one).
        layer_norm_epsilon: added to the variance inside every layer norm.
        dropout_rate: probability of dropping an element of the embeddings and of block outputs.
        attention_dropout_rate: probability of dropping an attention probability.
        activation: 'gelu' (exact, by erf), 'gelu_tanh' or 'relu'.
        tie_embeddings: whether the output projection is the token table.
        pad_id: id that the vocabulary pads with; the encoder itself reads `segment_ids` only.
        dtype: dtype of activations and matrix products, 'float32' or 'bfloat16'; parameters,
            norms, softmax, logits and losses are always float32.
        remat_policy: what the backward pass keeps of each layer: 'none' keeps all it needs,
            'minimal' the outputs of the products with weights and of attention, 'dots' the former
            alone, 'full' only the layer's input; or a list of names of `LAYER_VALUES` to keep.
        attention: 'xla', 'splash' (TPU kernel, rows of a multiple of 128 tokens), 'dot_product'
            (JAX's own, cuDNN on GPUs) or 'auto', the fused kernel of the platform that is compiled
            for. Fused kernels have no dropout: with `attention_dropout_rate` above 0, training
            under 'auto' uses XLA.
        attention_pattern: which tokens of its segment a token sees: 'bidirectional', all of them,
            as denoisers do, or 'causal', itself and those before it, as autoregressive models do.
        scan_unroll: layers in one iteration of the layer loop; `num_layers` leaves no loop, which
            is faster on CPUs and takes longer to compile.
        family: Hugging Face family whose names and defaults the weights follow.

    Raises:
        UserError: when a value is out of range or not one of the known names.
    """

    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    max_positions: int = 514
    position_offset: int = 2
    type_vocab_size: int = 1
    norm_placement: str = "post"
    layer_norm_epsilon: float = 1e-5
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    activation: str = "gelu"
    tie_embeddings: bool = True
    pad_id: int = 1
    dtype: str = "float32"
    remat_policy: str | tuple[str, ...] = "none"
    attention: str = "auto"
    attention_pattern: str = "bidirectional"
    scan_unroll: int = 1
    family: str = "xlm-roberta"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "embed_dim",
            "num_layers",
            "num_heads",
            "mlp_dim",
            "scan_unroll",
        ):
            self._require_integer(name, 1)
        for name in ("position_offset", "type_vocab_size", "pad_id"):
            self._require_integer(name, 0)
        self._require_integer("max_positions", self.position_offset + 1)
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"EncoderConfig.embed_dim={self.embed_dim} is not a multiple of "
                f"num_heads={self.num_heads}."
            )
        for name in ("dropout_rate", "attention_dropout_rate"):
            rate = getattr(self, name)
            if not _is_number(rate) or not 0.0 <= rate < 1.0:
                raise UserError(f"EncoderConfig.{name}={rate!r} is not a probability in [0, 1).")
        if not _is_number(self.layer_norm_epsilon) or self.layer_norm_epsilon <= 0:
            raise UserError(
                f"EncoderConfig.layer_norm_epsilon={self.layer_norm_epsilon!r} is not positive."
            )
        if not isinstance(self.tie_embeddings, bool):
            raise UserError(
                f"EncoderConfig.tie_embeddings={self.tie_embeddings!r} is neither True nor False."
            )
        self._require_name("norm_placement", NORM_PLACEMENTS)
        self._require_name("activation", ACTIVATIONS)
        self._require_name("dtype", COMPUTE_DTYPES)
        self._require_name("attention", ATTENTIONS)
        self._require_name("attention_pattern", ATTENTION_PATTERNS)
        if self.attention in ("splash", "dot_product") and self.attention_dropout_rate:
            raise UserError(
                f"EncoderConfig.attention={self.attention!r} has no dropout, but "
                f"attention_dropout_rate={self.attention_dropout_rate!r} is not 0."
            )
        self._check_remat_policy()
        self._require_name("family", FAMILIES)

    def _require_integer(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise UserError(
                f"EncoderConfig.{name}={value!r} is not a whole number of at least {minimum}."
            )

    def _require_name(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in known:
            raise UserError(
                f"EncoderConfig.{name}={value!r} is none of {', '.join(known)}"
                f"{nearest(str(value), known)}."
            )

    def _check_remat_policy(self) -> None:
        if isinstance(self.remat_policy, str):
            self._require_name("remat_policy", REMAT_POLICIES)
            return
        for name in self.remat_policy:
            if name not in LAYER_VALUES:
                raise UserError(
                    f"EncoderConfig.remat_policy names {name!r}, which is none of "
                    f"{', '.join(LAYER_VALUES)}{nearest(str(name), LAYER_VALUES)}."
                )
        # A list, as gin and JSON write it, would make the config unhashable.
        object.__setattr__(self, "remat_policy", tuple(self.remat_policy))

    @property
    def causal(self) -> bool:
        """Whether no token sees what follows it."""
        return self.attention_pattern == "causal"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def max_length(self) -> int:
        """Longest example in tokens: the rows of the position table that tokens may use."""
        return self.max_positions - self.position_offset

    def num_parameters(self) -> int:
        """Number of scalar parameters, a tied output projection counted once."""
        norm = 2 * self.embed_dim
        attention = 4 * self.embed_dim * (self.embed_dim + 1)
        mlp = 2 * self.embed_dim * self.mlp_dim + self.mlp_dim + self.embed_dim
        tables = (self.vocab_size + self.max_positions + self.type_vocab_size) * self.embed_dim
        transform = self.embed_dim * (self.embed_dim + 1)
        decoder = 0 if self.tie_embeddings else self.vocab_size * self.embed_dim
        # One norm outside the layers either way: on the embeddings (post) or at the end (pre).
        return (
            tables
            + norm
            + self.num_layers * (attention + mlp + 2 * norm)
            + transform
            + norm
            + decoder
            + self.vocab_size
        )

    def flops_per_token(self, length: int, *, head_fraction: float = 1.0) -> float:
        """Forward floating-point operations for each token of a row of `length` tokens.

        Matrix products only, a multiply-add counted as two. Causal attention is counted in full, as
        XLA computes it. A training step costs three times as much (forward, and two backward
        products for each forward one).

        Args:
            length: tokens in the row that each token attends to.
            head_fraction: share of the positions that the masked-LM head projects.
        """
        return (
            self.layer_flops_per_token(length) * self.num_layers
            + head_fraction * self.head_flops_per_token()
        )

    def layer_flops_per_token(self, length: int) -> float:
        """Forward floating-point operations of one layer for each token of a row of `length`."""
        projections = 2.0 * (4 * self.embed_dim**2 + 2 * self.embed_dim * self.mlp_dim)
        scores_and_values = 4.0 * length * self.embed_dim
        return projections + scores_and_values

    def head_flops_per_token(self) -> float:
        """Forward floating-point operations of the head for each projected position."""
        return 2.0 * self.embed_dim * (self.embed_dim + self.vocab_size)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _sizes() -> dict[str, EncoderConfig]:
    base = EncoderConfig(
        vocab_size=250002, embed_dim=768, num_layers=12, num_heads=12, mlp_dim=3072
    )
    extra_large = EncoderConfig(
        vocab_size=250880,
        embed_dim=2560,
        num_layers=36,
        num_heads=32,
        mlp_dim=10240,
        norm_placement="pre",
        family="xlm-roberta-xl",
    )
    return {
        "test": EncoderConfig(
            vocab_size=96, embed_dim=32, num_layers=2, num_heads=2, mlp_dim=64, max_positions=66
        ),
        # BERT-tiny (Turc et al. 2019).
        "tiny": EncoderConfig(
            vocab_size=30522,
            embed_dim=128,
            num_layers=2,
            num_heads=2,
            mlp_dim=512,
            max_positions=512,
            position_offset=0,
            type_vocab_size=2,
            layer_norm_epsilon=1e-12,
            pad_id=0,
            family="bert",
        ),
        # XLM-R (Conneau et al. 2020) and XLM-R XL and XXL (Goyal et al. 2021).
        "base": base,
        "large": dataclasses.replace(
            base, embed_dim=1024, num_layers=24, num_heads=16, mlp_dim=4096
        ),
        "xl": extra_large,
        "xxl": dataclasses.replace(extra_large, embed_dim=4096, num_layers=48, mlp_dim=16384),
    }


SIZES: Mapping[str, EncoderConfig] = MappingProxyType(_sizes())
