from __future__ import annotations

import functools
import itertools
import math
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest

from dlm_jax.evaluation import metrics

TARGETS = [
    "The cat sat on the mat in the big house.",
    ["A dog ran away quickly today", "The dog ran off very quickly today"],
    "It cost 1,200 dollars in the end, she said",
]
PREDICTIONS = [
    "The cat sat on the mat in a big house.",
    "the dog ran off quickly today",
    "It cost 1200 dollars in the End, he said",
]
ALL = (
    metrics.bleu,
    metrics.rouge,
    metrics.exact_match,
    metrics.token_f1,
    metrics.numeric_answer,
)


def corpus_bleu(**settings):
    from sacrebleu.metrics import BLEU

    scorer = BLEU(**settings)
    streams = [
        [target if isinstance(target, str) else target[0] for target in TARGETS],
        [None if isinstance(target, str) else target[1] for target in TARGETS],
    ]
    return scorer.corpus_score(PREDICTIONS, streams).score, str(scorer.get_signature())


@pytest.mark.parametrize("tokenize", ["13a", "intl", "char"])
def test_bleu_is_the_corpus_bleu_of_sacrebleu_in_both_cases(tokenize: str) -> None:
    ours = metrics.bleu(TARGETS, PREDICTIONS, tokenize=tokenize)
    for name, lowercase in (("bleu", False), ("bleu_lowercase", True)):
        score, signature = corpus_bleu(tokenize=tokenize, lowercase=lowercase)
        assert ours[name] == pytest.approx(score, abs=1e-9)
        assert metrics.signature(name, references=None, tokenize=tokenize) == signature
    assert ours["bleu"] < ours["bleu_lowercase"]


@pytest.mark.parametrize(
    "predictions",
    [
        ["the cat sat on a mat .", "hello world!"],  # no 4-gram as written, one in lower case
        ["a b a b a b", "c"],  # no n-gram at all
        ["Hello , world", "world there"],  # unigrams only
    ],
)
def test_an_order_without_a_match_is_smoothed_as_sacrebleu_does(predictions: list[str]) -> None:
    from sacrebleu.metrics import BLEU

    targets = ["The cat sat on the mat .", "Hello there, world!"]
    ours = metrics.bleu(targets, predictions)
    for name, lowercase in (("bleu", False), ("bleu_lowercase", True)):
        scorer = BLEU(lowercase=lowercase)
        assert ours[name] == pytest.approx(scorer.corpus_score(predictions, [targets]).score)
        assert metrics.signature(name) == str(scorer.get_signature())


def test_bleu_by_hand() -> None:
    # 4 of 5 unigrams, 3 of 4 bigrams, 2 of 3 trigrams, 1 of 2 4-grams, no brevity penalty.
    ours = metrics.bleu(["a b c d e"], ["a b c d f"])["bleu"]
    assert ours == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert metrics.bleu(["a b c d e"], [""])["bleu"] == 0.0


