"""The notebook API on models of a few thousand parameters."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from flax import nnx

from dlm_jax.api import DiffusionLanguageModel
from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data.vocabularies import CharacterVocabulary, TokenizersVocabulary
from dlm_jax.errors import UserError
from dlm_jax.evaluation.evaluators import GenerationEvaluator, LikelihoodEvaluator
from dlm_jax.models.config import SIZES
from dlm_jax.models.encoder import Encoder


def model_of(vocabulary) -> DiffusionLanguageModel:
    config = dataclasses.replace(
        SIZES["test"], vocab_size=vocabulary.size, pad_id=vocabulary.pad_id
    )
    denoiser = Encoder(config, rngs=nnx.Rngs(0))
    return DiffusionLanguageModel(denoiser, vocabulary, ModelDescription(config=config))


@pytest.fixture(scope="module")
def model() -> DiffusionLanguageModel:
    return model_of(CharacterVocabulary("abc "))


def test_a_search_of_lengths_does_not_depend_on_their_order(model) -> None:
    # Every answer of one length is empty: the model likes </s> better than all else there.
    bias = model.denoiser.head.bias
    before = bias[...]
    bias[...] = before.at[model.vocabulary.eos_id].add(50.0)
    try:
        prompts = [[0, *model.vocabulary.encode("ab")]]
        priors = {1: -0.7, 2: -0.9, 3: -2.0}
        found = set()
        for lengths in itertools.permutations(priors):
            log_priors = [priors[length] for length in lengths]
            [answer] = model.search_lengths(prompts, list(lengths), log_priors=log_priors, steps=2)
            assert np.isfinite(answer.log_probability) and answer.tokens == []
            found.add(answer.length)
        assert found == {1}
    finally:
        bias[...] = before


def test_the_likeliest_pair_of_length_and_answer_wins(model) -> None:
    prompt = [0, *model.vocabulary.encode("ab")]
    lengths, options = [1, 2, 3], {"steps": 3, "special_tokens": False}
    alone = [model.generate_ids([prompt], [n], **options)[0] for n in lengths]
    for priors in ([-1.0, -1.0, -1.0], [-40.0, -1.0, -40.0], [-40.0, -40.0, -1.0]):
        [best] = model.search_lengths([prompt], lengths, log_priors=priors, **options)
        totals = [a.log_probability + p for a, p in zip(alone, priors)]
        assert best.text == alone[int(np.argmax(totals))].text
        assert best.nfe == sum(answer.nfe for answer in alone)
    [by_mean] = model.search_lengths([prompt], lengths, **options)
    assert by_mean.text == max(alone, key=lambda answer: answer.score).text


def test_infilling_keeps_what_is_given_to_the_character(tmp_path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "state", "##s", "of", "a", "."]
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(pieces), encoding="utf-8")
    uncased = model_of(TokenizersVocabulary.from_wordpieces(file))
    texts = ["The ☂ State of <mask>*2, «a».", "<mask> of  the", "a<mask>"]
    answers = uncased.infill(texts, steps=2, special_tokens=False)
    first, second, third = (answer.text for answer in answers)
    assert first.startswith("The ☂ State of ") and first.endswith(", «a».")
    assert len(first) > len("The ☂ State of , «a».")
    assert second.endswith(" of  the") and second[0] != " " and third.startswith("a")


def test_mistakes_are_sentences(model) -> None:
    longest = model.denoiser.config.max_length
    with pytest.raises(UserError, match="a list of prompts: put the text in brackets"):
        model.generate("ab")
    with pytest.raises(UserError, match="batch_size is 0"):
        model.generate(["ab"], batch_size=0)
    with pytest.raises(UserError, match=rf"gap of 99999999 tokens, and 1 to {longest}"):
        model.infill(["a<mask>*99999999"])
    with pytest.raises(UserError, match="gap of 0 tokens"):
        model.infill(["a<mask>*0"])
    for tokens in ([0, 4, 2], np.zeros((1, longest + 1), np.int32)):
        with pytest.raises(UserError, match=rf"\[batch, length\].* at most {longest}"):
            model.logits(tokens)


@pytest.mark.parametrize(
    ("evaluator", "settings", "message"),
    [
        (GenerationEvaluator, {"strategy": "cmlmx"}, "strategy 'cmlmx' is none of"),
        (GenerationEvaluator, {"canvas": "oracel"}, "canvas is 'oracel'.*did you mean oracle"),
        (GenerationEvaluator, {"batch_size": 0}, "GenerationEvaluator.batch_size is 0"),
        (GenerationEvaluator, {"steps": 0}, "GenerationEvaluator.steps is 0"),
        (GenerationEvaluator, {"temperature": -1.0}, "temperature is -1.0"),
        (GenerationEvaluator, {"response_lengths": []}, r"response_lengths is \[\]"),
        (GenerationEvaluator, {"response_lengths": [0]}, r"response_lengths is \[0\]"),
        (LikelihoodEvaluator, {"draws": 1}, "LikelihoodEvaluator.draws is 1.* 2 or more"),
        (LikelihoodEvaluator, {"max_examples": 0}, "LikelihoodEvaluator.max_examples is 0"),
    ],
)
def test_an_evaluator_checks_its_settings_before_a_run_begins(evaluator, settings, message) -> None:
    with pytest.raises(UserError, match=message):
        evaluator(**settings)
