"""Answers with groups and several references, and the metrics that read options and conclusions."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from dlm_jax.evaluation.answers import Answer, chosen_option, conclusion, equations
from dlm_jax.evaluation.generation import judge
from dlm_jax.evaluation.metrics import (
    bleu,
    exact_match,
    final_answer,
    metric_intervals,
    option_accuracy,
    signature,
)

GROUPED = [
    Answer("A", group="x"), Answer("B", group="x"), Answer("C", group="x"), Answer("D", group="y"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", "B"), (" (C) 12/25/1937", "C"), ("D.", "D"), ("A)", "A"), ("A: yes", "A"),
        ("A dog", None), ("Because", None), ("b", None), ("", None), ("the answer is B", None),
    ],
)  # fmt: skip
def test_the_option_that_a_text_begins_with(text: str, option: str | None) -> None:
    assert chosen_option(text) == option


def test_the_conclusion_of_a_worked_answer() -> None:
    text = "One answer is 3. Then more. So the answer is (B)."
    assert conclusion(text) == "(B)" and conclusion("plain.") == "plain" and conclusion("") == ""
    assert final_answer(["(B)", "yes"], [text, "The answer is no"]) == {"final_answer": 0.5}


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("1 + 2 = 3, then 3 * 4 = 13.", [True, False]),
        ("3 + 4 + 5 = 12", [True]),
        ("3 + 4 * 5 = 23", [True]),
        ("6 / 4 = 1.5", [True]),
        ("6 / 2 = 3.5", [False]),
        ("1 + 2 = 3.9", [False]),
        ("0.1 + 2 = 3", [False]),
        ("0 / 0 = 7", [False]),
        ("-1 + 2 = 1", [True]),
        ("7 - -3 = 10", [True]),
        ("1,000 + 1 = 1001", [True]),
        ("- 12 + 7 = 19\n* 2*3=6", [True, True]),  # marks of a list
        ("1 + 2 = 3\n-3 + 4 = 1", [True, True]),
        ("Then x - 1 + 2 = 3.", []),
        ("3 + 4 = 7 + 5 = 12", []),
    ],
)
def test_equations_hold_exactly_or_not(text: str, held: list[bool]) -> None:
    assert equations(text) == held


def test_micro_and_macro_over_groups() -> None:
    figures = option_accuracy(GROUPED, ["A", "(B)", "A", "C"])
    assert figures == pytest.approx(
        {
            "option_accuracy": 2 / 4,
            "option_accuracy_macro": (2 / 3 + 0) / 2,
            "option_accuracy/x": 2 / 3,
            "option_accuracy/y": 0.0,
        }
    )
    assert option_accuracy(["A", "B"], ["A", "A"]) == {"option_accuracy": 0.5}
    assert option_accuracy(GROUPED[:2], ["A", "A"]) == {"option_accuracy": 0.5}


def test_intervals_of_groups() -> None:
    rng = np.random.default_rng(0)
    targets = [Answer("A", group="abc"[number % 3]) for number in range(300)]
    predictions = ["A" if rng.random() < 0.7 else "B" for _ in targets]
    intervals = metric_intervals(option_accuracy, targets, predictions)
    for name, interval in intervals.items():
        assert interval.low < interval.value < interval.high, name
        # A proportion of n examples has the standard error sqrt(p (1 - p) / n).
        count = 100 if "/" in name else 300
        expected = np.sqrt(interval.value * (1 - interval.value) / count)
        assert interval.standard_error == pytest.approx(expected, rel=0.15)


def test_judge_reports_groups_and_each_example_once() -> None:
    figures, rows = judge([option_accuracy], GROUPED, ["A", "B", "A", "D"])
    assert figures["option_accuracy_macro"] == pytest.approx(5 / 6)
    assert figures["option_accuracy/x_se"] > 0
    assert rows == [{"option_accuracy": value} for value in (1.0, 1.0, 0.0, 1.0)]


def test_all_right_is_not_certainly_right() -> None:
    """Resampling answers that are all right never gives another figure; Wilson's interval does."""
    right, _ = judge([exact_match, bleu], ["a b c d e"] * 20, ["a b c d e"] * 20)
    assert right["exact_match"] == 1.0 and right["exact_match_se"] == 0.0
    # n / (n + z²), the lower end for n of n.
    assert right["exact_match_low"] == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)
    assert right["exact_match_high"] == 1.0
    wrong, _ = judge([exact_match], ["a"] * 20, ["b"] * 20)
    assert wrong["exact_match_low"] == 0.0
    assert wrong["exact_match_high"] == pytest.approx(1 - right["exact_match_low"])
    # A figure of another scale keeps its own.
    assert right["bleu_low"] == right["bleu_high"] == pytest.approx(100.0)
    some, _ = judge([exact_match], ["a"] * 20, ["a", *"b" * 19])
    assert 0.0 <= some["exact_match_low"] < 0.05 < some["exact_match_high"] < 0.25


def test_an_answer_is_its_text() -> None:
    answer = Answer("yes", group="g", references=["yes", "aye"])
    assert answer == "yes" and f"{answer}" == "yes" and answer.references == ("yes", "aye")
    assert exact_match([answer], ["aye"])["exact_match"] == 1.0
    several = Answer("no", references=["the cat sat on the mat"])
    assert bleu([several], ["the cat sat on the mat"])["bleu"] == pytest.approx(100.0)
    again = pickle.loads(pickle.dumps(answer))
    assert (again, again.group, again.references) == (answer, "g", ("yes", "aye"))
    assert "first_letter" in signature("option_accuracy") and "answer_is" in signature(
        "final_answer"
    )
