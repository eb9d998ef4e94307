"""What a source names, and what may be asked of it."""

from __future__ import annotations

import pytest
from flax import nnx

import dlm_jax
from dlm_jax.checkpoints.loading import LoadedModel, find_model, load_model, save_model
from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.errors import UserError
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import Encoder, parameters


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = EncoderConfig(261, 8, 1, 1, 8, max_positions=34)
    weights = parameters(Encoder(config, rngs=nnx.Rngs(0)))
    folder = tmp_path_factory.mktemp("loading") / "run"
    save_model(LoadedModel(ModelDescription(config=config), ByteVocabulary(), weights), folder)
    return folder


def test_a_step_beside_a_checkpoint_has_to_be_its_own(run):
    assert find_model(run / "checkpoints" / "0").step == 0
    assert load_model(run / "checkpoints" / "0", step=0).step == 0
    with pytest.raises(UserError, match="step 3 was asked for, but .* checkpoint of step 0"):
        find_model(run / "checkpoints" / "0", step=3)


def test_a_run_has_its_own_vocabulary(run):
    with pytest.raises(UserError, match="its own vocabulary: leave elsewhere out"):
        find_model(run, vocabulary="elsewhere")


def test_a_model_of_a_relative_path_keeps_its_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    model = dlm_jax.load("run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{run} has no length predictor"):
        model.generate(["a"], length="predicted")
