"""`config.json` of a Hugging Face encoder, read into an `EncoderConfig` and written from one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlm_jax.checkpoints.hf_mapping import FAMILIES
from dlm_jax.errors import UserError, nearest
from dlm_jax.models.config import EncoderConfig

_SHAPE_KEYS = {
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
_OTHER_KEYS = {
    "type_vocab_size": "type_vocab_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
    "tie_embeddings": "tie_word_embeddings",
    "pad_id": "pad_token_id",
}
# What a key must hold (or lack) for our encoder to compute the same function.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "quantization_config": (),
}


def read_config(path: Path) -> EncoderConfig:
    """Reads a Hugging Face `config.json`.

    Raises:
        UserError: when the file is missing, is not a JSON object, or describes a model that is not
            one of the supported families with absolute positions and exact GELU.
    """
    document = _read_object(path)
    model_type = document.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"{path}: model_type={model_type!r} is not supported; it must be one of "
            f"{', '.join(FAMILIES)}{nearest(str(model_type), FAMILIES)}."
        )
    for key, allowed in _REQUIRED_VALUES.items():
        value = document.get(key)
        if value is not None and value not in allowed:
            only = f"; only {allowed[0]!r} is" if allowed else ""
            raise UserError(f"{path}: {key}={value!r} is not supported{only}.")
    family = FAMILIES[model_type]
    fields: dict[str, Any] = {
        "type_vocab_size": family.type_vocab_size,
        "layer_norm_epsilon": family.layer_norm_epsilon,
        "pad_id": family.pad_id,
    }
    fields |= {field: _shape_value(document, key, path) for field, key in _SHAPE_KEYS.items()}
    fields |= {
        field: document[key] for field, key in _OTHER_KEYS.items() if document.get(key) is not None
    }
    fields["norm_placement"] = family.norm_placement
    if document.get("is_decoder"):
        fields["attention_pattern"] = "causal"
    if isinstance(fields["pad_id"], int):
        fields["position_offset"] = fields["pad_id"] + 1 if family.positions_after_padding else 0
    try:
        return EncoderConfig(family=model_type, **fields)
    except UserError as error:
        raise UserError(f"{path} does not describe an encoder: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} has no config.json, so it is not a Hugging Face model folder."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} holds a JSON {type(document).__name__}, not an object.")
    return document


def _shape_value(document: dict[str, Any], key: str, path: Path) -> int:
    value = document.get(key)
    if value is None:
        version = document.get("transformers_version")
        by = f" (written by transformers {version})" if version else ""
        raise UserError(f"{path}{by} lacks {key!r}{nearest(key, document)}.")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{path}: {key}={value!r} is not a positive whole number.")
    return value


def config_document(config: EncoderConfig, vocabulary: Any = None) -> dict[str, Any]:
    """The `config.json` of an encoder, as transformers reads it.

    Args:
        config: the encoder.
        vocabulary: where `bos_id` and `eos_id` are taken from; without one they are left out.

    Raises:
        UserError: when no class of the family computes this encoder.
    """
    family = FAMILIES[config.family]
    position_offset = config.pad_id + 1 if family.positions_after_padding else 0
    for field, required in (
        ("norm_placement", family.norm_placement),
        ("activation", "gelu"),
        ("position_offset", position_offset),
    ):
        value = getattr(config, field)
        if value != required:
            raise UserError(
                f"{field}={value!r} cannot be exported: the Hugging Face family "
                f"{config.family!r} has {required!r}."
            )
    document = {
        "architectures": [family.causal_architecture if config.causal else family.architecture],
        "model_type": config.family,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        # What makes the attention of these families causal.
        "is_decoder": config.causal,
        "torch_dtype": "float32",
    }
    document |= {key: getattr(config, field) for field, key in (_SHAPE_KEYS | _OTHER_KEYS).items()}
    if vocabulary is not None:
        document |= {"bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id}
    return document
