"""The negative evidence lower bound (NELBO) of the absorbing process, by draws and exactly."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.diffusion.counter_random import Purpose, multiply_high, random_words
from dlm_jax.diffusion.objectives import Noised, loss_weight
from dlm_jax.diffusion.process import AbsorbingProcess, Batch
from dlm_jax.diffusion.segments import example_sums, token_counts
from dlm_jax.diffusion.time_sampling import stratified_words, time_of_word
from dlm_jax.errors import UserError, nearest

ESTIMATORS = ("time", "count")
MAX_EXACT_TOKENS = 10

TokenNll = Callable[[Noised], jax.Array]
"""Negative log-likelihood of the targets, [rows, length] float32 nats, right where absorbed."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NelboEstimate:
    """NELBO of each example; arrays are [rows, num_segments], column s for segment id s + 1.

    Attributes:
      nelbo: float32, nats per example, an upper bound of -log p(response | prompt) in expectation.
      standard_error: float32, nats; conservative, see `monte_carlo_nelbo`.
      tokens: int32, number of maskable tokens; 0 where there is no such example.
    """

    nelbo: jax.Array
    standard_error: jax.Array
    tokens: jax.Array


def monte_carlo_nelbo(
    process: AbsorbingProcess,
    token_nll: TokenNll,
    batch: Batch,
    key: jax.Array,
    *,
    num_draws: int,
    num_segments: int = 1,
    estimator: str = "time",
) -> NelboEstimate:
    """Estimates every example's NELBO of the response given the clean prompt.

    Draws are stratified per example, with an independent jitter in each stratum; an example's
    result is a function of (key, example id, its tokens), not of its neighbours. The standard error
    comes from the differences of successive draws (Wolter 2007, "Introduction to variance
    estimation", systematic sampling): the spread between strata counts only as far as neighbouring
    strata differ, so it errs on the large side. The prompt corruption of `process` does not apply.

    Args:
      process: gives the schedule and T, and so the weights of the exact bound.
      token_nll: calls the denoiser on a corrupted batch.
      batch: the batch contract, [rows, length].
      key: threefry2x32 key of the evaluation.
      num_draws: denoiser evaluations per row, 2 or more.
      num_segments: largest segment id, 1 for rows of one example.
      estimator: 'time' draws a time and masks by it. 'count' (continuous time only, where the bound
        does not depend on the schedule) draws how many tokens to mask, then which: of lower
        variance, for no draw is wasted on an empty mask and no weight exceeds the token count
        (Nie et al. 2025, LLaDA, eq. 6; Ou et al. 2024).

    Returns:
      Mean, standard error and token counts, [rows, num_segments].

    Raises:
      UserError: unknown `estimator`, 'count' in discrete time, or fewer than 2 draws.
    """
    _check_estimator(process, num_draws, estimator)
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    process = dataclasses.replace(process, prompt_corruption="none", prompt_rate=0.0)
    segment_ids = batch["segment_ids"]
    maskable = process.maskable(batch, key)
    counts, _ = token_counts(maskable, segment_ids)

    def draw_nelbo(draw: jax.Array) -> jax.Array:
        words = stratified_words(key, batch["example_ids"], draw, num_draws)
        if estimator == "count":
            masked = multiply_high(words, counts) + np.uint32(1)
            absorbed = _absorb_count(batch, maskable, masked, key, draw)
            weight = counts / masked.astype(jnp.float32)
            time = masked.astype(jnp.float32) / jnp.maximum(counts, 1)
        else:
            time = time_of_word(words, process.num_timesteps)
            absorbed = process.absorb(batch, time, key, draw)
            weight = loss_weight(process, "reciprocal", time)
        noised = _noised(process.mask_id, batch, maskable, absorbed, weight, time)
        return _segment_sums(noised.weight * token_nll(noised), segment_ids, num_segments)

    draws = jax.lax.map(draw_nelbo, jnp.arange(num_draws, dtype=jnp.uint32))
    differences = jnp.square(jnp.diff(draws, axis=0)).mean(axis=0)
    return NelboEstimate(
        nelbo=draws.mean(axis=0),
        standard_error=jnp.sqrt(differences / (2 * num_draws)),
        tokens=example_sums(maskable, segment_ids, num_segments + 1)[:, 1:],
    )


def exact_nelbo(process: AbsorbingProcess, token_nll: TokenNll, batch: Batch) -> np.ndarray:
    """The NELBO of each row by enumeration of all masks, the oracle of estimators and samplers.

    Sums over the masks M of a row's n maskable tokens P-weighted terms c(|M|)·Σ_{i in M} nll_i with
      c(k) = Σ_s λ_s·p_s^k·(1 - p_s)^(n-k),  p_s = 1 - α_s,  λ_s = (α_{s-1} - α_s)/(1 - α_s)
    in discrete time, and c(k) = 1/(k·C(n, k)) in continuous time, for any schedule.

    Args:
      process: gives the schedule and T.
      token_nll: calls the denoiser on a corrupted batch (2**n rows at once).
      batch: the batch contract, [rows, length], one example a row.

    Returns:
      [rows] float64 NumPy array, nats; 0 for rows without a maskable token.

    Raises:
      ValueError: a row has more than 10 maskable tokens or more than one example.
    """
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    if arrays["segment_ids"].max(initial=0) > 1:
        raise ValueError("exact_nelbo takes one example a row")
    return np.array(
        [
            _exact_row(process, token_nll, {name: array[row] for name, array in arrays.items()})
            for row in range(len(arrays["tokens"]))
        ]
    )


