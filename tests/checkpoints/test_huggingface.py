"""Import and export against transformers: equal logits, nothing lost or made up in silence."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlm_jax.checkpoints.huggingface import export_folder, import_folder
from dlm_jax.models.config import SIZES, EncoderConfig
from dlm_jax.models.encoder import abstract_parameters, from_parameters

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 61
LENGTH = 11
TOLERANCE = 1e-5
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}
CLASSES = {
    "bert": ("BertConfig", "BertForMaskedLM"),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM"),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaForMaskedLM"),
    "xlm-roberta-xl": ("XLMRobertaXLConfig", "XLMRobertaXLForMaskedLM"),
}

CAUSAL_CLASSES = {
    "bert": "BertLMHeadModel",
    "roberta": "RobertaForCausalLM",
    "xlm-roberta": "XLMRobertaForCausalLM",
    "xlm-roberta-xl": "XLMRobertaXLForCausalLM",
}


def random_model(family: str, **overrides):
    """A model of transformers with every parameter drawn, biases and norms included."""
    config_name, model_name = CLASSES[family]
    config = getattr(transformers, config_name)(**(SHAPE | overrides))
    torch.manual_seed(len(family))
    model = getattr(transformers, model_name)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(mean + 0.2 * torch.randn(parameter.shape))
    return model


def padded_batch(pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [3, 11] and mask [3, 11] of rows of 11, 7 and 1 tokens."""
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, (3, LENGTH))
    mask = np.arange(LENGTH)[None, :] < np.array([[LENGTH], [7], [1]])
    return np.where(mask, tokens, pad_id), mask


def their_logits(model, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(np.int64))
        )
    return output.logits.numpy()


def our_logits(
    config: EncoderConfig, parameters, tokens: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    encoder = from_parameters(config, jax.tree.map(jnp.asarray, parameters))
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return np.asarray(_logits(encoder, tokens.astype(np.int32), positions, mask.astype(np.int32)))


@jax.jit
def _logits(encoder, tokens, positions, segment_ids):
    return encoder.logits(encoder.features(tokens, positions, segment_ids))


def assert_trees_equal(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, left, right)))


@pytest.fixture(scope="module", params=sorted(CLASSES))
def saved(request, tmp_path_factory):
    """(family, model, folder that transformers wrote, imported config, imported parameters)."""
    model = random_model(request.param)
    folder = tmp_path_factory.mktemp("saved") / request.param
    model.save_pretrained(folder)
    config, parameters, report = import_folder(folder)
    assert report.initialised == () and report.ignored == ()
    return request.param, model, folder, config, parameters


def test_logits_equal_transformers_on_padded_rows(saved):
    family, model, _, config, parameters = saved
    assert config.family == family
    tokens, mask = padded_batch(config.pad_id)
    theirs, ours = their_logits(model, tokens, mask), our_logits(config, parameters, tokens, mask)
    assert np.abs(theirs[mask]).max() > 0.5
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=TOLERANCE, rtol=0)


def test_a_causal_model_is_a_decoder_in_transformers_and_comes_back(saved, tmp_path):
    family, _, _, config, parameters = saved
    causal = dataclasses.replace(config, attention_pattern="causal")
    exported = export_folder(causal, parameters, None, tmp_path / "causal")
    written = json.loads((exported / "config.json").read_text())
    model_class = getattr(transformers, CAUSAL_CLASSES[family])
    assert written["architectures"] == [CAUSAL_CLASSES[family]] and written["is_decoder"]
    model, report = model_class.from_pretrained(exported, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens, mask = padded_batch(config.pad_id)
    theirs = their_logits(model.eval(), tokens, mask)
    np.testing.assert_allclose(
        our_logits(causal, parameters, tokens, mask)[mask], theirs[mask], atol=TOLERANCE, rtol=0
    )
    both_sides = our_logits(config, parameters, tokens, mask)
    assert np.abs(both_sides[mask] - theirs[mask]).max() > 0.1
    again, same, _ = import_folder(exported)
    assert again == causal
    assert_trees_equal(same, parameters)


def test_parameter_count_is_that_of_transformers(saved):
    _, model, _, config, parameters = saved
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert count == config.num_parameters() == model.num_parameters()
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters)} == {np.dtype(np.float32)}


