"""The correspondence of tensor names and layouts between Hugging Face encoders and our parameters.

One table of rows, read forwards to import and backwards to export. A row ties one Hugging Face
tensor to the slot it fills in our tree: a whole parameter, one layer of a stacked parameter, and
for queries, keys and values one third of the fused projection.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from dlm_jax.models.config import EncoderConfig

_LAYER = "encoder.layer.{layer}."
_QKV = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class Row:
    """One Hugging Face tensor and the slot of our tree that it fills.

    Attributes:
        parameter: path in our tree, parts joined by `/`; under `layers/` axis 0 is the layer.
        tensor: Hugging Face name below the model's prefix, with `{layer}` in stacked parameters.
        input_axes: leading axes of the slot that a torch `Linear` contracts: its weight
            [outputs, inputs] is our kernel transposed. 0 for vectors, None for tables kept as is.
        part: index in the fused axis [..., 3, heads, kv] of queries, keys and values.
        in_head: whether `tensor` is the full name of a tensor of the prediction head.
        preferred: full name of another copy of the tensor, the one that counts where it is present.
        fallback: full name under which a tied tensor is found when `tensor` is absent.
    """

    parameter: str
    tensor: str
    input_axes: int | None = 0
    part: int | None = None
    in_head: bool = False
    preferred: str | None = None
    fallback: str | None = None

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading layer axis, with one tensor for each layer."""
        return "{layer}" in self.tensor

    def name(self, prefix: str, layer: int | None) -> str:
        """Full Hugging Face name of the tensor of one layer."""
        tensor = self.tensor.format(layer=layer) if self.stacked else self.tensor
        return tensor if self.in_head else prefix + tensor

    def slot(self, parameter: np.ndarray) -> np.ndarray:
        """View of the part of one layer's parameter that the tensor fills."""
        return parameter if self.part is None else parameter[..., self.part, :, :]

    def tensor_shape(self, slot_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the Hugging Face tensor that fills a slot of the given shape."""
        if self.input_axes is None:
            return slot_shape
        if self.input_axes == 0:
            return (math.prod(slot_shape),)
        outputs, inputs = slot_shape[self.input_axes :], slot_shape[: self.input_axes]
        return (math.prod(outputs), math.prod(inputs))

    def spans(self, slot_shape: tuple[int, ...], part: Sequence[range]) -> tuple[slice, ...]:
        """Where in the tensor a part of the slot lies.

        It is exact in the first of the axes that are joined in one of the tensor, and takes the
        whole of the others; `to_part` cuts those.

        Args:
            slot_shape: of the whole slot.
            part: the part, a range along each axis of the slot.
        """
        if self.input_axes is None:
            return tuple(slice(along.start, along.stop) for along in part)
        cut = self.input_axes
        joined = [(slot_shape[cut:], part[cut:]), (slot_shape[:cut], part[:cut])]
        spans = []
        for sizes, ranges in joined[: 2 if cut else 1]:
            each = math.prod(sizes[1:])
            spans.append(slice(ranges[0].start * each, ranges[0].stop * each))
        return tuple(spans)

    def to_part(
        self, tensor: np.ndarray, slot_shape: tuple[int, ...], part: Sequence[range]
    ) -> np.ndarray:
        """Lays the `spans` of a Hugging Face tensor out as that part of our slot."""
        if self.input_axes is None:
            return tensor
        firsts = {0, self.input_axes}
        shape = [len(r) if i in firsts else slot_shape[i] for i, r in enumerate(part)]
        inside = [
            slice(None) if i in firsts else slice(r.start, r.stop) for i, r in enumerate(part)
        ]
        return (tensor.T if self.input_axes else tensor).reshape(shape)[tuple(inside)]

    def to_tensor(self, slot: np.ndarray) -> np.ndarray:
        """Lays our slot out as the Hugging Face tensor; the inverse of `to_part` of all of it."""
        shape = self.tensor_shape(slot.shape)
        return slot.reshape(shape[::-1]).T if self.input_axes else slot.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Family:
    """What the names and the defaults of one Hugging Face model type have in common.

    Attributes:
        prefix: name of the encoder inside a model with a head; absent in a bare encoder.
        head: prefix of the prediction head.
        transform: name of the head's dense layer below `head`.
        transform_norm: name of the head's layer norm below `head`.
        norm_placement: 'post' or 'pre'.
        architecture: class name written in `config.json` on export.
        causal_architecture: the same for a causal model; both classes hold the same tensors.
        layer_norm_epsilon: what a missing `layer_norm_eps` means.
        type_vocab_size: what a missing `type_vocab_size` means.
        pad_id: what a missing `pad_token_id` means.
        positions_after_padding: whether positions start at padding id + 1 instead of at 0.
    """

    prefix: str
    head: str
    transform: str
    transform_norm: str
    norm_placement: str
    architecture: str
    causal_architecture: str
    layer_norm_epsilon: float
    type_vocab_size: int
    pad_id: int
    positions_after_padding: bool


_BERT = Family(
    prefix="bert.",
    head="cls.predictions.",
    transform="transform.dense",
    transform_norm="transform.LayerNorm",
    norm_placement="post",
    architecture="BertForMaskedLM",
    causal_architecture="BertLMHeadModel",
    layer_norm_epsilon=1e-12,
    type_vocab_size=2,
    pad_id=0,
    positions_after_padding=False,
)
_ROBERTA = Family(
    prefix="roberta.",
    head="lm_head.",
    transform="dense",
    transform_norm="layer_norm",
    norm_placement="post",
    architecture="RobertaForMaskedLM",
    causal_architecture="RobertaForCausalLM",
    layer_norm_epsilon=1e-12,
    type_vocab_size=2,
    pad_id=1,
    positions_after_padding=True,
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": dataclasses.replace(
        _ROBERTA,
        architecture="XLMRobertaForMaskedLM",
        causal_architecture="XLMRobertaForCausalLM",
    ),
    "xlm-roberta-xl": dataclasses.replace(
        _ROBERTA,
        architecture="XLMRobertaXLForMaskedLM",
        causal_architecture="XLMRobertaXLForCausalLM",
        norm_placement="pre",
        layer_norm_epsilon=1e-5,
        type_vocab_size=1,
    ),
}


def _norm(parameter: str, tensor: str, in_head: bool = False) -> tuple[Row, Row]:
    return (
        Row(f"{parameter}/scale", f"{tensor}.weight", in_head=in_head),
        Row(f"{parameter}/bias", f"{tensor}.bias", in_head=in_head),
    )


def _linear(
    parameter: str,
    tensor: str,
    input_axes: int = 1,
    part: int | None = None,
    in_head: bool = False,
) -> tuple[Row, Row]:
    return (
        Row(f"{parameter}/kernel", f"{tensor}.weight", input_axes, part, in_head),
        Row(f"{parameter}/bias", f"{tensor}.bias", 0, part, in_head),
    )


_EMBEDDINGS = (
    Row("embeddings/position/embedding", "embeddings.position_embeddings.weight", None),
    Row("embeddings/token_type/embedding", "embeddings.token_type_embeddings.weight", None),
)
_LAYERS = (
    *(
        row
        for part, projection in enumerate(_QKV)
        for row in _linear("layers/attention/qkv", f"{_LAYER}attention.self.{projection}", 1, part)
    ),
    *_linear("layers/attention/out", f"{_LAYER}attention.output.dense", 2),
    *_linear("layers/mlp/up", f"{_LAYER}intermediate.dense"),
    *_linear("layers/mlp/down", f"{_LAYER}output.dense"),
)
_NORMS = {
    "post": (
        *_norm("embeddings/norm", "embeddings.LayerNorm"),
        *_norm("layers/attention_norm", f"{_LAYER}attention.output.LayerNorm"),
        *_norm("layers/mlp_norm", f"{_LAYER}output.LayerNorm"),
    ),
    "pre": (
        *_norm("layers/attention_norm", f"{_LAYER}attention.self_attn_layer_norm"),
        *_norm("layers/mlp_norm", f"{_LAYER}LayerNorm"),
        *_norm("final_norm", "encoder.LayerNorm"),
    ),
}


def table(config: EncoderConfig) -> Iterator[Row]:
    """Yields the rows of a configuration: every parameter of its tree is filled exactly once."""
    family = FAMILIES[config.family]
    decoder = f"{family.head}decoder.weight"
    yield Row(
        "embeddings/token/embedding",
        "embeddings.word_embeddings.weight",
        None,
        fallback=decoder if config.tie_embeddings else None,
    )
    yield from (row for row in _EMBEDDINGS if config.type_vocab_size or "type" not in row.parameter)
    yield from _NORMS[config.norm_placement]
    yield from _LAYERS
    yield from _linear("head/transform", family.head + family.transform, in_head=True)
    yield from _norm("head/norm", family.head + family.transform_norm, in_head=True)
    # transformers adds the decoder's bias and keeps the head's own only as its twin.
    yield Row(
        "head/bias",
        f"{family.head}bias",
        in_head=True,
        preferred=f"{family.head}decoder.bias",
    )
    if not config.tie_embeddings:
        yield Row("head/decoder/kernel", decoder, None, in_head=True)


def canonical(name: str) -> str:
    """Today's name of a tensor: BERT checkpoints from TensorFlow call the norms gamma and beta."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith("LayerNorm" + old):
            return name.removesuffix(old) + new
    return name