def _exact_row(
    process: AbsorbingProcess, token_nll: TokenNll, example: dict[str, np.ndarray]
) -> float:
    where = np.flatnonzero(example["maskable"] & (example["segment_ids"] > 0))
    n = len(where)
    if n > MAX_EXACT_TOKENS:
        raise ValueError(f"{n} maskable tokens: enumeration stops at {MAX_EXACT_TOKENS}")
    if n == 0:
        return 0.0
    masks = np.zeros((2**n, len(example["tokens"])), bool)
    masks[:, where] = list(itertools.product((False, True), repeat=n))
    rows = {name: jnp.asarray(np.tile(array, (2**n, 1))) for name, array in example.items()}
    ones = jnp.ones(masks.shape, jnp.float32)
    noised = _noised(process.mask_id, rows, rows["maskable"], jnp.asarray(masks), ones, ones)
    nll = np.where(masks, np.asarray(token_nll(noised), np.float64), 0.0).sum(axis=1)
    coefficients = _mask_coefficients(process, n)
    return float(coefficients[masks.sum(axis=1)] @ nll)


def _mask_coefficients(process: AbsorbingProcess, n: int) -> np.ndarray:
    """c(k) of `exact_nelbo` for k = 0..n; c(0) multiplies an empty sum."""
    steps = process.num_timesteps
    if steps is None:
        return np.array([0.0, *(1 / (k * math.comb(n, k)) for k in range(1, n + 1))])
    t = jnp.arange(1, steps + 1, dtype=jnp.float32) / steps
    p = np.asarray(process.mask_probability(t), np.float64)
    weight = np.asarray(process.schedule.unmasking_probability(t, 1.0 / steps), np.float64)
    return np.array([(weight * p**k * (1 - p) ** (n - k)).sum() for k in range(n + 1)])


def _check_estimator(process: AbsorbingProcess, num_draws: int, estimator: str) -> None:
    if estimator not in ESTIMATORS:
        raise UserError(
            f"estimator={estimator!r} is none of {', '.join(ESTIMATORS)}"
            f"{nearest(str(estimator), ESTIMATORS)}"
        )
    if estimator == "count" and process.num_timesteps is not None:
        raise UserError(
            f"estimator='count' needs continuous time, not num_timesteps={process.num_timesteps!r}"
        )
    if num_draws < 2:
        raise UserError(f"num_draws={num_draws!r} must be 2 or more, for a standard error")


def _absorb_count(
    batch: Batch, maskable: jax.Array, masked: jax.Array, key: jax.Array, draw: jax.Array
) -> jax.Array:
    """Absorbs a uniformly random subset of `masked` [rows, length] maskable tokens per example."""
    words, _ = random_words(key, Purpose.CORRUPTION, draw, batch["example_ids"], batch["positions"])
    segment_ids = batch["segment_ids"]
    # Sorted by example and then by random word, a token's rank is its place minus the example's.
    group = jnp.where(maskable, segment_ids, 0)
    order = jnp.lexsort((words, group), axis=-1)
    place = jnp.argsort(order, axis=-1)
    sizes = example_sums(jnp.ones_like(group), group, group.shape[1] + 1)
    starts = jnp.cumsum(sizes, axis=1) - sizes
    rank = place - jnp.take_along_axis(starts, group, axis=1)
    return maskable & (rank.astype(jnp.uint32) < masked)


def _segment_sums(values: jax.Array, segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """[rows, num_segments] sums; a contraction, so that float sums have one order everywhere."""
    member = segment_ids[..., None] == jnp.arange(1, num_segments + 1, dtype=jnp.int32)
    return jnp.where(member, values[..., None], 0.0).sum(axis=1)


def _noised(
    mask_id: int,
    batch: Batch,
    maskable: jax.Array,
    absorbed: jax.Array,
    weight: jax.Array,
    time: jax.Array,
) -> Noised:
    sequences = jnp.float32(absorbed.shape[0])
    return Noised(
        tokens=jnp.where(absorbed, jnp.int32(mask_id), batch["tokens"]),
        targets=batch["tokens"],
        positions=batch["positions"],
        segment_ids=batch["segment_ids"],
        example_ids=batch["example_ids"],
        maskable=maskable,
        absorbed=absorbed,
        weight=jnp.where(absorbed, weight, 0.0),
        smoothing_weight=jnp.zeros(absorbed.shape, jnp.float32),
        time=time,
        weight_sum=sequences,
        sequences=sequences,
    )
