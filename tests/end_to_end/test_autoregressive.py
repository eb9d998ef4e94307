"""The autoregressive baseline by the commands: trained, evaluated, sampled, swept and exported."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from flax import nnx

import dlm_jax
from dlm_jax import cli
from dlm_jax.checkpoints.huggingface import export_folder
from dlm_jax.data.tasks import register_task
from dlm_jax.data.vocabularies import CharacterVocabulary
from dlm_jax.evaluation.metrics import exact_match
from dlm_jax.models import encoder
from dlm_jax.models.config import SIZES

WORDS = {"a": "bcdef", "b": "c", "c": "fa", "d": "eee", "e": "beef", "f": "dad"}
RECORDS = [{"letter": letter, "word": word} for letter, word in WORDS.items()]

register_task(
    "toy_ar_v1.words",
    splits={"train": lambda: RECORDS * 20, "validation": lambda: RECORDS},
    inputs="{letter}: ",
    targets="{word}",
    metrics=(exact_match,),
)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    """A Hugging Face folder of an encoder that sees both sides."""
    vocabulary = CharacterVocabulary("abcdef: ")
    config = dataclasses.replace(
        SIZES["test"],
        vocab_size=vocabulary.size,
        pad_id=vocabulary.pad_id,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
    )
    weights = encoder.parameters(encoder.Encoder(config, rngs=nnx.Rngs(0)))
    return export_folder(config, weights, vocabulary, tmp_path_factory.mktemp("hf") / "model")


def command(denoiser, run_dir, *bindings):
    return [
        "train",
        "--gin_file=runs/autoregressive.gin",
        "--gin.TASK='toy_ar_v1.words'",
        f"--gin.INITIAL_CHECKPOINT='{denoiser}'",
        "--gin.TOTAL_STEPS=120",
        "--gin.BATCH_SIZE=4",
        "--gin.LENGTH=32",
        "--gin.LEARNING_RATE=1e-2",
        "--gin.AdamW.warmup_steps=10",
        f"--run_dir={run_dir}",
        *bindings,
    ]


@pytest.fixture(scope="module")
def run_dir(denoiser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "causal"
    assert cli.main(command(denoiser, folder)) == 0
    return folder


def test_training_ends_in_right_answers_and_an_exact_likelihood(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    [figures] = [line for line in lines if line["split"] == "eval/toy_ar_v1.words"]
    assert figures["exact_match"] == 1.0
    assert 0 < figures["nll"] < 0.1 and "nelbo" not in figures
    assert figures["perplexity"] == pytest.approx(math.exp(figures["nll"]))
    tokens = sum(len(word) + 1 for word in WORDS.values())
    assert figures["maskable_tokens"] == tokens and figures["n"] == 6
    # One evaluation for each token and for </s>.
    assert figures["nfe"] == pytest.approx(tokens / 6)
    path = run_dir / "eval" / "toy_ar_v1.words" / "120.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["prediction"] for record in records] == list(WORDS.values())
    assert {record["canvas_length"] for record in records} == {5}


def test_the_model_remembers_that_it_is_causal(run_dir, denoiser):
    model = dlm_jax.load(run_dir)
    assert model.denoiser.config.causal
    answers = model.generate([f"{letter}: " for letter in WORDS])
    assert [answer.text for answer in answers] == list(WORDS.values())
    # Greedy answers that end are scored as `score` scores them.
    exact = model.score([f"{letter}: " for letter in WORDS], list(WORDS.values()))
    for answer, likelihood in zip(answers, exact):
        assert (likelihood.standard_error, likelihood.tokens) == (0.0, answer.nfe)
        assert answer.log_probability == pytest.approx(-likelihood.nelbo, abs=1e-4)
        assert answer.score == pytest.approx(answer.log_probability / answer.nfe)
    [short] = model.generate(["b: "], special_tokens=False)
    assert (short.text, short.nfe) == ("c", 2)
    [cut] = model.generate(["a: "], length=3)
    assert (cut.text, cut.nfe) == ("bcd", 4)
    assert not dlm_jax.load(denoiser).denoiser.config.causal


def test_no_logit_of_the_trained_model_sees_ahead(run_dir):
    model = dlm_jax.load(run_dir)
    tokens = np.asarray([model.vocabulary.encode("a: bcdef")], np.int32)
    changed = tokens.copy()
    changed[0, 5] += 1
    before, after = np.asarray(model.logits(tokens)), np.asarray(model.logits(changed))
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert (np.abs(before[0, 5:] - after[0, 5:]).max(axis=-1) > 1e-3).all()


def test_eval_sample_and_sweep_need_no_setting(run_dir, tmp_path, capsys):
    assert cli.main(["eval", "--gin_file=runs/evaluate.gin", f"--run_dir={run_dir}"]) == 0
    capsys.readouterr()
    assert cli.main(["sample", f"--run_dir={run_dir}", "--prompt=e: ", "--prompt=c: "]) == 0
    assert capsys.readouterr().out == "beef\nfa\n"
    sweep = ["sweep", "--gin_file=runs/sweep.gin", f"--run_dir={tmp_path}"]
    sweep += [f"--gin.MODELS=['{run_dir}']", "--gin.GRID={'temperature': [0.0]}"]
    assert cli.main(sweep) == 0
    [result] = tmp_path.glob("cells/*/result.json")
    assert json.loads(result.read_text())["figures"]["exact_match"] == 1.0


def refusal(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1, err
    return err


def test_what_makes_no_sense_for_a_causal_model_is_one_sentence(
    run_dir, denoiser, tmp_path, capsys
):
    sample = ["sample", f"--run_dir={run_dir}"]
    err = refusal(capsys, *sample, "--prompt=a: ", "--strategy=cmlm")
    assert "'cmlm' needs a model that sees both sides" in err
    err = refusal(capsys, *sample, "--prompt=a: ", "--length=1,2")
    assert "ends its answers itself" in err
    err = refusal(capsys, *sample, "--infill=a: <mask>")
    assert "infilling needs a model that sees both sides" in err
    other = ["sample", f"--run_dir={denoiser}", "--prompt=a: ", "--strategy=autoregressive"]
    assert "'autoregressive' needs a causal model" in refusal(capsys, *other)
    evaluate = ["eval", "--gin_file=runs/evaluate.gin", f"--run_dir={run_dir}"]
    err = refusal(capsys, *evaluate, "--gin.CANVAS='oracle'")
    assert "GenerationEvaluator.canvas is 'oracle', but a causal model" in err
    new = tmp_path / "new"
    err = refusal(capsys, *command(denoiser, new, "--gin.GenerationEvaluator.canvas='search'"))
    assert "GenerationEvaluator.canvas is 'search', but a causal model" in err
    err = refusal(capsys, *command(denoiser, new, "--gin.train.attention_pattern=None"))
    assert "AutoregressiveObjective needs a model with causal attention" in err
    again = command(denoiser, run_dir, "--gin.train.attention_pattern='bidirectional'")
    assert f"the model of run {run_dir} is 'causal': name a new run_dir" in refusal(capsys, *again)
    adapt = [
        "train",
        "--gin_file=runs/adapt.gin",
        "--gin.TASK='toy_ar_v1.words'",
        "--gin.LENGTH=32",
    ]
    err = refusal(capsys, *adapt, f"--gin.INITIAL_CHECKPOINT='{run_dir}'", f"--run_dir={new}")
    assert "DiffusionObjective needs a model with bidirectional attention" in err
    assert not new.exists()


def test_inspect_and_export_say_that_it_is_causal(run_dir, tmp_path, capsys):
    assert cli.main(["inspect", str(run_dir)]) == 0
    assert "attention_pattern       'causal'" in capsys.readouterr().out
    exported = tmp_path / "exported"
    assert cli.main(["export", f"--run_dir={run_dir}", f"--output={exported}"]) == 0
    written = json.loads((exported / "config.json").read_text())
    assert written["is_decoder"] and "ForMaskedLM" not in written["architectures"][0]
    assert dlm_jax.load(exported).generate(["e: "])[0].text == "beef"
