"""The choice among candidates against definitions written out, and identities of replicates."""

from __future__ import annotations

import itertools
import math

import pytest
import sacrebleu

from dlm_jax.errors import UserError
from dlm_jax.sampling.choice import (
    UTILITIES,
    candidates,
    check_replicates,
    choose,
    expected_utilities,
    replicate_id,
)
from dlm_jax.sampling.policy import Policy

TEXTS = ["the cat sat on a mat", "the cat sat on the mat", "a dog", "the cat sat on the mat", ""]


def subsequence(left, right):
    """Longest common subsequence by trying all of them."""
    return max(
        size
        for size in range(len(left) + 1)
        for part in itertools.combinations(left, size)
        if any(part == other for other in itertools.combinations(right, size))
    )


def rouge(text, reference):
    given, expected = text.split(), reference.split()
    if not given or not expected:
        return 100.0 * (given == expected)
    return 200 * subsequence(given, expected) / (len(given) + len(expected))


DEFINITIONS = {
    "bleu": lambda text, reference: sacrebleu.sentence_bleu(text, [reference]).score,
    "rougeL": rouge,
    "exact_match": lambda text, reference: float(text == reference),
}


@pytest.mark.parametrize("utility", UTILITIES)
def test_expected_utility_is_the_mean_over_all_other_candidates(utility: str) -> None:
    measure = DEFINITIONS[utility]
    expected = [
        sum(measure(text, other) for j, other in enumerate(TEXTS) if j != i) / (len(TEXTS) - 1)
        for i, text in enumerate(TEXTS)
    ]
    assert expected_utilities(TEXTS, utility) == pytest.approx(expected)
    assert expected_utilities(["alone"], utility) == [0.0]
    scores = [-3.0, -2.0, -0.1, -1.0, -0.2]
    best = max(range(5), key=lambda i: (round(expected[i], 6), scores[i]))
    assert choose(TEXTS, scores, [0.0] * 5, utility) == best == (0 if utility == "rougeL" else 3)


def test_a_majority_beats_the_likeliest_and_a_tie_goes_to_the_better_score() -> None:
    texts, scores = ["7", "12", " 12", "7 1"], [-0.1, -0.9, -0.8, -0.05]
    joints = [-9.0, -1.0, -2.0, -3.0]
    assert choose(texts, scores, joints, "exact_match") == 2
    assert choose(texts, scores, joints, "mean") == 3
    assert choose(texts, scores, joints, "joint") == 1
    assert choose(["a", "b"], [-1.0, -0.5], [0.0, 0.0], "exact_match") == 1
    assert choose(["", ""], [-math.inf, -math.inf], [-1.0, -1.0], "mean") == 0


def test_an_unknown_choice_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"rerank is 'blue', none of .* \(did you mean bleu\?\)"):
        choose(["a"], [0.0], [0.0], "blue")


@pytest.mark.parametrize(
    ("strategy", "temperature", "random"),
    [
        ("reparam-uncond-deterministic-cosine", 0.0, False),
        ("reparam-uncond-deterministic-cosine", 0.3, True),
        ("reparam-cond-stochastic1.0-linear", 0.0, True),
        ("cmlm", 0.0, True),
        ("left-to-right", 0.0, False),
    ],
)
def test_replicates_need_noise(strategy: str, temperature: float, random: bool) -> None:
    policy = Policy.parse(strategy, temperature=temperature)
    check_replicates(1, policy)
    if random:
        check_replicates(4, policy)
    else:
        with pytest.raises(UserError, match="mbr is 4, but a deterministic strategy"):
            check_replicates(4, policy)
    with pytest.raises(UserError, match="mbr is 0"):
        check_replicates(0, policy)


def test_a_thousand_replicates_of_a_million_rows_share_no_identity() -> None:
    assert [replicate_id(row, 0) for row in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    # Identities of replicates r and s differ by (s - r) steps, whatever the rows: the nearest that
    # two of them come is the distance between the rows that could meet.
    nearest = min(
        min(replicate_id(0, step), 2**32 - replicate_id(0, step)) for step in range(1, 1000)
    )
    assert nearest > 1_000_000


def test_candidates_are_all_lengths_of_all_prompts_so_many_times() -> None:
    rows = candidates([[(3, -0.5), (5, -1.5)], [(2, 0.0)]], 2)
    assert [tuple(row) for row in rows] == [
        (0, 3, 0, -0.5),
        (0, 3, 1, -0.5),
        (0, 5, 0, -1.5),
        (0, 5, 1, -1.5),
        (1, 2, 0, 0.0),
        (1, 2, 1, 0.0),
    ]
