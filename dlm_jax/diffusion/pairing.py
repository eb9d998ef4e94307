"""The rows of noise drawn for each row of a batch: one, or a pair."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dlm_jax.diffusion.process import AbsorbingProcess, Batch
from dlm_jax.diffusion.time_sampling import ImportanceState, TimeDraw, TimeSampling

PAIRINGS = ("single", "coupled", "two_step", "two_sample", "fixed_ratio")


class Corruption(NamedTuple):
    """One draw of noise for a batch; all [rows, length]."""

    tokens: jax.Array
    absorbed: jax.Array
    time: jax.Array
    importance: jax.Array


def corrupt_rows(
    process: AbsorbingProcess,
    pairing: str,
    time_sampling: TimeSampling,
    fixed_ratio: float,
    batch: Batch,
    key: jax.Array,
    draw: jax.typing.ArrayLike = 0,
    time_state: ImportanceState | None = None,
) -> tuple[Corruption, ...]:
    """Draws the noise of a batch.

    Args:
      process: the forward process.
      pairing: 'single' one time, one mask. 'coupled' two times, the mask of the earlier a subset of
        the mask of the later, redrawn when the times are equal. 'two_step' two times, independent
        masks. 'two_sample' one time, two independent masks. 'fixed_ratio' two independent masks at
        the time ⌈fixed_ratio·T⌉/T, or `fixed_ratio` itself if time is continuous.
      time_sampling: draws the times.
      fixed_ratio: used by that pairing only.
      batch: the batch contract, [rows, length].
      key: threefry2x32 key of the run.
      draw: number of the draw, a scalar.
      time_state: table of importance sampling.

    Returns:
      One corruption for 'single', two otherwise; of a coupled pair the later time comes first.

    Source: Ye et al. 2023; Zheng et al. 2023 (RDM), `--q-sample-mode`.
    """
    if pairing == "fixed_ratio":
        times: tuple[TimeDraw, ...] = (_fixed_time(process, fixed_ratio, batch),)
    else:
        times = time_sampling.times(
            key,
            draw,
            batch["example_ids"],
            process.num_timesteps,
            pair=pairing in ("coupled", "two_step"),
            state=time_state,
        )
    if pairing == "coupled":
        late, early = _sorted_times(*times)
        masks: tuple[jax.Array, ...] = process.absorb_coupled(batch, late.t, early.t, key, draw)
        times = (late, early)
    elif pairing == "single":
        masks = (process.absorb(batch, times[0].t, key, draw),)
    else:
        times = (times[0], times[-1])
        masks = tuple(process.absorb(batch, time.t, key, draw, i) for i, time in enumerate(times))
    return tuple(
        Corruption(process.noisy_tokens(batch, mask, key, draw), mask, *time)
        for mask, time in zip(masks, times)
    )


def _fixed_time(process: AbsorbingProcess, ratio: float, batch: Batch) -> TimeDraw:
    steps = process.num_timesteps
    # The margin keeps products such as 0.14·50, a little above 7 in floating point, at their step.
    t = ratio if steps is None else -(-(ratio * steps - 1e-6) // 1) / steps
    shape = batch["tokens"].shape
    return TimeDraw(jnp.full(shape, t, jnp.float32), jnp.ones(shape, jnp.float32))


def _sorted_times(a: TimeDraw, b: TimeDraw) -> tuple[TimeDraw, TimeDraw]:
    first_is_late = a.t >= b.t
    late = TimeDraw(*(jnp.where(first_is_late, x, y) for x, y in zip(a, b)))
    early = TimeDraw(*(jnp.where(first_is_late, y, x) for x, y in zip(a, b)))
    return late, early
