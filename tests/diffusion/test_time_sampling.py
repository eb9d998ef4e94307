from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlm_jax.diffusion.time_sampling import (
    GOLDEN,
    IID,
    PLASTIC,
    Importance,
    ImportanceState,
    LowDiscrepancy,
    stratified_words,
    time_of_word,
    time_sampling_by_name,
)
from dlm_jax.errors import UserError

update = jax.jit(lambda sampling, *args: sampling.update(*args), static_argnums=0)
draw_times = jax.jit(
    lambda sampling, steps, pair, key, draw, ids, state: sampling.times(
        key, draw, ids, steps, pair=pair, state=state
    ),
    static_argnums=(0, 1, 2),
)
IDS = np.array([0, 1, 2, 977, 2**31 + 5, 2**32 - 1], np.uint32)
WARM = ImportanceState(
    jnp.asarray([9.0, 1.0, 0.04, 100.0, 4.0, 0.25, 1.0], jnp.float32), jnp.full(7, 10.0)
)
SAMPLINGS = [
    (LowDiscrepancy(), None),
    (IID(), None),
    (Importance(num_bins=7), WARM),
]


def test_multipliers_are_odd_and_nearest():
    """Odd multipliers visit all 2**32 times; the constants are those of the recurrences."""
    golden, plastic = (1 + 5**0.5) / 2, 1.324717957244746
    for constant, value in zip((GOLDEN, *PLASTIC), (1 / golden, 1 / plastic, plastic**-2)):
        assert int(constant) % 2 == 1
        assert abs(int(constant) - value * 2**32) < 1.5


def test_shift_and_recurrence(key):
    """Time n is (shift + n·multiplier) mod 2**32 in fixed point, without drift at large n."""
    t = np.asarray(LowDiscrepancy().times(key, 0, IDS, None)[0].t, np.float64)
    steps = IDS.astype(np.uint64) * np.uint64(GOLDEN) % 2**32 / 2**32
    np.testing.assert_allclose((t - t[0]) % 1, steps, atol=2e-7)


@pytest.mark.parametrize("window", [10, 100, 1000])
@pytest.mark.parametrize("start", [0, 12345, 2**32 - 500])
def test_any_window_covers_evenly(window, start, key):
    """The star discrepancy of any window is far below that of independent times."""
    ids = (start + np.arange(1000, dtype=np.uint64)).astype(np.uint32)
    times = draw_times(LowDiscrepancy(), None, False, key, 0, ids, None)[0].t
    t = np.sort(np.asarray(times, np.float64)[:window])
    grid = np.arange(window + 1) / window
    discrepancy = max((grid[1:] - t).max(), (t - grid[:-1]).max())
    assert discrepancy < 1.5 * np.log(window) / window
    for pair, tolerance in ((False, 3), (True, 5)):
        for draw in draw_times(LowDiscrepancy(), 10, pair, key, 0, ids, None):
            steps = (np.asarray(draw.t)[:window] * 10).round().astype(int)
            counts = np.bincount(steps, minlength=11)[1:]
            assert np.abs(counts - window / 10).max() <= tolerance


def test_pairs_cover_the_square(key):
    """A window's pairs of times fill the cells of a 8x8 grid, and are not tied to each other."""
    ids = np.arange(640, dtype=np.uint32)
    a, b = (np.asarray(draw.t) for draw in LowDiscrepancy().times(key, 0, ids, None, pair=True))
    cells = np.histogram2d(a, b, bins=8, range=[[0, 1], [0, 1]])[0]
    assert cells.min() >= 6 and cells.max() <= 14
    independent = np.random.default_rng(0).poisson(10, size=64)
    assert cells.var() < independent.var() / 2


