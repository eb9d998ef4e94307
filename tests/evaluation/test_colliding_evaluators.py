"""No evaluator of a run writes over the figures of another."""

from __future__ import annotations

import pytest

from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data.tasks import register_task
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.errors import UserError
from dlm_jax.evaluation.evaluators import GenerationEvaluator, LikelihoodEvaluator
from dlm_jax.evaluation.metrics import exact_match
from dlm_jax.evaluation.order_evaluator import ReasoningOrderEvaluator
from dlm_jax.models.config import EncoderConfig
from dlm_jax.training.evaluators import check_figures
from dlm_jax.training.train import train

CONFIG = EncoderConfig(261, 16, 1, 2, 16, max_positions=34)


@pytest.fixture(scope="module")
def task():
    one = {"train": lambda: [{"a": "b"}], "validation": lambda: [{"a": "b"}]}
    how = {"inputs": "{a}: ", "targets": "{a}", "metrics": (exact_match,)}
    register_task("colliding_v1.other", splits=one, **how)
    return register_task("colliding_v1.one", splits=one, **how)


def test_two_canvases_of_one_task_are_refused_before_anything_is_written(task, tmp_path) -> None:
    ByteVocabulary().save(tmp_path / "vocabulary")
    evaluators = [
        LikelihoodEvaluator(),
        GenerationEvaluator(canvas="fixed"),
        GenerationEvaluator(task=task.name, canvas="search"),
    ]
    message = (
        "GenerationEvaluator and GenerationEvaluator both measure the answers to colliding_v1.one"
    )
    with pytest.raises(UserError, match=message):
        train(
            tmp_path / "run",
            task=task.name,
            model=CONFIG,
            vocabulary=str(tmp_path / "vocabulary"),
            length=32,
            evaluators=evaluators,
        )
    assert not (tmp_path / "run").exists()


def test_figures_of_other_names_go_together(task) -> None:
    evaluators = [
        LikelihoodEvaluator(),
        LikelihoodEvaluator(split="train"),  # of other examples, hence of another name
        GenerationEvaluator(canvas="fixed"),
        GenerationEvaluator(canvas="oracle"),
        GenerationEvaluator(task="colliding_v1.other"),
        ReasoningOrderEvaluator(),
    ]
    check_figures(evaluators, ModelDescription(CONFIG, task.name))
    with pytest.raises(UserError, match="both measure the likelihood of colliding_v1.one"):
        check_figures([LikelihoodEvaluator()] * 2, ModelDescription(CONFIG, task.name))
