"""How the times of the forward process are drawn, for training and for evaluation.

A time is a function of (key, draw, example id) alone. It is drawn as a 32-bit fixed-point number,
so that nothing is lost however many examples have gone by, and then mapped to (0, 1] or to the
steps {1/T, ..., 1}.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.diffusion.counter_random import (
    Purpose,
    as_uint32,
    multiply_high,
    positive_uniform,
    random_words,
)
from dlm_jax.errors import UserError, nearest

# 2**32 divided by the golden ratio: the additive recurrence of least discrepancy in one dimension.
GOLDEN = np.uint32(2654435769)
# The two-dimensional analogue, 2**32/g and 2**32/g**2 with g**3 = g + 1 (Roberts 2018, "R2").
PLASTIC = (np.uint32(3242174889), np.uint32(2447445413))

MAX_BINS = 1024


class TimeDraw(NamedTuple):
    """Times and what makes an average over them unbiased.

    Attributes:
      t: [...] float32 in (0, 1]; a multiple of 1/T when time is discrete.
      importance: [...] float32, uniform density over the density that t was drawn from.
    """

    t: jax.Array
    importance: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImportanceState:
    """The loss-second-moment table.

    Attributes:
      second_moment: [bins] float32, running mean of the squared per-example loss by time bin.
      observations: [bins] float32, how many losses each bin has seen.
    """

    second_moment: jax.Array
    observations: jax.Array


class TimeSampling(Protocol):
    """Draws one or two times for every example."""

    def times(
        self,
        key: jax.Array,
        draw: jax.typing.ArrayLike,
        example_ids: jax.Array,
        num_timesteps: int | None,
        *,
        pair: bool = False,
        state: ImportanceState | None = None,
    ) -> tuple[TimeDraw, ...]:
        """One `TimeDraw` of the shape of `example_ids`, or two independent ones with `pair`."""


def time_of_word(words: jax.Array, num_timesteps: int | None) -> jax.Array:
    """Maps uniform uint32 words monotonically to uniform times, float32 in (0, 1]."""
    if num_timesteps is None:
        return positive_uniform(words)
    return _step_times(num_timesteps)[multiply_high(words, num_timesteps)]


def _step_times(num_timesteps: int) -> jax.Array:
    """1/T, 2/T, ..., 1. A table, for division may round differently in vectors of another length,
    and the same example has to get the same mask in any batch.
    """
    return jnp.asarray(np.arange(1, num_timesteps + 1) / num_timesteps, jnp.float32)


def _uniform_draws(words: tuple[jax.Array, ...], num_timesteps: int | None) -> tuple[TimeDraw, ...]:
    times = (time_of_word(word, num_timesteps) for word in words)
    return tuple(TimeDraw(t, jnp.ones_like(t)) for t in times)


def _recurrence_words(
    key: jax.Array, draw: jax.typing.ArrayLike, example_ids: jax.Array, pair: bool
) -> tuple[jax.Array, ...]:
    shifts = random_words(key, Purpose.SHIFT, draw, np.uint32(0), np.uint32(0))
    multipliers = PLASTIC if pair else (GOLDEN,)
    ids = as_uint32(example_ids)
    return tuple(shift + ids * step for shift, step in zip(shifts, multipliers))


@dataclasses.dataclass(frozen=True)
class LowDiscrepancy:
    """The n-th example of the stream gets time frac(shift + n·0.6180339…), with one random shift.

    The shift belongs to (key, draw): over seeds each example's time is exactly uniform, so every
    example's loss is unbiased in any order, while any window of the stream covers [0, 1] evenly.
    Pairs follow the two-dimensional R2 recurrence, with one shift a coordinate.
    """

    def times(
        self,
        key: jax.Array,
        draw: jax.typing.ArrayLike,
        example_ids: jax.Array,
        num_timesteps: int | None,
        *,
        pair: bool = False,
        state: ImportanceState | None = None,
    ) -> tuple[TimeDraw, ...]:
        """See `TimeSampling.times`; `state` is not used."""
        return _uniform_draws(_recurrence_words(key, draw, example_ids, pair), num_timesteps)


@dataclasses.dataclass(frozen=True)
class IID:
    """Independent uniform times."""

    def times(
        self,
        key: jax.Array,
        draw: jax.typing.ArrayLike,
        example_ids: jax.Array,
        num_timesteps: int | None,
        *,
        pair: bool = False,
        state: ImportanceState | None = None,
    ) -> tuple[TimeDraw, ...]:
        """See `TimeSampling.times`; `state` is not used."""
        words = random_words(key, Purpose.TIME, draw, example_ids, np.uint32(0))
        return _uniform_draws(words if pair else words[:1], num_timesteps)


@dataclasses.dataclass(frozen=True)
class Importance:
    """Times in proportion to the root mean square of the loss, as far as it is known.

    Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models" §3.3. The table is
    explicit state, carried by the caller: `init`, `times(state=...)`, `update`. The times of a
    stream are stratified: the inverse CDF of the table applied to the low-discrepancy sequence.
    The CDF is kept in integers, so that the weights are the exact inverse of the frequencies.

    Attributes:
      num_bins: resolution of the table in continuous time; discrete time has one bin a step.
      history: losses over which a bin averages; until each bin has seen as many, times are uniform.
      uniform_probability: mixed in, so that the weights stay bounded by its inverse.
    """

    num_bins: int = 100
    history: int = 10
    uniform_probability: float = 0.001

    def __post_init__(self) -> None:
        """Raises UserError for a value outside of the documented range."""
        if not 2 <= self.num_bins <= MAX_BINS:
            raise UserError(
                f"Importance.num_bins={self.num_bins!r} must lie between 2 and {MAX_BINS}"
            )
        if self.history < 1:
            raise UserError(f"Importance.history={self.history!r} must be 1 or more")
        if not 0.001 <= self.uniform_probability <= 1:
            raise UserError(
                f"Importance.uniform_probability={self.uniform_probability!r} must lie between"
                " 0.001 and 1"
            )

    def init(self, num_timesteps: int | None) -> ImportanceState:
        """The empty table, under which times are uniform.

        Raises:
          UserError: T is 1 or exceeds the largest table.
        """
        if num_timesteps is not None and not 2 <= num_timesteps <= MAX_BINS:
            raise UserError(
                f"time_sampling=Importance() needs num_timesteps between 2 and {MAX_BINS} or None,"
                f" not {num_timesteps!r}"
            )
        bins = num_timesteps or self.num_bins
        return ImportanceState(jnp.zeros(bins, jnp.float32), jnp.zeros(bins, jnp.float32))

    def probabilities(self, state: ImportanceState) -> jax.Array:
        """[bins] float32, the distribution over time bins that the table stands for."""
        bins = state.second_moment.shape[0]
        root = jnp.sqrt(state.second_moment)
        learned = root / jnp.maximum(root.sum(), jnp.finfo(jnp.float32).tiny)
        mixed = (1 - self.uniform_probability) * learned + self.uniform_probability / bins
        warmed_up = (state.observations >= self.history).all() & (root.sum() > 0)
        return jnp.where(warmed_up, mixed, 1.0 / bins)

    def times(
        self,
        key: jax.Array,
        draw: jax.typing.ArrayLike,
        example_ids: jax.Array,
        num_timesteps: int | None,
        *,
        pair: bool = False,
        state: ImportanceState | None = None,
    ) -> tuple[TimeDraw, ...]:
        """See `TimeSampling.times`; without a `state` times are uniform."""
        starts, widths = self._intervals(self.init(num_timesteps) if state is None else state)
        bins = starts.shape[0]

        shares = np.float32(1.0) / widths.astype(jnp.float32)
        importances = np.float32(2.0**32 / bins) * shares

        def time_draw(word: jax.Array) -> TimeDraw:
            index = jnp.searchsorted(starts, word, side="right") - 1
            if num_timesteps is not None:
                return TimeDraw(_step_times(num_timesteps)[index], importances[index])
            inside = ((word - starts[index]).astype(jnp.float32) + 1.0) * shares[index]
            t = jnp.minimum((index + inside) * np.float32(1 / bins), 1.0)
            return TimeDraw(t, importances[index])

        words = _recurrence_words(key, draw, example_ids, pair)
        return tuple(time_draw(word) for word in words)

    def importance_of(self, state: ImportanceState, t: jax.Array) -> jax.Array:
        """The importance weight that `times` gave to times t under `state`."""
        widths = self._intervals(state)[1].astype(jnp.float32)
        return np.float32(2.0**32) / (widths.shape[0] * widths[self._bins(state, t)])

    def update(
        self, state: ImportanceState, t: jax.Array, losses: jax.Array, observed: jax.Array
    ) -> ImportanceState:
        """Averages new losses into the table.

        Args:
          state: the table so far.
          t: [n] float32, the times at which the losses were observed.
          losses: [n] float32, loss of an example at its time, without importance weight.
          observed: [n] bool, False for entries to be ignored.

        Returns:
          The new table. It depends on the set of losses only, not on their order.
        """
        bins = state.second_moment.shape[0]
        index = jnp.where(observed, self._bins(state, t), bins)
        squares = jnp.where(observed, jnp.square(losses), 0.0)
        sums = jax.ops.segment_sum(squares, index, num_segments=bins + 1)[:bins]
        counts = jax.ops.segment_sum(observed.astype(jnp.float32), index, num_segments=bins + 1)
        counts = counts[:bins]
        seen = state.observations + counts
        rate = counts / jnp.clip(jnp.minimum(seen, jnp.maximum(counts, self.history)), 1.0)
        mean = sums / jnp.maximum(counts, 1.0)
        moment = state.second_moment + rate * (mean - state.second_moment)
        return ImportanceState(moment, seen)

    def _intervals(self, state: ImportanceState) -> tuple[jax.Array, jax.Array]:
        """Starts and widths of the bins' shares of the 2**32 words, uint32 [bins]."""
        cumulative = jnp.cumsum(self.probabilities(state))[:-1] * np.float32(2.0**32)
        starts = jnp.concatenate([jnp.zeros(1, jnp.uint32), cumulative.astype(jnp.uint32)])
        ends = jnp.roll(starts, -1)
        return starts, ends - starts

    def _bins(self, state: ImportanceState, t: jax.Array) -> jax.Array:
        bins = state.second_moment.shape[0]
        # The margin, a few roundings, keeps the step s/T in its own bin.
        return jnp.clip(jnp.ceil(t * bins - bins * 2.0**-22).astype(jnp.int32) - 1, 0, bins - 1)