def test_rouge_by_hand_and_best_reference() -> None:
    # Unigrams: 3 shared of 4 and 4; bigrams: 1 of 3 and 3; longest common subsequence: 3.
    ours = metrics.rouge(["police killed the gunman"], ["police kill the gunman"])
    assert ours == pytest.approx({"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0})
    plain = metrics.rouge(
        ["police killed the gunman"], ["police kill the gunman"], use_stemmer=False
    )
    assert plain == pytest.approx({"rouge1": 75.0, "rouge2": 100 / 3, "rougeL": 75.0})
    several = metrics.rouge([["entirely other words", "two equal words"]], ["two equal words"])
    assert several == pytest.approx({"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0})


@pytest.mark.parametrize(
    ("target", "prediction", "expected"),
    [
        ("a  b\n", " a b", 1.0),
        ("A b", "a b", 0.0),
        ("a b.", "a b", 0.0),
        ("caf\u00e9", "cafe\u0301", 1.0),
        ("", "  ", 1.0),
        (["x", "y"], "y", 1.0),
    ],
)
def test_exact_match(target, prediction: str, expected: float) -> None:
    assert metrics.exact_match([target], [prediction]) == {"exact_match": expected}


@pytest.mark.parametrize(
    ("target", "prediction", "expected"),
    [
        ("the Eiffel Tower", "Eiffel tower!", 1.0),
        ("red green blue", "red blue", 2 * (1.0 * 2 / 3) / (1.0 + 2 / 3)),
        ("b b c", "b c c", 2 / 3),
        ("yes", "no", 0.0),
        ("", "", 1.0),
        ("a", "the", 1.0),
        ("", "word", 0.0),
        (["one two", "three"], "three", 1.0),
    ],
)
def test_token_f1(target, prediction: str, expected: float) -> None:
    assert metrics.token_f1([target], [prediction])["token_f1"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 1,234,567.", "1234567"),
        ("from 3 to -4", "-4"),
        ("10-5", "5"),
        ("f(2)-3", "3"),
        ("x = 2.50 apples", "2.5"),
        ("12, 13, 14", "14"),
        ("none", None),
        ("it is .5", "0.5"),
        ("\N{MINUS SIGN}3", "-3"),
        ("#### -.25", "-0.25"),
        ("v1.2.3 ...", "3"),
    ],
)
def test_last_number(text: str, expected: str | None) -> None:
    found = metrics.last_number(text)
    assert found == (None if expected is None else Decimal(expected))


def test_numeric_answer_compares_values_and_needs_a_number_in_the_reference() -> None:
    targets = ["so 1,200", "#### 7", "no number", "5"]
    predictions = ["it is 1200.0", "6 + 1 = 8", "nor here", ""]
    assert metrics.numeric_answer(targets, predictions) == {"numeric_answer": 0.25}


@pytest.mark.parametrize("metric", ALL)
def test_wrong_lengths_and_no_examples_are_refused(metric) -> None:
    for targets, predictions in (([], []), (["a"], []), (["a"], ["a", "b"]), ([[]], ["a"])):
        with pytest.raises(ValueError):
            metric(targets, predictions)


@pytest.mark.parametrize("metric", ALL)
def test_intervals_hold_the_metrics_own_value_and_do_not_depend_on_the_order(metric) -> None:
    intervals = metrics.metric_intervals(metric, TARGETS, PREDICTIONS, resamples=50)
    values = metric(TARGETS, PREDICTIONS)
    assert intervals.keys() == values.keys()
    for name, interval in intervals.items():
        assert interval.value == pytest.approx(values[name], abs=1e-9)
        assert interval.low <= interval.high
    for order in itertools.permutations(range(3)):
        moved = metric([TARGETS[i] for i in order], [PREDICTIONS[i] for i in order])
        assert moved == pytest.approx(dict(values))


def test_a_partial_of_a_metric_has_intervals_and_a_strangers_metric_none() -> None:
    tokenized = functools.partial(metrics.bleu, tokenize="char")
    interval = metrics.metric_intervals(tokenized, TARGETS, PREDICTIONS, resamples=20)["bleu"]
    assert interval.value == pytest.approx(tokenized(TARGETS, PREDICTIONS)["bleu"])
    assert metrics.metric_intervals(lambda t, p: {"own": 1.0}, TARGETS, PREDICTIONS) == {}


def test_bootstrap_standard_error_is_that_of_the_mean() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=400)
    interval = metrics.bootstrap_interval(values, resamples=4000)
    expected = values.std() / math.sqrt(len(values))
    # The relative error of a standard deviation from 4,000 resamples is about 1.1%.
    assert interval.standard_error == pytest.approx(expected, rel=0.05)
    assert interval.value == pytest.approx(values.mean())
    assert metrics.bootstrap_interval(values, resamples=100, seed=7) == metrics.bootstrap_interval(
        values, resamples=100, seed=7
    )


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    trials = 300
    for trial in range(trials):
        successes = generator.random(80) < 0.6
        interval = metrics.bootstrap_interval(successes, resamples=200, level=0.9, seed=trial)
        covered += interval.low <= 0.6 <= interval.high
    # 3 standard deviations of a binomial(300, 0.9) fraction are 0.052, and the percentile
    # interval of 80 examples is itself a percent or two too narrow.
    assert 0.83 <= covered / trials <= 0.96


def test_bootstrap_of_a_ratio_agrees_with_the_delta_method() -> None:
    from dlm_jax.evaluation.likelihood import ratio_with_standard_error

    generator = np.random.default_rng(5)
    tokens = generator.integers(4, 40, size=300)
    nats = tokens * generator.normal(2.0, 0.4, size=300)
    ratio, error = ratio_with_standard_error(nats, tokens)
    interval = metrics.bootstrap_interval(
        np.stack([nats, tokens], axis=1), lambda sums: sums[0] / sums[1], resamples=2000
    )
    assert interval.value == pytest.approx(ratio)
    assert interval.standard_error == pytest.approx(error, rel=0.1)


def test_bootstrap_refuses_what_it_cannot_do() -> None:
    for arguments in ({"per_example": []}, {"per_example": [[1.0, 2.0]]}):
        with pytest.raises(ValueError):
            metrics.bootstrap_interval(**arguments)
    with pytest.raises(ValueError):
        metrics.bootstrap_interval([1.0], level=1.0)
    with pytest.raises(ValueError, match="nonsense"):
        metrics.signature("nonsense")


def test_importing_the_room_costs_no_heavy_library() -> None:
    heavy = ("matplotlib", "sacrebleu", "rouge_score", "tensorflow", "seqio", "jax", "flax")
    modules = ("metrics", "generation", "likelihood", "report", "figures", "run_records")
    code = (
        "import sys, importlib\n"
        f"for name in {modules!r}: importlib.import_module('dlm_jax.evaluation.' + name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
