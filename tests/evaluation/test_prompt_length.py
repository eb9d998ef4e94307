"""Prompts without room for their answer: cut at either end, dropped or refused, always counted."""

from __future__ import annotations

import pytest
from flax import nnx

from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.table import Truncation
from dlm_jax.data.tasks import TextTask
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.errors import UserError
from dlm_jax.evaluation.answers import Answer
from dlm_jax.evaluation.evaluators import GenerationEvaluator
from dlm_jax.evaluation.generation import Example
from dlm_jax.evaluation.metrics import option_accuracy
from dlm_jax.evaluation.prompt_length import fit_prompts
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import Encoder

EXAMPLES = [Example(i, "", "", [0, *range(10, 10 + n)], ()) for i, n in enumerate((3, 5, 9))]


def fit(truncation: Truncation, lengths: tuple[int, ...] = (2, 2, 2)):
    fitted, figures = fit_prompts(EXAMPLES, lengths, 8, truncation, "t_v1.x")
    return {example.index: list(example.prompt_ids) for example in fitted}, figures


def test_cuts_keep_the_first_token_and_one_end() -> None:
    # A row of 8 holds </s>, an answer of 2, and a prompt of 5.
    left, figures = fit(Truncation())
    assert left == {0: [0, 10, 11, 12], 1: [0, 11, 12, 13, 14], 2: [0, 15, 16, 17, 18]}
    assert figures == {"prompts_cut": 2.0}
    right, _ = fit(Truncation(side="right"))
    assert right == {0: [0, 10, 11, 12], 1: [0, 10, 11, 12, 13], 2: [0, 10, 11, 12, 13]}
    assert fit(Truncation(), (2, 1, 6))[0][2] == [0]
    assert fit(Truncation(), (1, 1, 1))[1] == {"prompts_cut": 1.0}


def test_a_benchmark_without_training_examples_is_answered_on_an_oracle_canvas(tmp_path) -> None:
    vocabulary = ByteVocabulary()
    config = EncoderConfig(vocabulary.size, 8, 1, 1, 8, max_positions=16)
    records = [{"q": "x" * n, "a": Answer("A", group="xy"[n > 3])} for n in (3, 30, 2, 40)]
    task = TextTask(
        "long_v1.test",
        {"test": lambda: records},
        targets=lambda record: record["a"],
        inputs="{q}",
        metrics=(option_accuracy,),
        evaluation_only=True,
    )
    (figures,) = GenerationEvaluator(task=task, split="test", steps=1, canvas="oracle")(
        Encoder(config, rngs=nnx.Rngs(0)),
        vocabulary,
        ModelDescription(config),
        RunFolder(tmp_path),
        0,
    ).values()
    assert figures["prompts_cut"] == 2.0 and figures["n"] == 4.0
    assert {"oracle_option_accuracy_macro", "oracle_option_accuracy/x"} <= figures.keys()


def test_drops_and_errors() -> None:
    kept, figures = fit(Truncation(overlong="drop"))
    assert list(kept) == [0] and figures == {"examples_dropped": 2.0}
    with pytest.raises(UserError, match="all 3 prompts are longer than a row"):
        fit(Truncation(overlong="drop"), (6, 6, 6))
    with pytest.raises(UserError, match="'t_v1.x', example 1: a prompt of 6 tokens"):
        fit(Truncation(overlong="error"))
    with pytest.raises(UserError, match="an answer of 7"):
        fit(Truncation(), (7, 2, 2))