def time_sampling_by_name(name: str) -> TimeSampling:
    """The sampling called 'low_discrepancy', 'iid' or 'importance', with default settings.

    Raises:
      UserError: no time sampling has this name.
    """
    samplings: dict[str, TimeSampling] = {
        "low_discrepancy": LowDiscrepancy(),
        "iid": IID(),
        "importance": Importance(),
    }
    if name not in samplings:
        raise UserError(
            f"time_sampling={name!r} is none of {', '.join(samplings)}"
            f"{nearest(str(name), samplings)}"
        )
    return samplings[name]


def stratified_words(
    key: jax.Array, example_ids: jax.Array, draw: jax.typing.ArrayLike, num_draws: int
) -> jax.Array:
    """Uniform words for draw number `draw` of `num_draws`, one stratum of [0, 2**32) a draw.

    The strata run over the draws of one example, with an independent jitter inside each: the mean
    over all draws is unbiased for every example by itself, whatever stands beside it.

    Args:
      key: threefry2x32 key.
      example_ids: [...] 32-bit integers.
      draw: scalar in [0, num_draws), may be traced.
      num_draws: number of strata.

    Returns:
      [...] uint32.
    """
    bounds = (np.arange(num_draws + 1, dtype=np.int64) << 32) // num_draws
    starts = jnp.asarray(bounds[:-1].astype(np.uint32))
    # One stratum is all of [0, 2**32), whose width does not fit: its last word goes missing.
    widths = jnp.asarray(np.minimum(np.diff(bounds), 2**32 - 1).astype(np.uint32))
    jitter, _ = random_words(key, Purpose.STRATUM, draw, example_ids, np.uint32(0))
    return starts[draw] + multiply_high(jitter, widths[draw])
