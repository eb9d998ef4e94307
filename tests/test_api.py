"""The notebook API on models of a few thousand parameters."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlm_jax.api import DiffusionLanguageModel, writing
from dlm_jax.checkpoints.huggingface import export_folder
from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data.vocabularies import CharacterVocabulary, TokenizersVocabulary
from dlm_jax.errors import UserError
from dlm_jax.evaluation.evaluators import GenerationEvaluator, LikelihoodEvaluator
from dlm_jax.models.config import SIZES
from dlm_jax.models.encoder import Encoder, parameters
from dlm_jax.sampling.choice import choose, replicate_id

pytestmark = pytest.mark.usefixtures("compiled_quickly")


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


class Certain(nnx.Module):
    """Predicts the lengths 2, 4 and 3, in this order, whatever the prompt."""

    def __init__(self, classes: int) -> None:
        scores = np.full(classes, -9.0, np.float32)
        scores[[1, 3, 2]] = [2.0, 1.0, 0.5]
        self.scores = nnx.Param(jnp.asarray(scores))

    def __call__(self, features, segment_ids):
        return jnp.broadcast_to(self.scores[...], (features.shape[0], *self.scores.shape))


@pytest.fixture
def predicting(model):
    found = DiffusionLanguageModel(model.denoiser, model.vocabulary, model.description)
    found.length_predictor = Certain(model.denoiser.config.max_positions)
    return found


PROMPTS = ["ab", "c ab c", "a"]


def test_a_predicted_beam_is_a_search_of_its_lengths(predicting) -> None:
    options = {"steps": 3, "special_tokens": False}
    for beam, lengths in ((1, [2]), (2, [2, 4]), (3, [2, 4, 3])):
        found = predicting.generate(PROMPTS, length="predicted", length_beam=beam, **options)
        assert found == predicting.generate(PROMPTS, length=lengths, **options)
        assert [(row.prompt, row.length) for row in predicting.candidates] == [
            (prompt, length) for prompt in range(3) for length in lengths
        ]
    # With the length's own probability, which is far apart, the likeliest length wins.
    predicting.length_predictor.scores[...] *= 1000
    joint = predicting.generate(
        PROMPTS, length="predicted", length_beam=3, rerank="joint", **options
    )
    assert [answer.length for answer in joint] == [2, 2, 2]


def test_a_beam_keeps_within_the_room_that_a_prompt_leaves(predicting) -> None:
    assert predicting.generate([], length="predicted") == []
    room = 3
    longest = predicting.denoiser.config.max_length
    prompt = "a" * (longest - 2 - room)
    predicting.generate([prompt], length="predicted", length_beam=9, steps=1)
    lengths = [row.length for row in predicting.candidates]
    assert sorted(lengths) == [1, 2, 3] and lengths[0] == 2
    with pytest.raises(UserError, match="leaves no room for an answer"):
        predicting.generate([prompt + "a" * room], length="predicted")
    with pytest.raises(UserError, match=f"takes at most {longest}"):
        predicting.generate([prompt * 2], length="predicted")


NOISY = {"steps": 3, "strategy": "reparam-uncond-stochastic1.0-cosine", "temperature": 1.0}


def test_replicates_differ_and_know_nothing_of_their_batch(predicting) -> None:
    options = {"length": "predicted", "length_beam": 2, "mbr": 6, "seed": 5, **NOISY}
    together = predicting.generate(PROMPTS, row_ids=[10, 11, 12], **options)
    for batch_size in (1, 5, 64):
        again = predicting.generate(
            PROMPTS[::-1], row_ids=[12, 11, 10], batch_size=batch_size, **options
        )
        assert again[::-1] == together
    [alone] = predicting.generate(PROMPTS[1:2], row_ids=[11], **options)
    assert alone == together[1]
    # The replicates of a length are draws of their own, and the first is the row's usual answer.
    ids = [[0, *predicting.vocabulary.encode(PROMPTS[0])]]
    draws = {
        predicting.best_answers(ids, [[(4, 0.0)]], row_ids=[row], **NOISY)[0].text
        for row in [replicate_id(10, replicate) for replicate in range(6)]
    }
    assert len(draws) > 1
    [first] = predicting.generate_ids(ids, [4], row_ids=[10], **NOISY)
    assert predicting.best_answers(ids, [[(4, 0.0)]], row_ids=[10], **NOISY) == [first]


@pytest.mark.parametrize("rerank", [None, "mean", "bleu", "rougeL", "exact_match"])
def test_the_kept_answer_is_the_choice_among_all_candidates(predicting, rerank) -> None:
    ids = [[0, *predicting.vocabulary.encode(prompt)] for prompt in PROMPTS]
    beams = [[(2, -0.5), (4, -1.0)]] * len(ids)
    kept = predicting.best_answers(ids, beams, mbr=4, rerank=rerank, **NOISY)
    for number, answer in enumerate(kept):
        every = [
            predicting.generate_ids(
                [ids[number]], [length], row_ids=[replicate_id(number, replicate)], **NOISY
            )[0]
            for length in (2, 4)
            for replicate in range(4)
        ]
        index = choose(
            [one.text for one in every],
            [one.score for one in every],
            [0.0] * len(every),
            rerank or "bleu",
        )
        assert answer == dataclasses.replace(every[index], nfe=sum(one.nfe for one in every))


def test_mistakes_with_candidates_are_sentences(model, predicting) -> None:
    with pytest.raises(UserError, match="no length predictor: train one with dlm length"):
        model.generate(["ab"], length="predicted")
    for options, words in (
        ({"length": "predictd"}, "length is 'predictd', and must be a number"),
        ({"length": "predicted", "length_beam": 0}, "length_beam is 0"),
        ({"length": 3, "length_beam": 2}, "length_beam is 2, which goes with length='predicted'"),
        ({"length": 3, "mbr": 3}, "deterministic strategy at temperature 0"),
        ({"length": 3, "mbr": 0}, "mbr is 0"),
        ({"length": 3, "rerank": "joined"}, "did you mean joint"),
    ):
        with pytest.raises(UserError, match=words):
            predicting.generate(["ab"], **options)


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
    for call in (
        lambda: model.generate("ab"),
        lambda: model.infill("a<mask>"),
        lambda: model.score("ab", "a"),
        lambda: model.score(["ab"], "a"),
    ):
        with pytest.raises(UserError, match="a list of texts: put the text in brackets"):
            call()
    with pytest.raises(UserError, match="a response for each prompt, not 2 for 1"):
        model.score(["ab"], ["a", "b"])
    with pytest.raises(UserError, match="length is 0, and must be 1 token or more"):
        model.generate(["ab"], length=0)
    with pytest.raises(UserError, match="batch_size is 0"):
        model.generate(["ab"], batch_size=0)
    with pytest.raises(UserError, match=rf"gap of 99999999 tokens, and 1 to {longest}"):
        model.infill(["a<mask>*99999999"])
    with pytest.raises(UserError, match="gap of 0 tokens"):
        model.infill(["a<mask>*0"])
    for tokens in ([0, 4, 2], np.zeros((1, longest + 1), np.int32)):
        with pytest.raises(UserError, match=rf"\[batch, length\].* at most {longest}"):
            model.logits(tokens)


def test_what_is_too_long_is_named_before_anything_is_written(model, monkeypatch) -> None:
    def never(*arguments, **options):
        raise AssertionError("something was written")

    monkeypatch.setattr(writing, "generate", never)
    longest = model.denoiser.config.max_length
    prompts = ["ab"] * 5 + ["a" * (longest - 4)]
    sentence = rf"prompt 5 takes {longest - 3} tokens.* an answer of 3 and </s> .* row of {longest}"
    with pytest.raises(UserError, match=sentence):
        # Each prompt is three rows, and the last one is in a batch of its own.
        model.generate(prompts, length=[1, 2, 3], batch_size=15)
    texts = ["a<mask>"] * 3 + ["a" * (longest - 4) + "<mask>*3"]
    with pytest.raises(UserError, match=f"row 3 takes {longest + 1} tokens, 3 of them"):
        model.infill(texts, batch_size=2)


def test_numbers_of_numpy_and_empty_lists_are_taken(model) -> None:
    [answer] = model.generate(["ab"], length=np.int64(3), steps=2, special_tokens=False)
    assert len(answer.tokens) == 3
    assert model.score([], []) == [] and model.generate([]) == [] and model.infill([]) == []


@pytest.mark.parametrize(
    ("evaluator", "settings", "message"),
    [
        (GenerationEvaluator, {"strategy": "cmlmx"}, "strategy 'cmlmx' is none of"),
        (GenerationEvaluator, {"canvas": "oracel"}, "canvas is 'oracel'.*did you mean oracle"),
        (GenerationEvaluator, {"mbr": 2}, "mbr is 2, but a deterministic strategy"),
        (GenerationEvaluator, {"rerank": "blue"}, "rerank is 'blue'.*did you mean bleu"),
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


def test_logits_of_what_does_not_exist_are_refused(model) -> None:
    size, longest = model.denoiser.config.vocab_size, model.denoiser.config.max_length
    assert model.logits([[size - 1]], [[longest - 1]]).shape == (1, 1, size)
    assert model.logits([[]]).shape == (1, 0, size)
    for tokens, positions in ([[size]], None), ([[-1]], None), ([[1]], [[longest]]):
        with pytest.raises(UserError, match=r"(tokens|positions) hold .*, and must be at least 0"):
            model.logits(tokens, positions)


def test_the_score_of_a_pair_is_that_of_its_identity(model) -> None:
    alone = model.score(["ab"], ["ca"], draws=4, row_ids=[7])
    beside = model.score(["b", "ab"], ["a", "ca"], draws=4, row_ids=[3, 7])
    assert beside[1].nelbo == pytest.approx(alone[0].nelbo, rel=1e-5)
    assert model.score(["ab"], ["ca"], draws=4)[0].nelbo != pytest.approx(alone[0].nelbo, rel=1e-3)
    with pytest.raises(UserError, match="a row_id for each prompt, not 2 for 1"):
        model.score(["ab"], ["ca"], row_ids=[1, 2])


def test_loading_a_model_prints_nothing_where_the_tpu_compiler_is_installed(
    model, tmp_path
) -> None:
    pytest.importorskip("libtpu")
    # As a notebook does, without the variables that keep JAX from looking for a TPU here.
    export_folder(model.denoiser.config, parameters(model.denoiser), model.vocabulary, tmp_path)
    program = (
        f"import jax, dlm_jax; model = dlm_jax.load({str(tmp_path)!r});"
        "print(model.logits([[1, 2]]).shape[:2])"
    )
    hidden = ("JAX_", "TPU_", "TF_", "XLA_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("(1, 2)\n", 0)
    assert "TPU" not in done.stderr and "libtpu" not in done.stderr
