"""A run folder describes its model, and says in a sentence when it does not."""

from __future__ import annotations

import json

import pytest

from dlm_jax.checkpoints.run_folder import FORMAT, ModelDescription, RunFolder
from dlm_jax.data.vocabularies import ByteVocabulary, load_vocabulary
from dlm_jax.errors import UserError
from dlm_jax.models.config import EncoderConfig


@pytest.fixture
def folder(tmp_path):
    config = EncoderConfig(vocab_size=300, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16)
    run = RunFolder(tmp_path / "run")
    run.describe(ModelDescription(config, task="a_v1.b", length=64), ByteVocabulary())
    return run


def _edit(run, change):
    file = run.path / "model.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def test_round_trip(folder):
    description = folder.description()
    assert description.config.embed_dim == 8
    assert (description.length, description.task) == (64, "a_v1.b")
    vocabulary = load_vocabulary(folder.vocabulary)
    assert vocabulary.fingerprint == ByteVocabulary().fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format=FORMAT + 1), f"format {FORMAT + 1}.*upgrade dlm_jax"),
        (lambda v: v.update(format="1"), "has '1' as its 'format', which it cannot be"),
        (lambda v: v.update(length="x"), "has 'x' as its 'length'"),
        (lambda v: v.update(task=5), "has 5 as its 'task'"),
        (lambda v: v.pop("config"), "does not describe a dlm_jax model"),
        (lambda v: v.update(lenght=3), "unknown key 'lenght'.*did you mean length"),
        (lambda v: v["config"].update(embed_dims=3), "unknown key 'embed_dims'.*embed_dim"),
        (lambda v: v["config"].update(num_heads=3), "not a multiple of num_heads"),
        (lambda v: v["config"].pop("mlp_dim"), "mlp_dim"),
    ],
)
def test_a_wrong_description_is_one_sentence(folder, change, message):
    _edit(folder, change)
    with pytest.raises(UserError, match=message):
        folder.description()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    RunFolder(tmp_path / "a" / "b").make()
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run folder \S*/file cannot be written: it is a file$"):
        RunFolder(tmp_path / "file").make()
    with pytest.raises(UserError, match="/file/run cannot be written: Not a directory$"):
        RunFolder(tmp_path / "file" / "run").make()
    with pytest.raises(UserError, match="/proc/run cannot be written: No such file"):
        RunFolder("/proc/run").make()


def test_damaged_missing_and_foreign_folders(folder, tmp_path):
    (folder.path / "model.json").write_text('{"format": 1, "conf')
    with pytest.raises(UserError, match="model.json is damaged"):
        folder.description()
    with pytest.raises(UserError, match="does not exist"):
        RunFolder(tmp_path / "nowhere").description()
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder(tmp_path / "other").description()
