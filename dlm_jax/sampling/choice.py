"""Which of several candidate answers to give: the likeliest, or the one that the others support."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dlm_jax.errors import UserError, nearest
from dlm_jax.sampling.length_prediction import Beam
from dlm_jax.sampling.policy import Policy

Utility = Callable[[str, str], float]

# A row id is moved by multiples of 2**32 over the golden ratio, which keep far from each other.
_GOLDEN = 0x9E3779B1


def replicate_id(row_id: int, replicate: int) -> int:
    """The row id of one of several draws for a row, in [0, 2**32).

    That of replicate 0 is the row's own. No two of a thousand replicates of a million rows with
    ids from 0 share one, so that no two draws share their noise.
    """
    return (row_id + replicate * _GOLDEN) % 2**32


class Candidate(NamedTuple):
    """A row of a decoding in which each prompt is answered several times.

    Attributes:
      prompt: number of the prompt that it answers.
      length: tokens to write.
      replicate: number of the answer among those of the same length.
      log_prior: log-probability of the length, nats.
    """

    prompt: int
    length: int
    replicate: int
    log_prior: float


def candidates(beams: Sequence[Beam], replicates: int) -> list[Candidate]:
    """The rows of a decoding: each length of each prompt's beam, so many times."""
    return [
        Candidate(prompt, length, replicate, log_prior)
        for prompt, beam in enumerate(beams)
        for length, log_prior in beam
        for replicate in range(replicates)
    ]


def choose(
    texts: Sequence[str],
    scores: Sequence[float],
    joints: Sequence[float],
    rerank: str,
) -> int:
    """Index of the answer to give; the first where several are equally good.

    Args:
      texts: the candidates.
      scores: mean log-probability of each one's tokens when they were written, nats.
      joints: log p(length) + Σ log p of each, nats.
      rerank: 'mean' takes the best score, as in the paper; 'joint' the most probable pair of length
        and answer; a name of `UTILITIES` the candidate of the highest expected utility (minimum
        Bayes risk), the better score where two are equal.

    Raises:
      UserError: `rerank` is none of these.
    """
    check_rerank(rerank)
    if rerank == "mean":
        return max(range(len(texts)), key=lambda i: scores[i])
    if rerank == "joint":
        return max(range(len(texts)), key=lambda i: joints[i])
    expected = expected_utilities(texts, rerank)
    return max(range(len(texts)), key=lambda i: (expected[i], scores[i]))


def check_replicates(count: int, policy: Policy) -> None:
    """Raises a UserError unless so many answers of one length are worth having."""
    if count < 1:
        raise UserError(f"mbr is {count}, and must be 1 or more")
    if count > 1 and not policy.random:
        raise UserError(
            f"mbr is {count}, but a deterministic strategy at temperature 0 writes the same answer "
            "each time: set a temperature, or take a strategy with noise"
        )


def check_rerank(rerank: str) -> None:
    """Raises a UserError unless `choose` knows the name."""
    known = ("mean", "joint", *UTILITIES)
    if rerank not in known:
        raise UserError(
            f"rerank is {rerank!r}, none of {', '.join(known)}{nearest(str(rerank), known)}"
        )


def expected_utilities(texts: Sequence[str], utility: str) -> list[float]:
    """Mean utility of each candidate with each of the others as the reference.

    The other candidates stand for the model's distribution over answers (Kumar and Byrne 2004;
    Eikema and Aziz 2020). A candidate is no reference of its own; one of equal text is.

    Args:
      texts: the candidates.
      utility: a name of `UTILITIES`.

    Returns:
      One number for each; 0 for one that stands alone.
    """
    measure = UTILITIES[utility]()
    counts = collections.Counter(texts)
    others = max(1, len(texts) - 1)
    of_text = {
        text: sum(
            (count - (other == text)) * measure(text, other)
            for other, count in counts.items()
            if count > (other == text)
        )
        / others
        for text in counts
    }
    return [of_text[text] for text in texts]


def _bleu() -> Utility:
    from sacrebleu.metrics import BLEU

    scorer = BLEU(effective_order=True)
    return lambda text, reference: scorer.sentence_score(text, [reference]).score


def _rouge_l() -> Utility:
    def measure(text: str, reference: str) -> float:
        given, expected = text.lower().split(), reference.lower().split()
        if not given or not expected:
            return 100.0 * (given == expected)
        return 200.0 * _common_subsequence(given, expected) / (len(given) + len(expected))

    return measure


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    lengths = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]


def _exact_match() -> Utility:
    return lambda text, reference: float(text.split() == reference.split())


# Each takes (candidate, reference): sentence BLEU (sacreBLEU, 0 to 100), the F-measure of the
# longest common subsequence of words in any script (ROUGE-L, Lin 2004, 0 to 100), and equality but
# for white space, under which the expected utility is a majority vote.
UTILITIES: dict[str, Callable[[], Utility]] = {
    "bleu": _bleu,
    "rougeL": _rouge_l,
    "exact_match": _exact_match,
}
