"""Evaluation on predicted canvases: what becomes of long prompts, and of several candidates."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlm_jax.api import DiffusionLanguageModel
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.table import Truncation
from dlm_jax.data.tasks import register_task
from dlm_jax.data.vocabularies import CharacterVocabulary
from dlm_jax.errors import UserError
from dlm_jax.evaluation.evaluators import GenerationEvaluator
from dlm_jax.evaluation.metrics import exact_match
from dlm_jax.models.config import SIZES
from dlm_jax.models.encoder import Encoder

VOCABULARY = CharacterVocabulary("abc ")
CONFIG = dataclasses.replace(
    SIZES["test"], vocab_size=VOCABULARY.size, pad_id=VOCABULARY.pad_id, max_positions=34
)
LONGEST = CONFIG.max_length  # 32 tokens: <s>, the prompt, the answer, </s>
PROMPTS = ["ab", "a" * 25, "b" * 40]


class Fives(nnx.Module):
    """Predicts 5 tokens, then 2, whatever the prompt."""

    def __call__(self, features, segment_ids):
        scores = np.full(CONFIG.max_positions, -9.0, np.float32)
        scores[[4, 1]] = [2.0, 1.0]
        return jnp.broadcast_to(jnp.asarray(scores), (features.shape[0], len(scores)))


@pytest.fixture(autouse=True)
def predictor(monkeypatch):
    monkeypatch.setattr(DiffusionLanguageModel, "length_predictor", Fives())


@pytest.fixture(scope="module")
def task() -> str:
    records = [{"prompt": prompt, "answer": "abc"[: 1 + i]} for i, prompt in enumerate(PROMPTS)]
    name = "predicted_lengths_v1.any"
    register_task(
        name,
        splits={"validation": lambda: records},
        inputs="{prompt}",
        targets="{answer}",
        metrics=(exact_match,),
    )
    return name


def evaluate(task, tmp_path, **settings):
    evaluator = GenerationEvaluator(
        task=task, canvas="predicted", steps=2, special_tokens=False, **settings
    )
    denoiser = Encoder(CONFIG, rngs=nnx.Rngs(0))
    description = ModelDescription(config=CONFIG)
    results = evaluator(denoiser, VOCABULARY, description, RunFolder(tmp_path), 7)
    [file] = (tmp_path / "eval" / task).glob("*.jsonl")
    assert file.name == "7.predicted.jsonl"
    return results[f"eval/{task}"], [json.loads(line) for line in file.read_text().splitlines()]


def test_prompts_are_cut_for_the_predicted_length_and_never_for_the_true_one(
    task, tmp_path
) -> None:
    figures, records = evaluate(task, tmp_path, length_beam=1)
    # 1 + 25 + 5 + 1 tokens fit exactly; of the longest prompt 25 tokens stay.
    assert figures["prompts_cut"] == 1.0 and figures["n"] == 3.0
    assert [record["canvas_length"] for record in records] == [5, 5, 5]
    assert [record["true_length"] for record in records] == [1, 2, 3]
    assert all(len(record["prediction"]) == 5 for record in records)
    assert figures["length_mae"] == pytest.approx((4 + 3 + 2) / 3)
    assert figures["length_in_beam"] == 0.0


def test_the_beam_and_the_choice_are_those_of_the_api(task, tmp_path) -> None:
    settings = {"mbr": 3, "rerank": "exact_match", "temperature": 1.0, "seed": 3}
    figures, records = evaluate(task, tmp_path, length_beam=2, **settings)
    assert figures["length_in_beam"] == pytest.approx(1 / 3)
    model = DiffusionLanguageModel(
        Encoder(CONFIG, rngs=nnx.Rngs(0)), VOCABULARY, ModelDescription(config=CONFIG)
    )
    answers = model.generate(
        PROMPTS[:2], length="predicted", length_beam=2, steps=2, special_tokens=False, **settings
    )
    assert [record["prediction"] for record in records[:2]] == [answer.text for answer in answers]
    assert [record["nfe"] for record in records[:2]] == [answer.nfe for answer in answers]


def test_long_prompts_are_dropped_or_refused_where_truncation_says_so(task, tmp_path) -> None:
    figures, records = evaluate(task, tmp_path, truncation=Truncation(overlong="drop"))
    assert figures["examples_dropped"] == 1.0 and [r["index"] for r in records] == [0, 1]
    with pytest.raises(UserError, match=f"do not fit into a row of {LONGEST}"):
        evaluate(task, tmp_path, truncation=Truncation(overlong="error"))
