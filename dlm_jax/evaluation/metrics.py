"""Metrics of generated text, each `fn(targets, predictions) -> dict`, with bootstrap intervals.

A target is one reference string or several; where there are several, the best one counts (BLEU and
ROUGE: the definitions of their libraries). Where targets are `Answer`s with a group, for example a
subject of MMLU, the accuracies and F1 are also given for each group and as their mean. BLEU and
ROUGE are on the published scale of 0 to 100; the accuracies and F1 are fractions of 1.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from dlm_jax.evaluation.answers import (
    Answer,
    chosen_option,
    conclusion,
    equations,
    last_number,
    normalize_answer,
    normalize_whitespace,
)

Target = str | Sequence[str]
MetricFunction = Callable[..., Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure with its uncertainty over examples, all in the unit of the figure.

    Attributes:
      value: the figure on all examples.
      standard_error: standard deviation over resamples, or of a proportion.
      low: lower end of the interval.
      high: upper end of the interval.
      level: nominal coverage, e.g. 0.95.
    """

    value: float
    standard_error: float
    low: float
    high: float
    level: float


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a corpus figure is made of: additive statistics of each example.

    Attributes:
      per_example: float64 [examples, k]; for the figure of a group its examples alone.
      figure: maps their sum over examples [k] to the figure.
    """

    per_example: np.ndarray
    figure: Callable[[np.ndarray], float]

    @property
    def value(self) -> float:
        """The figure on all examples."""
        return float(self.figure(self.per_example.sum(axis=0)))


def _references(
    targets: Sequence[Target], predictions: Sequence[str], metric: str
) -> list[list[str]]:
    if len(targets) != len(predictions):
        raise ValueError(f"{metric}: {len(targets)} targets but {len(predictions)} predictions")
    if not len(targets):
        raise ValueError(f"{metric}: no examples")
    references = [_alternatives(target) for target in targets]
    for index, alternatives in enumerate(references):
        if not alternatives:
            raise ValueError(f"{metric}: example {index} has no reference")
    return references


def _alternatives(target: Target) -> list[str]:
    if isinstance(target, Answer):
        return list(target.references)
    return [target] if isinstance(target, str) else list(target)


def _f1(target: str, prediction: str) -> float:
    expected, given = normalize_answer(target), normalize_answer(prediction)
    if not expected or not given:
        return float(expected == given)
    shared = sum((collections.Counter(expected) & collections.Counter(given)).values())
    return 2.0 * shared / (len(expected) + len(given))


def _numbers_equal(target: str, prediction: str) -> float:
    expected = last_number(target)
    return float(expected is not None and expected == last_number(prediction))


def _same_text(target: str, prediction: str) -> float:
    return float(normalize_whitespace(target) == normalize_whitespace(prediction))


def _best_reference(
    name: str,
    score: Callable[[str, str], float],
    targets: Sequence[Target],
    predictions: Sequence[str],
) -> dict[str, Statistics]:
    references = _references(targets, predictions, name)
    best = [
        max(score(reference, prediction) for reference in alternatives)
        for alternatives, prediction in zip(references, predictions)
    ]
    count = len(best)
    overall = Statistics(np.array(best)[:, None], lambda sums: sums[0] / count)
    return {name: overall, **_by_group(name, np.array(best), targets)}


def _by_group(name: str, scores: np.ndarray, targets: Sequence[Target]) -> dict[str, Statistics]:
    """Returns `<name>_macro`, the mean over groups, and `<name>/<group>`; nothing for one group.

    A resample that draws no example of a group leaves that group out of its mean.
    """
    groups = [target.group if isinstance(target, Answer) else None for target in targets]
    names = sorted({group for group in groups if group is not None})
    if len(names) < 2:
        return {}
    member = np.array([[group == one for one in names] for group in groups], np.float64)

    def macro(sums: np.ndarray) -> float:
        right, counts = sums[: len(names)], sums[len(names) :]
        return float(np.mean(right[counts > 0] / counts[counts > 0]))

    measured = {f"{name}_macro": Statistics(np.hstack([member * scores[:, None], member]), macro)}
    for column, group in enumerate(names):
        inside = scores[member[:, column] > 0]
        rows = np.stack([inside, np.ones_like(inside)], axis=1)
        measured[f"{name}/{group}"] = Statistics(rows, lambda sums: float(sums[0] / sums[1]))
    return measured


def _same_option(target: str, prediction: str) -> float:
    expected = chosen_option(target)
    return float(expected is not None and expected == chosen_option(prediction))


def _same_conclusion(target: str, prediction: str) -> float:
    return _same_text(conclusion(target), conclusion(prediction))


def _same_equations_hold(target: str, prediction: str) -> float:
    held = equations(prediction)
    return float(len(held) == len(equations(target)) > 0 and all(held))


_exact_match_statistics = functools.partial(_best_reference, "exact_match", _same_text)
_token_f1_statistics = functools.partial(_best_reference, "token_f1", _f1)
_numeric_answer_statistics = functools.partial(_best_reference, "numeric_answer", _numbers_equal)
_option_accuracy_statistics = functools.partial(_best_reference, "option_accuracy", _same_option)
_final_answer_statistics = functools.partial(_best_reference, "final_answer", _same_conclusion)
_equations_statistics = functools.partial(
    _best_reference, "equations_correct", _same_equations_hold
)


def _rouge_statistics(
    targets: Sequence[Target], predictions: Sequence[str], *, use_stemmer: bool = True
) -> dict[str, Statistics]:
    from rouge_score import rouge_scorer

    references = _references(targets, predictions, "rouge")
    types = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(types, use_stemmer=use_stemmer)
    scores = [
        scorer.score_multi(alternatives, prediction)
        for alternatives, prediction in zip(references, predictions)
    ]
    count = len(scores)
    return {
        name: Statistics(
            np.array([[100.0 * score[name].fmeasure] for score in scores]),
            lambda sums: sums[0] / count,
        )
        for name in types
    }


# That of sacreBLEU's own corpus score. Left out, an order without a match makes the whole figure 0.
_BLEU_SMOOTHING = "exp"
_BLEU_CASES = {"bleu": False, "bleu_lowercase": True}


def _bleu_statistics(
    targets: Sequence[Target], predictions: Sequence[str], *, tokenize: str = "13a"
) -> dict[str, Statistics]:
    from sacrebleu.metrics import BLEU

    references = _references(targets, predictions, "bleu")

    def figure(sums: np.ndarray) -> float:
        counts = [int(value) for value in sums]
        return BLEU.compute_bleu(
            correct=counts[2:6],
            total=counts[6:10],
            sys_len=counts[0],
            ref_len=counts[1],
            smooth_method=_BLEU_SMOOTHING,
        ).score

    measured = {}
    for name, lowercase in _BLEU_CASES.items():
        # The counts do not depend on the effective order, which only silences a warning here.
        scorer = BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)
        rows = []
        for alternatives, prediction in zip(references, predictions):
            score = scorer.sentence_score(prediction, alternatives)
            rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
        measured[name] = Statistics(np.array(rows, np.float64), figure)
    return measured


def bleu(
    targets: Sequence[Target], predictions: Sequence[str], *, tokenize: str = "13a"
) -> dict[str, float]:
    """Corpus BLEU of sacreBLEU (Post 2018), 0 to 100, as written and lower-cased.

    Args:
      targets: one reference or several for each example.
      predictions: one text for each example.
      tokenize: sacreBLEU tokenizer ('13a', 'intl', 'zh', 'ja-mecab', 'char', …).

    Returns:
      `bleu` (case:mixed) and `bleu_lowercase` (case:lc); `signature` says how they were computed.

    Raises:
      ValueError: no examples, unequal lengths, or an example without a reference.
    """
    return _values(_bleu_statistics(targets, predictions, tokenize=tokenize))


def signature(name: str, *, references: int | None = 1, tokenize: str = "13a") -> str:
    """Returns the signature that belongs beside a published figure of this module.

    Args:
      name: a figure's name, such as 'bleu', 'bleu_lowercase', 'rougeL' or 'exact_match'.
      references: references for each example; None where the number varies.
      tokenize: sacreBLEU tokenizer the figure was computed with.

    Raises:
      ValueError: `name` is no figure of this module.
    """
    if name in _BLEU_CASES:
        from sacrebleu.version import __version__

        case = "lc" if _BLEU_CASES[name] else "mixed"
        nrefs = "var" if references is None else references
        smooth = _BLEU_SMOOTHING
        return (
            f"nrefs:{nrefs}|case:{case}|eff:no|tok:{tokenize}|smooth:{smooth}|version:{__version__}"
        )
    if name in ("rouge1", "rouge2", "rougeL"):
        from importlib.metadata import version

        return (
            f"{name}|measure:f|stemmer:porter|aggregate:mean|rouge-score:{version('rouge-score')}"
        )
    described = {
        "exact_match": "exact_match|case:mixed|unicode:NFC|whitespace:normalized",
        "token_f1": "token_f1|case:lc|punctuation:dropped|articles:dropped|aggregate:mean",
        "numeric_answer": "numeric_answer|last_number|commas:dropped",
        "option_accuracy": "option_accuracy|first_letter",
        "equations_correct": "equations_correct|a_op_b_op_c=d|exact|all|as_many_as_the_reference",
        "final_answer": "final_answer|after:last_answer_is|case:mixed|full_stop:dropped",
    }
    if name not in described:
        raise ValueError(f"no signature for {name!r}")
    return described[name]


def rouge(
    targets: Sequence[Target], predictions: Sequence[str], *, use_stemmer: bool = True
) -> dict[str, float]:
    """Mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin 2004; package rouge-score), 0 to 100.

    The tokenizer of the package keeps ASCII letters and digits only: text in other scripts
    scores 0. With several references the best F-measure of each type counts.

    Raises:
      ValueError: no examples, unequal lengths, or an example without a reference.
    """
    return _values(_rouge_statistics(targets, predictions, use_stemmer=use_stemmer))


def exact_match(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Fraction of predictions equal to a reference after `normalize_whitespace`.

    Raises:
      ValueError: no examples, unequal lengths, or an example without a reference.
    """
    return _values(_exact_match_statistics(targets, predictions))