@pytest.mark.parametrize(("sampling", "state"), SAMPLINGS, ids=["low discrepancy", "iid", "is"])
@pytest.mark.parametrize("steps", [None, 7])
def test_every_example_has_the_right_law_over_seeds(sampling, state, steps, make_keys):
    """Over seeds each example's time has the stated density by itself, in any position."""

    @jax.jit
    @jax.vmap
    def draw(key):
        return sampling.times(key, 0, IDS, steps, pair=True, state=state)

    pair = draw(make_keys(0, 4000))
    if state is None:
        expected = np.full(7, 1 / 7)
    else:
        root = np.sqrt(np.asarray(WARM.second_moment, np.float64))
        expected = 0.999 * root / root.sum() + 0.001 / 7
    for t, importance in pair:
        scaled = np.asarray(t, np.float64) * 7
        bins = np.ceil(scaled - 1e-4 if steps else scaled).astype(int) - 1
        inside = np.abs(scaled - scaled.round()) > 1e-5 if steps is None else np.full(t.shape, True)
        ratio = np.asarray(importance) * 7 * expected[bins]
        np.testing.assert_allclose(ratio[inside], 1, rtol=1e-3)
        for example in range(len(IDS)):
            counts = np.bincount(bins[:, example], minlength=7)
            assert stats.chisquare(counts, 4000 * expected).pvalue > 1e-4
            if state is None and steps is None:
                assert stats.kstest(np.asarray(t)[:, example], "uniform").pvalue > 1e-4
    first, second = (np.asarray(d.t)[:, 3] for d in pair)
    assert abs(stats.spearmanr(first, second).statistic) < 4 / 4000**0.5


@pytest.mark.parametrize(("sampling", "state"), SAMPLINGS, ids=["low discrepancy", "iid", "is"])
def test_times_belong_to_examples(sampling, state, key):
    """The time of an example does not depend on its place, its neighbours or the dtype."""
    ids = np.array([[3, 3, 9], [2**31 + 1, 9, 0]], np.uint32)
    reference = {}
    for example_id in np.unique(ids):
        (draw,) = draw_times(sampling, None, False, key, 2, np.array([example_id]), state)
        reference[int(example_id)] = float(draw.t[0])
    for arrangement in (ids, ids[::-1], ids.T.astype(np.int32)):
        (draw,) = draw_times(sampling, None, False, key, 2, arrangement, state)
        expected = [reference[int(i)] for i in arrangement.astype(np.uint32).ravel()]
        assert np.asarray(draw.t).ravel().tolist() == expected
    first, other = (
        draw_times(sampling, None, False, key, draw, ids, state)[0].t for draw in (2, 3)
    )
    assert not np.array_equal(first, other)


