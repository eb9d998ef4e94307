"""Evaluation by likelihood: the NELBO of held-out examples, with standard errors over examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dlm_jax.errors import UserError

if TYPE_CHECKING:
    from dlm_jax.diffusion.likelihood import NelboEstimate

NORMAL_95 = 1.96
"""Half the width of a normal distribution's 95% interval, in standard deviations."""


def ratio_with_standard_error(
    numerators: np.ndarray, denominators: np.ndarray
) -> tuple[float, float]:
    """Returns the ratio R = Σx/Σy of paired values [n] and its standard error.

    The delta method over examples drawn independently (Cochran 1977, eq. 2.45, without the finite
    population correction): se² = n/(n−1) · Σ(x_i − R·y_i)² / (Σy)². It is NaN for one example.

    Raises:
      ValueError: no values, unequal shapes, or denominators that do not add up to more than 0.
    """
    x, y = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"ratio of shapes {x.shape} and {y.shape}")
    total = float(y.sum())
    if not total > 0:
        raise ValueError(f"ratio: the denominators add up to {total}")
    ratio = float(x.sum()) / total
    if len(x) == 1:
        return ratio, math.nan
    residual = float(np.square(x - ratio * y).sum())
    return ratio, math.sqrt(residual * len(x) / (len(x) - 1)) / total


@dataclasses.dataclass(frozen=True)
class NelboResult:
    """NELBO of each of a set of examples.

    Attributes:
      example_ids: int64 [examples], indices in the dataset, ascending.
      nats: float64 [examples], an upper bound on −log p of the maskable tokens given the rest.
      tokens: int64 [examples], maskable tokens.
      draw_errors: float64 [examples], standard error of `nats` over the draws, or None.
      characters: int64 [examples] of the text that the maskable tokens spell, or None.
      exact: whether `nats` is −log p itself, as causal models give it; figures are named so.
    """

    example_ids: np.ndarray
    nats: np.ndarray
    tokens: np.ndarray
    draw_errors: np.ndarray | None = None
    characters: np.ndarray | None = None
    exact: bool = False

    @property
    def per_token(self) -> tuple[float, float]:
        """Total nats over total maskable tokens, and its standard error (nats/token).

        The error is over examples, so it holds the noise of the Monte-Carlo draws as well.
        """
        return ratio_with_standard_error(self.nats, self.tokens)

    @property
    def per_example(self) -> tuple[float, float]:
        """Mean over examples of their nats, and its standard error (nats/example)."""
        return ratio_with_standard_error(self.nats, np.ones(len(self.nats)))

    @property
    def bits_per_character(self) -> tuple[float, float] | None:
        """Total bits over total characters, and its standard error; None without text."""
        if self.characters is None:
            return None
        return ratio_with_standard_error(self.nats / math.log(2.0), self.characters)

    def metrics(self) -> dict[str, float]:
        """Returns the figures by name, each `<name>_se` the standard error of `<name>`.

        `nelbo` (nats/token), `nelbo_per_example` (nats), `perplexity_bound` = exp(nelbo),
        `bits_per_character` where text was given, `maskable_tokens` and `n`; and
        `nelbo_draws_se` (nats/token), the part of `nelbo_se` that more draws would remove.
        Where no bound was needed they are `nll`, `nll_per_example` and `perplexity`. A perplexity
        has the ends of its interval too, `<name>_low` and `<name>_high` (95%): those of its
        exponent, because its own error is not symmetric and would reach below 1.
        """
        name, perplexity_name = ("nelbo", "perplexity_bound")
        if self.exact:
            name, perplexity_name = ("nll", "perplexity")
        nats, error = self.per_token
        figures = {name: nats, f"{name}_se": error}
        figures[f"{name}_per_example"], figures[f"{name}_per_example_se"] = self.per_example
        if self.draw_errors is not None:
            noise = math.sqrt(float(np.square(self.draw_errors).sum()))
            figures["nelbo_draws_se"] = noise / float(self.tokens.sum())
        perplexity = _exponential(nats)
        figures[perplexity_name] = perplexity
        figures[f"{perplexity_name}_se"] = perplexity * error
        figures[f"{perplexity_name}_low"] = _exponential(nats - NORMAL_95 * error)
        figures[f"{perplexity_name}_high"] = _exponential(nats + NORMAL_95 * error)
        bits = self.bits_per_character
        if bits is not None:
            figures["bits_per_character"], figures["bits_per_character_se"] = bits
        figures["maskable_tokens"] = float(self.tokens.sum())
        figures["n"] = float(len(self.nats))
        # One example has no spread: JSON has no NaN to say so.
        return {name: value for name, value in figures.items() if not math.isnan(value)}