def token_f1(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of the bags of words left by `normalize_answer` (SQuAD, Rajpurkar et al. 2016).

    Two empty answers agree (1), an empty and a non-empty one do not (0).

    Raises:
      ValueError: no examples, unequal lengths, or an example without a reference.
    """
    return _values(_token_f1_statistics(targets, predictions))


def numeric_answer(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Fraction of predictions whose last number equals the last number of a reference.

    Commas between digits are dropped and values compared (`1,200` = `1200.0`), as reasoning
    answers are scored in DLM (arXiv 2308.12219). A reference without a number is never met.

    Raises:
      ValueError: no examples, unequal lengths, or an example without a reference.
    """
    return _values(_numeric_answer_statistics(targets, predictions))


def option_accuracy(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Fraction of predictions that begin with the letter of the right option (`chosen_option`).

    Over all examples (micro), and where targets have groups also `option_accuracy_macro`, the mean
    over groups, and `option_accuracy/<group>`.

    Raises:
      ValueError: no examples, unequal lengths, or an example without a reference.
    """
    return _values(_option_accuracy_statistics(targets, predictions))


def final_answer(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Fraction of predictions whose `conclusion` equals that of a reference, white space aside.

    Raises:
      ValueError: no examples, unequal lengths, or an example without a reference.
    """
    return _values(_final_answer_statistics(targets, predictions))


def equations_correct(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Fraction of predictions with as many equations as a reference, all of which hold.

    An equation is a chain of numbers with +, -, * and / that is said to equal a number; whether it
    is the right one for the question is not asked. A reference without an equation is never met.

    Raises:
      ValueError: no examples, unequal lengths, or an example without a reference.
    """
    return _values(_equations_statistics(targets, predictions))


def _values(measured: Mapping[str, Statistics]) -> dict[str, float]:
    return {name: statistics.value for name, statistics in measured.items()}


_STATISTICS: dict[Any, Callable[..., dict[str, Statistics]]] = {
    bleu: _bleu_statistics,
    rouge: _rouge_statistics,
    exact_match: _exact_match_statistics,
    token_f1: _token_f1_statistics,
    numeric_answer: _numeric_answer_statistics,
    option_accuracy: _option_accuracy_statistics,
    final_answer: _final_answer_statistics,
    equations_correct: _equations_statistics,
}


def statistics(
    metric: MetricFunction, targets: Sequence[Target], predictions: Sequence[str]
) -> dict[str, Statistics] | None:
    """Returns the additive statistics behind a metric of this module, or None for another.

    A `functools.partial` of a metric of this module counts as one.
    """
    function: Any = metric
    keywords: Mapping[str, Any] = {}
    if isinstance(metric, functools.partial) and not metric.args:
        function, keywords = metric.func, metric.keywords
    extract = _STATISTICS.get(function)
    return None if extract is None else extract(targets, predictions, **keywords)


def bootstrap_interval(
    per_example: np.ndarray | Sequence[float] | Sequence[Sequence[float]],
    figure: Callable[[np.ndarray], float] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over examples (Efron & Tibshirani 1993, ch. 13).

    Args:
      per_example: [examples] or [examples, k], additive statistics of each example.
      figure: maps their sum over examples [k] to the figure; the mean where omitted (k = 1).
      resamples: bootstrap resamples.
      level: nominal coverage.
      seed: of the resampling; the same seed gives the same interval.

    Raises:
      ValueError: no examples, a level outside (0, 1), or `figure` omitted with k > 1.
    """
    rows = np.asarray(per_example, np.float64)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"bootstrap needs [examples] or [examples, k], got shape {rows.shape}")
    if not 0.0 < level < 1.0 or resamples < 2:
        raise ValueError(f"bootstrap: level {level} or resamples {resamples} out of range")
    count = len(rows)
    if figure is None:
        if rows.shape[1] != 1:
            raise ValueError("bootstrap over several statistics needs the figure made of them")
        figure = _mean_of(count)
    generator = np.random.default_rng(seed)
    uniform = np.full(count, 1.0 / count)
    values = [
        figure(generator.multinomial(count, uniform).astype(np.float64) @ rows)
        for _ in range(resamples)
    ]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Interval(
        value=float(figure(rows.sum(axis=0))),
        standard_error=float(np.std(values, ddof=1)),
        low=float(low),
        high=float(high),
        level=level,
    )


def _mean_of(count: int) -> Callable[[np.ndarray], float]:
    return lambda sums: float(sums[0]) / count


def wilson_interval(successes: float, count: int, *, level: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927): never empty, also where all or none succeed.

    Raises:
      ValueError: no trials, or a level outside (0, 1).
    """
    if count < 1 or not 0 <= successes <= count or not 0.0 < level < 1.0:
        raise ValueError(f"wilson: {successes} of {count} at level {level} is no proportion")
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    half = z * spread / (1 + z * z / count)
    return Interval(
        value=share,
        standard_error=math.sqrt(share * (1 - share) / count),
        # Exactly, whatever the rounding of the formula.
        low=centre - half if successes else 0.0,
        high=centre + half if successes < count else 1.0,
        level=level,
    )


def metric_intervals(
    metric: MetricFunction,
    targets: Sequence[Target],
    predictions: Sequence[str],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Bootstrap intervals of each figure of a metric of this module; empty for another metric.

    Raises:
      ValueError: no examples, unequal lengths, or an example without a reference.
    """
    measured = statistics(metric, targets, predictions) or {}
    return {
        name: bootstrap_interval(
            entry.per_example, entry.figure, resamples=resamples, level=level, seed=seed
        )
        for name, entry in measured.items()
    }