def test_time_of_word_hits_every_step_equally():
    words = jnp.asarray(np.array([0, 2**32 - 1], np.uint32))
    assert time_of_word(words, 50).tolist() == [np.float32(1 / 50), 1.0]
    assert time_of_word(words, None).tolist() == [2.0**-32, 1.0]
    boundary = -(-(2**32 * 7) // 50)  # the first word of step 8
    words = jnp.asarray(np.array([boundary - 1, boundary], np.uint32))
    assert (time_of_word(words, 50) * 50).round().tolist() == [7, 8]


@pytest.mark.parametrize("steps", [None, 7])
def test_importance_sampling_is_unbiased(steps, key):
    """Weighted averages equal uniform ones, for a function that the table knows nothing of."""
    sampling = Importance(num_bins=7)
    ids = np.arange(1 << 16, dtype=np.uint32)
    (draw,) = sampling.times(key, 0, ids, steps, state=WARM)
    t, weight = (np.asarray(a, np.float64) for a in draw)
    exact_times = np.arange(1, 8) / 7 if steps else (np.arange(20000) + 0.5) / 20000
    for function in (np.ones_like, np.square, lambda t: np.cos(5 * t)):
        exact = function(exact_times).mean()
        assert (weight * function(t)).mean() == pytest.approx(exact, abs=5e-3)
    assert (
        np.abs((np.bincount(np.ceil(t * 7 - 1e-4).astype(int) - 1) / len(t))[3] - 10 / 17.7) < 0.01
    )


def test_importance_weights_are_the_inverse_of_the_integer_frequencies():
    """The shares of the words add up to 2**32 and the weights to one, exactly."""
    starts, widths = (np.asarray(a, np.int64) for a in Importance()._intervals(WARM))
    assert starts[0] == 0 and widths.sum() == 2**32
    np.testing.assert_array_equal(np.diff(starts), widths[:-1])
    weights = np.asarray(Importance().importance_of(WARM, (jnp.arange(7) + 0.5) / 7), np.float64)
    np.testing.assert_allclose(weights * widths / 2**32, 1 / 7, rtol=1e-6)


def test_a_continuous_time_has_the_weight_with_which_it_was_drawn():
    state = ImportanceState(jnp.where(jnp.arange(100) % 2 == 0, 1.0, 1e4), jnp.full(100, 1e6))
    t = (np.arange(100)[:, None] + np.array([1e-4, 0.5, 1 - 1e-4])) / 100
    weights = np.asarray(Importance().importance_of(state, jnp.asarray(t.ravel(), jnp.float32)))
    by_bin = weights.reshape(100, 3)
    np.testing.assert_array_equal(by_bin, by_bin[:, 1:2].repeat(3, axis=1))


def test_importance_table():
    """The table averages the last losses by bin, ignores what is not observed, then warms up."""
    sampling = Importance(history=4)
    state = sampling.init(3)
    np.testing.assert_allclose(sampling.probabilities(state), 1 / 3)
    t = jnp.array([1 / 3, 1 / 3, 1.0, 2 / 3], jnp.float32)
    losses = jnp.array([1.0, 3.0, 2.0, 99.0], jnp.float32)
    state = update(sampling, state, t, losses, jnp.array([True, True, True, False]))
    np.testing.assert_allclose(state.second_moment, [5.0, 0.0, 4.0])
    np.testing.assert_allclose(state.observations, [2, 0, 1])
    np.testing.assert_allclose(sampling.probabilities(state), 1 / 3, err_msg="not warmed up")
    t = jnp.repeat(jnp.array([1, 2, 3], jnp.float32) / 3, 4)
    losses = jnp.repeat(jnp.array([2.0, 1.0, 4.0], jnp.float32), 4)
    for _ in range(12):
        state = update(sampling, state, t, losses, jnp.ones(12, bool))
    np.testing.assert_allclose(state.second_moment, [4.0, 1.0, 16.0], rtol=1e-5)
    expected = 0.999 * np.array([2, 1, 4]) / 7 + 0.001 / 3
    np.testing.assert_allclose(sampling.probabilities(state), expected, rtol=1e-5)
    reversed_order = update(sampling, state, t[::-1], losses[::-1], jnp.ones(12, bool))
    same_order = update(sampling, state, t, losses, jnp.ones(12, bool))
    jax.tree.map(np.testing.assert_array_equal, reversed_order, same_order)


def test_importance_bins_of_discrete_times():
    """Every step s/T, rounded to float32, falls into its own bin."""
    for steps in (50, 1000):
        state = Importance().init(steps)
        t = jnp.arange(1, steps + 1, dtype=jnp.float32) / steps
        updated = update(Importance(), state, t, jnp.ones(steps), jnp.ones(steps, bool))
        np.testing.assert_array_equal(updated.observations, 1)


@pytest.mark.parametrize("num_draws", [1, 3, 64])
def test_strata_run_over_the_draws_of_one_example(num_draws, key):
    words = np.stack(
        [np.asarray(stratified_words(key, IDS, draw, num_draws)) for draw in range(num_draws)]
    )
    stratum = words.astype(np.float64) * num_draws / 2**32
    np.testing.assert_array_equal(np.floor(stratum + 1e-6), np.arange(num_draws)[:, None] + 0 * IDS)
    jitter = stratum - np.floor(stratum)
    assert len(np.unique(jitter)) == jitter.size
    if num_draws == 64:
        assert stats.kstest(jitter.ravel(), "uniform").pvalue > 1e-3


def test_names_and_wrong_settings():
    assert time_sampling_by_name("iid") == IID()
    with pytest.raises(UserError, match="did you mean importance"):
        time_sampling_by_name("importence")
    with pytest.raises(UserError, match="num_bins=1"):
        Importance(num_bins=1)
    with pytest.raises(UserError, match="history=0"):
        Importance(history=0)
    with pytest.raises(UserError, match="uniform_probability=0"):
        Importance(uniform_probability=0)
    with pytest.raises(UserError, match="num_timesteps"):
        Importance().init(1)
