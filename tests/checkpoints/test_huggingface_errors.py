"""Whatever is wrong with a Hugging Face folder ends in one sentence, with nothing damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlm_jax.checkpoints.huggingface import export_folder, import_folder
from dlm_jax.errors import UserError
from dlm_jax.models.config import SIZES, EncoderConfig
from dlm_jax.models.encoder import abstract_parameters

CONFIG = EncoderConfig(
    vocab_size=13,
    embed_dim=8,
    num_layers=2,
    num_heads=2,
    mlp_dim=12,
    max_positions=10,
    position_offset=0,
    type_vocab_size=2,
    pad_id=0,
    family="bert",
)


def random_parameters(config: EncoderConfig):
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype(np.float32),
        abstract_parameters(config),
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with nothing wrong."""
    parameters = random_parameters(CONFIG)
    folder = tmp_path_factory.mktemp("sound") / "model"
    return export_folder(CONFIG, parameters, None, folder)


@pytest.fixture
def folder(sound, tmp_path):
    """A copy of it to break."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text()) | changes
    document = {key: value for key, value in document.items() if value is not Ellipsis}
    path.write_text(json.dumps(document))


def edit_tensors(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "xlm-robertaa"}, ["xlm-robertaa", "did you mean xlm-roberta?"]),
        ({"model_type": "t5"}, ["'t5'", "bert, roberta, xlm-roberta, xlm-roberta-xl"]),
        ({"model_type": ...}, ["model_type=None"]),
        ({"model_type": ["bert"]}, ["model_type=['bert']"]),
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type", "absolute"]),
        ({"is_decoder": "yes"}, ["is_decoder='yes'"]),
        ({"add_cross_attention": True}, ["add_cross_attention=True"]),
        ({"hidden_act": "gelu_new"}, ["hidden_act='gelu_new'", "'gelu'"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"pruned_heads": {"0": [1]}}, ["pruned_heads"]),
        (
            {"hidden_size": ..., "hidden_sizes": 8, "transformers_version": "9.1"},
            ["transformers 9.1", "lacks 'hidden_size'", "did you mean hidden_sizes?"],
        ),
        ({"hidden_size": "eight"}, ["hidden_size='eight'"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers=0"]),
        ({"num_attention_heads": 3}, ["not a multiple"]),
        ({"layer_norm_eps": -1.0}, ["layer_norm_epsilon=-1.0"]),
        ({"pad_token_id": "x"}, ["pad_id='x'"]),
    ],
)
def test_configuration(folder, changes, words):
    edit_config(folder, **changes)
    sentence = refusal(import_folder, folder)
    assert all(word in sentence for word in [str(folder / "config.json"), *words]), sentence


def test_configuration_file(folder):
    (folder / "config.json").write_text('{"model_type": "bert"')
    assert "cannot be read as JSON" in refusal(import_folder, folder)
    (folder / "config.json").write_bytes(b"\xff\xfe")
    assert "cannot be read as JSON" in refusal(import_folder, folder)
    (folder / "config.json").write_text("[]")
    assert "JSON list" in refusal(import_folder, folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(import_folder, folder)
    assert "is not a folder" in refusal(import_folder, folder / "absent")


def test_missing_values_take_the_family_defaults(folder):
    edit_config(folder, layer_norm_eps=..., pad_token_id=..., type_vocab_size=..., hidden_act=...)
    config, _, _ = import_folder(folder)
    assert config == dataclasses.replace(CONFIG, layer_norm_epsilon=1e-12)


@pytest.mark.parametrize("length", [0, 5, 60, 2000, -1])
def test_truncated_weights(folder, length):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    assert f"{weights} is truncated" in refusal(import_folder, folder)


def test_foreign_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "not a safetensors file" in refusal(import_folder, folder)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refusal(import_folder, folder)
    weights.unlink()
    assert "neither model.safetensors nor" in refusal(import_folder, folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    sentence = refusal(import_folder, folder)
    assert "pytorch_model.bin" in sentence and "save_pretrained" in sentence


def test_tensors_that_do_not_fit_the_configuration(folder):
    edit_config(folder, vocab_size=14)
    sentence = refusal(import_folder, folder)
    assert "bert.embeddings.word_embeddings.weight" in sentence
    assert "[13, 8]" in sentence and "[14, 8]" in sentence
    edit_config(folder, vocab_size=13, num_hidden_layers=3)
    assert "no tensor 'bert.encoder.layer.2." in refusal(import_folder, folder)
    edit_config(folder, num_hidden_layers=1)
    sentence = refusal(import_folder, folder)
    assert "'bert.encoder.layer.1." in sentence and "1 layers" in sentence
    edit_config(folder, num_hidden_layers=2, model_type="roberta", pad_token_id=1)
    assert "no tensor 'roberta.embeddings.word_embeddings.weight'" in refusal(import_folder, folder)


def test_incomplete_or_foreign_tensors(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("cls.predictions.transform.dense.bias"))
    assert "no tensor 'cls.predictions.transform.dense.bias'" in refusal(import_folder, folder)

    def distances(tensors):
        tensors["cls.predictions.transform.dense.bias"] = np.zeros(8, np.float32)
        tensors["bert.encoder.layer.0.attention.self.distance_embedding.weight"] = np.zeros((3, 4))

    edit_tensors(folder, distances)
    assert "distance_embedding" in refusal(import_folder, folder)


def test_integers_are_not_weights(folder):
    def quantise(tensors):
        name = "bert.encoder.layer.1.output.dense.weight"
        tensors[name] = tensors[name].astype(np.int8)

    edit_tensors(folder, quantise)
    sentence = refusal(import_folder, folder)
    assert "layer.1.output.dense.weight" in sentence and "I8" in sentence


def test_shards(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    files = {"first.safetensors": names[:9], "second.safetensors": names[9:]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = folder / "model.safetensors.index.json"
    weight_map = {name: file for file, held in files.items() for name in held}
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert import_folder(folder)[2].ignored == ()
    (folder / "second.safetensors").rename(folder.parent / "second.safetensors")
    assert "'second.safetensors'" in refusal(import_folder, folder)
    index.write_text(json.dumps({"weight_map": {"a": "../second.safetensors"}}))
    assert "'../second.safetensors'" in refusal(import_folder, folder)
    for content in ("{}", "[]", "{", '{"weight_map": {"a": 3}}'):
        index.write_text(content)
        assert "not an index" in refusal(import_folder, folder)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"position_offset": 2, "max_positions": 12}, "position_offset=2"),
        ({"norm_placement": "pre"}, "norm_placement='pre'"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"family": "roberta"}, "position_offset=0"),
    ],
)
def test_export_refuses_what_the_family_cannot_compute(changes, word, tmp_path):
    config = dataclasses.replace(CONFIG, **changes)
    sentence = refusal(export_folder, config, random_parameters(config), None, tmp_path / "out")
    assert word in sentence
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_foreign_parameters(tmp_path):
    with pytest.raises(ValueError, match="shape"):
        export_folder(SIZES["test"], random_parameters(CONFIG), None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_export_never_touches_what_is_there(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    sentence = refusal(export_folder, CONFIG, random_parameters(CONFIG), None, folder)
    assert str(folder) in sentence
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert refusal(
        export_folder, CONFIG, random_parameters(CONFIG), None, folder / "config.json" / "below"
    )
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


class FailingVocabulary:
    """Fills the disk while it is saved."""

    size, bos_id, eos_id = 13, 0, 1

    def save(self, directory: Path) -> None:
        (directory / "half").write_text("half")
        raise OSError(28, "No space left on device")


def test_failed_export_leaves_nothing(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    sentence = refusal(
        export_folder, CONFIG, random_parameters(CONFIG), FailingVocabulary(), target
    )
    assert "No space left on device" in sentence
    assert list(tmp_path.rglob("*")) == [target]


def test_vocabulary_larger_than_the_table(tmp_path):
    vocabulary = FailingVocabulary()
    vocabulary.size = 14
    sentence = refusal(
        export_folder, CONFIG, random_parameters(CONFIG), vocabulary, tmp_path / "out"
    )
    assert "14 pieces" in sentence and "13 rows" in sentence