def test_export_loads_in_transformers_with_every_tensor_and_equal_logits(saved, tmp_path):
    family, model, folder, config, parameters = saved
    exported = export_folder(config, parameters, None, tmp_path / "exported")
    original = load_file(folder / "model.safetensors")
    written = load_file(exported / "model.safetensors")
    assert original.keys() == written.keys()
    assert all(np.array_equal(original[name], written[name]) for name in original)
    loaded, information = getattr(transformers, CLASSES[family][1]).from_pretrained(
        exported, output_loading_info=True
    )
    assert not information["missing_keys"] and not information["unexpected_keys"]
    tokens, mask = padded_batch(config.pad_id)
    np.testing.assert_array_equal(
        their_logits(loaded.eval(), tokens, mask), their_logits(model, tokens, mask)
    )


def test_round_trip_is_bit_exact(saved, tmp_path):
    *_, config, parameters = saved
    again, tree, report = import_folder(
        export_folder(config, parameters, None, tmp_path / "exported")
    )
    assert again == config and report.initialised == () and report.ignored == ()
    assert_trees_equal(tree, parameters)


def test_jax_arrays_export_as_numpy_ones(saved, tmp_path):
    *_, config, parameters = saved
    export_folder(config, parameters, None, tmp_path / "numpy")
    export_folder(config, jax.tree.map(jnp.asarray, parameters), None, tmp_path / "jax")
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("numpy", "jax")]
    assert contents[0] == contents[1]


def test_untied_decoder_and_its_own_bias(tmp_path):
    model = random_model("bert", tie_word_embeddings=False)
    with torch.no_grad():
        model.cls.predictions.decoder.bias.copy_(torch.randn(VOCABULARY))
    model.save_pretrained(tmp_path / "saved")
    config, parameters, report = import_folder(tmp_path / "saved")
    assert not config.tie_embeddings and report.ignored == ("cls.predictions.bias",)
    tokens, mask = padded_batch(config.pad_id)
    theirs = their_logits(model, tokens, mask)
    ours = our_logits(config, parameters, tokens, mask)
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=TOLERANCE, rtol=0)
    exported = export_folder(config, parameters, None, tmp_path / "exported")
    loaded = transformers.BertForMaskedLM.from_pretrained(exported).eval()
    np.testing.assert_array_equal(their_logits(loaded, tokens, mask), theirs)