def _exponential(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def _identities(batch: Mapping[str, Any], num_segments: int) -> np.ndarray:
    """Returns the example id of each segment of each row, int64 [rows, num_segments]."""
    segments = np.asarray(batch["segment_ids"])
    if segments.max(initial=0) > num_segments:
        raise ValueError(f"{segments.max()} segments in a row, and a NELBO of {num_segments}")
    ids = np.asarray(batch["example_ids"]).astype(np.int64)
    first = np.stack([(segments == s + 1).argmax(axis=1) for s in range(num_segments)], axis=1)
    return np.take_along_axis(ids, first, axis=1)


def _columns(
    result: NelboEstimate | np.ndarray, batch: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns nats, maskable tokens and errors of the draws, each [rows, num_segments]."""
    if not isinstance(result, np.ndarray):
        nats = np.asarray(result.nelbo, np.float64)
        return nats, np.asarray(result.tokens), np.asarray(result.standard_error, np.float64)
    segments = np.asarray(batch["segment_ids"])
    if result.shape != segments.shape[:1]:
        raise ValueError(f"NELBO of shape {result.shape} for {len(segments)} rows")
    tokens = (np.asarray(batch["maskable"]) & (segments > 0)).sum(axis=1)
    nats = result.astype(np.float64)[:, None]
    return nats, tokens[:, None], np.full_like(nats, math.nan)


def _scores(
    result: NelboEstimate | np.ndarray, batch: Mapping[str, Any]
) -> list[tuple[int, float, int, float]]:
    """Example id, nats, tokens and error of the draws of each example with a token to score."""
    nats, tokens, errors = _columns(result, batch)
    ids = _identities(batch, tokens.shape[1])
    return [
        (int(ids[place]), float(nats[place]), int(tokens[place]), float(errors[place]))
        for place in zip(*np.nonzero(tokens))
    ]


def evaluate_nelbo(
    estimate: Callable[[Mapping[str, Any]], NelboEstimate | np.ndarray],
    batches: Iterable[Mapping[str, Any]],
    *,
    texts: Sequence[str] | Mapping[int, str] | None = None,
    exact: bool = False,
    progress: Callable[[int], None] | None = None,
) -> NelboResult:
    """Estimates the NELBO of every example of the evaluation batches.

    Examples without a maskable token have nothing to score and are left out. In a run of several
    processes each scores some of the batches, and all get the result.

    Args:
      estimate: maps a batch to the NELBO of each of its examples, [rows, segments]: a partial of
        `dlm_jax.diffusion.likelihood.monte_carlo_nelbo`, whose strata run over the draws of one
        example, so that no figure depends on how examples share batches. Or to a NumPy array
        [rows] of nats where a row holds one example; the errors of the draws are then unknown.
      batches: batches [batch, length]; padding is skipped.
      texts: the text that the maskable tokens of an example spell, by example id, for bits per
        character (`</s>` counts in the bits, and not in the characters).
      exact: whether `estimate` gives −log p itself.
      progress: called with the examples that this process has done after each batch.

    Raises:
      UserError: no example with a maskable token, a NELBO that is not finite, or an example
        that comes twice.
      ValueError: a row holds more examples than `estimate` has columns, or an array is not [rows].
    """
    from dlm_jax.parallel import multihost  # imports JAX

    done = 0

    def score(batch: Mapping[str, Any]) -> list[tuple[int, float, int, float]]:
        nonlocal done
        rows = _scores(estimate(batch), batch)
        done += len(rows)
        if progress is not None:
            progress(done)
        return rows

    scored: dict[int, tuple[float, int, float]] = {}
    for rows in multihost.share_out("likelihood", batches, score):
        for example_id, nats, tokens, error in rows:
            if not math.isfinite(nats):
                raise UserError(f"the NELBO of evaluation example {example_id} is {nats}")
            if example_id in scored:
                raise UserError(f"evaluation example {example_id} comes twice")
            scored[example_id] = (nats, tokens, error)
    if not scored:
        raise UserError("likelihood: no evaluation example has a token to score")
    order = sorted(scored)
    nats_of, tokens_of, errors_of = zip(*(scored[example_id] for example_id in order))
    lengths = None if texts is None else [len(texts[example_id]) for example_id in order]
    return NelboResult(
        example_ids=np.array(order, np.int64),
        nats=np.array(nats_of, np.float64),
        tokens=np.array(tokens_of, np.int64),
        draw_errors=None if np.isnan(errors_of).any() else np.array(errors_of, np.float64),
        characters=None if lengths is None else np.array(lengths, np.int64),
        exact=exact,
    )


def nelbo_difference(first: NelboResult, second: NelboResult) -> tuple[float, float]:
    """Returns `second − first` in nats/token and its standard error, paired by example.

    Pairing removes the spread between easy and hard examples, common to both.

    Raises:
      ValueError: the two were not computed on the same tokens of the same examples.
    """
    same = np.array_equal(first.example_ids, second.example_ids) and np.array_equal(
        first.tokens, second.tokens
    )
    if not same:
        raise ValueError("the two NELBOs are not of the same examples")
    return ratio_with_standard_error(second.nats - first.nats, first.tokens)