def resaved(folder: Path, target: Path, change) -> Path:
    """Copies a folder with its dict of tensors passed through `change`."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), target / "model.safetensors")
    return target


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert") / "model"
    random_model("bert").save_pretrained(folder)
    return folder


def test_two_different_tables_are_untied_in_spite_of_the_configuration(bert, tmp_path):
    table = np.random.default_rng(1).normal(size=(VOCABULARY, 24)).astype(np.float32)
    folder = resaved(
        bert, tmp_path / "two", lambda tensors: tensors | {"cls.predictions.decoder.weight": table}
    )
    config, parameters, _ = import_folder(folder)
    assert not config.tie_embeddings
    np.testing.assert_array_equal(parameters["head"]["decoder"]["kernel"], table)


def test_shared_tensors_are_found_under_either_name(bert, tmp_path):
    _, expected, _ = import_folder(bert)

    def swap(tensors):
        tensors["cls.predictions.decoder.weight"] = tensors.pop(
            "bert.embeddings.word_embeddings.weight"
        )
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
        return tensors

    config, swapped, _ = import_folder(resaved(bert, tmp_path / "swapped", swap))
    assert config.tie_embeddings
    assert_trees_equal(swapped, expected)

    def double(tensors):
        tensors["cls.predictions.decoder.weight"] = tensors[
            "bert.embeddings.word_embeddings.weight"
        ].copy()
        return tensors

    config, doubled, report = import_folder(resaved(bert, tmp_path / "doubled", double))
    assert config.tie_embeddings and report.ignored == ("cls.predictions.decoder.weight",)
    assert_trees_equal(doubled, expected)


def test_gamma_and_beta_are_the_norms_of_old(bert, tmp_path):
    def age(tensors):
        return {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in tensors.items()
        }

    folder = resaved(bert, tmp_path / "old", age)
    assert any(name.endswith(".gamma") for name in load_file(folder / "model.safetensors"))
    _, old, report = import_folder(folder)
    assert report.initialised == () and report.ignored == ()
    assert_trees_equal(old, import_folder(bert)[1])


def test_bare_encoder_gets_a_head_and_says_so(tmp_path):
    config = transformers.BertConfig(**SHAPE)
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    model.save_pretrained(tmp_path / "bare")
    ours, parameters, report = import_folder(tmp_path / "bare", seed=3)
    assert report.initialised == tuple(
        f"head/{name}"
        for name in ("transform/kernel", "transform/bias", "norm/scale", "norm/bias", "bias")
    )
    assert report.ignored == ("pooler.dense.bias", "pooler.dense.weight")
    assert "head/bias" in str(report) and "pooler.dense.weight" in str(report)
    tokens, mask = padded_batch(0)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), torch.tensor(mask.astype(np.int64)))
    encoder = from_parameters(ours, jax.tree.map(jnp.asarray, parameters))
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    features = encoder.features(
        jnp.asarray(tokens, jnp.int32), jnp.asarray(positions), jnp.asarray(mask, jnp.int32)
    )
    np.testing.assert_allclose(
        np.asarray(features)[mask], theirs.last_hidden_state.numpy()[mask], atol=TOLERANCE, rtol=0
    )
    again, other = (import_folder(tmp_path / "bare", seed=seed)[1] for seed in (3, 4))
    assert_trees_equal(again, parameters)
    kernels = [tree["head"]["transform"]["kernel"] for tree in (parameters, other)]
    assert not np.array_equal(*kernels) and 0.015 < kernels[0].std() < 0.025
    np.testing.assert_array_equal(parameters["head"]["norm"]["scale"], 1.0)


def test_pretraining_heads_and_buffers_are_ignored_by_name(tmp_path):
    torch.manual_seed(0)
    transformers.BertForPreTraining(transformers.BertConfig(**SHAPE)).save_pretrained(
        tmp_path / "saved"
    )
    folder = resaved(
        tmp_path / "saved",
        tmp_path / "buffers",
        lambda tensors: tensors | {"bert.embeddings.position_ids": np.arange(20)[None]},
    )
    _, _, report = import_folder(folder)
    assert report.initialised == ()
    assert report.ignored == (
        "bert.embeddings.position_ids",
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "cls.seq_relationship.bias",
        "cls.seq_relationship.weight",
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32_without_further_rounding(dtype, tmp_path):
    model = random_model("xlm-roberta").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "half")
    _, parameters, _ = import_folder(tmp_path / "half")
    table = parameters["embeddings"]["token"]["embedding"]
    assert table.dtype == np.float32
    expected = model.roberta.embeddings.word_embeddings.weight.detach().float().numpy()
    np.testing.assert_array_equal(table, expected)


def test_sharded_index(saved, tmp_path):
    _, model, _, config, parameters = saved
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    again, tree, _ = import_folder(tmp_path / "shards")
    assert again == config
    assert_trees_equal(tree, parameters)


def test_no_token_types_exports_as_a_row_of_zeros(tmp_path):
    config = dataclasses.replace(SIZES["test"], type_vocab_size=0, num_layers=1)
    generator = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda leaf: generator.normal(0, 0.1, leaf.shape).astype(np.float32),
        abstract_parameters(config),
    )
    exported = export_folder(config, parameters, None, tmp_path / "exported")
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(exported).eval()
    tokens, mask = padded_batch(config.pad_id)
    np.testing.assert_allclose(
        our_logits(config, parameters, tokens, mask)[mask],
        their_logits(model, tokens, mask)[mask],
        atol=TOLERANCE,
        rtol=0,
    )


class Pieces:
    """As much of a vocabulary as an export needs."""

    kind, bos_id, eos_id = "sentencepiece", 0, 2

    def __init__(self, size: int) -> None:
        self.size = size

    def save(self, directory: Path) -> None:
        (directory / "vocabulary.txt").write_text(f"{self.size} pieces")


def test_vocabulary_travels_with_the_weights(saved, tmp_path):
    *_, config, parameters = saved
    folder = export_folder(config, parameters, Pieces(VOCABULARY), tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "vocabulary.txt",
    ]
    document = json.loads((folder / "config.json").read_text())
    assert (document["bos_token_id"], document["eos_token_id"]) == (0, 2)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["b"]
