from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from dlm_jax.diffusion.likelihood import exact_nelbo, monte_carlo_nelbo
from dlm_jax.diffusion.objectives import DiffusionObjective
from dlm_jax.diffusion.process import AbsorbingProcess
from dlm_jax.diffusion.schedules import Cosine, Linear, Polynomial
from dlm_jax.diffusion.time_sampling import IID, Importance, ImportanceState, LowDiscrepancy
from dlm_jax.errors import UserError

MASK_ID = 5
MASKED = {
    Linear(): lambda t: t,
    Cosine(): lambda t: np.sin(np.pi / 2 * t),
    Polynomial(2.0): lambda t: t**2,
}
PROCESSES = [
    AbsorbingProcess(MASK_ID, schedule, steps) for schedule in MASKED for steps in (None, 7)
]
TOKENS = np.array([6, 5, 4, 1])


@pytest.fixture(scope="module")
def subset_sums(tiny_batch, toy_logits):
    """For each example {mask as a tuple of positions: sum of nll over the mask}."""
    log_probs_of = jax.jit(lambda tokens: jax.nn.log_softmax(toy_logits(tokens)))
    result = []
    for tokens, maskable in zip(tiny_batch["tokens"], tiny_batch["maskable"]):
        where = np.flatnonzero(maskable)
        masks = [m for k in range(len(where) + 1) for m in itertools.combinations(where, k)]
        rows = np.tile(tokens, (64, 1))
        for row, mask in zip(rows, masks):
            row[list(mask)] = MASK_ID
        log_probs = np.asarray(log_probs_of(rows), np.float64)
        result.append({m: -sum(log_probs[i, j, tokens[j]] for j in m) for i, m in enumerate(masks)})
    return result


def expected_sum(subsets, n, p):
    """E over independent masks at rate p of the masked tokens' summed nll."""
    return sum(p ** len(m) * (1 - p) ** (n - len(m)) * value for m, value in subsets.items())


def reference_nelbo(process, subsets, n):
    """The definition: sum over steps, or numerical integral over time, of weight·E[nll]."""
    masked = MASKED[process.schedule]
    steps = process.num_timesteps
    if steps is not None:
        p = masked(np.arange(steps + 1) / steps)
        return sum(
            (p[s] - p[s - 1]) / p[s] * expected_sum(subsets, n, p[s]) for s in range(1, steps + 1)
        )

    def integrand(t):
        slope = (masked(t + 1e-6) - masked(t - 1e-6)) / 2e-6
        return slope / masked(t) * expected_sum(subsets, n, masked(t))

    return integrate.quad(integrand, 1e-5, 1 - 1e-5, limit=200)[0]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_exact_nelbo_is_the_definition(process, tiny_batch, toy_nll, subset_sums):
    exact = exact_nelbo(process, toy_nll, tiny_batch)
    expected = [reference_nelbo(process, s, n) for s, n in zip(subset_sums, TOKENS)]
    np.testing.assert_allclose(exact, expected, rtol=2e-4)
    assert exact.min() > 0.1


def test_continuous_nelbo_does_not_depend_on_the_schedule(tiny_batch, toy_nll):
    values = [
        exact_nelbo(AbsorbingProcess(MASK_ID, schedule, None), toy_nll, tiny_batch)
        for schedule in MASKED
    ]
    np.testing.assert_allclose(values[1:], [values[0]] * 2)
    fine = exact_nelbo(AbsorbingProcess(MASK_ID, num_timesteps=1000), toy_nll, tiny_batch)
    np.testing.assert_allclose(fine, values[0], rtol=1e-2)
    assert (fine >= values[0] - 1e-3).all() or not np.array_equal(fine, values[0])


ESTIMATORS = [(process, "time") for process in PROCESSES] + [
    (AbsorbingProcess(MASK_ID, num_timesteps=None), "count")
]


@pytest.mark.parametrize(("process", "estimator"), ESTIMATORS, ids=repr)
def test_monte_carlo_agrees_with_enumeration(process, estimator, key, tiny_batch, toy_nll):
    """Per example, within its own standard error."""
    estimate = jax.jit(
        lambda k: monte_carlo_nelbo(
            process, toy_nll, tiny_batch, k, num_draws=8192, estimator=estimator
        )
    )(key)
    exact = exact_nelbo(process, toy_nll, tiny_batch)
    error = np.asarray(estimate.standard_error)[:, 0]
    np.testing.assert_array_equal(estimate.tokens[:, 0], TOKENS)
    z = (np.asarray(estimate.nelbo)[:, 0] - exact) / np.maximum(error, 1e-5)
    assert np.abs(z).max() < 3.5
    assert (error < 0.06 * exact).all()


@pytest.mark.parametrize("estimator", ["time", "count"])
def test_standard_error_is_honest(estimator, make_keys, tiny_batch, toy_nll):
    """Over 300 seeds the errors have the stated size, and the mean has no bias."""
    steps = None if estimator == "count" else 50
    process = AbsorbingProcess(MASK_ID, num_timesteps=steps)
    estimate = jax.jit(
        jax.vmap(
            lambda k: monte_carlo_nelbo(
                process, toy_nll, tiny_batch, k, num_draws=32, estimator=estimator
            )
        )
    )(make_keys(0, 300))
    exact = exact_nelbo(process, toy_nll, tiny_batch)
    nelbo = np.asarray(estimate.nelbo)[..., 0]
    stated = np.sqrt(np.square(np.asarray(estimate.standard_error)[..., 0]).mean(0))
    actual = nelbo.std(0)
    bias = (nelbo.mean(0) - exact) / np.maximum(actual / 300**0.5, 1e-5)
    assert np.abs(bias).max() < 3.5
    varying = actual > 1e-4  # one token masked in every draw leaves nothing to chance
    assert varying.sum() >= 3
    ratio = stated[varying] / actual[varying]
    assert (ratio > 0.85).all() and (ratio < 1.5).all()


def test_counting_masks_has_the_lower_variance(key, tiny_batch, toy_nll):
    process = AbsorbingProcess(MASK_ID, num_timesteps=None)
    by_time, by_count = (
        jax.jit(
            lambda k, e=e: monte_carlo_nelbo(
                process, toy_nll, tiny_batch, k, num_draws=512, estimator=e
            )
        )(key)
        for e in ("time", "count")
    )
    assert (np.asarray(by_count.standard_error) < np.asarray(by_time.standard_error)).all()


@pytest.mark.parametrize("estimator", ["time", "count"])
def test_an_example_has_its_score_wherever_it_stands(estimator, key, pack):
    """Rows reversed, batch split and packed: the same draws, so the same estimate and error."""
    process = AbsorbingProcess(MASK_ID, num_timesteps=None)
    examples = {
        8: ([1], [2, 3, 0]),
        2**32 - 2: ([0, 0], [4, 1]),
        30: ([], [3, 3, 3, 1]),
    }
    a, b, c = examples

    def token_nll(noised):
        # Depends on the example's own tokens only, as segment-aware attention does.
        return (noised.positions + 1.0) * (noised.targets + 1.0) / 7

    @jax.jit
    def evaluate(batch):
        return monte_carlo_nelbo(
            process, token_nll, batch, key, num_draws=16, num_segments=3, estimator=estimator
        )

    layouts = {
        "rows": ([[a], [b], [c]], {a: (0, 0), b: (1, 0), c: (2, 0)}),
        "reversed": ([[c], [b], [a]], {c: (0, 0), b: (1, 0), a: (2, 0)}),
        "packed": ([[-1, b, c, a], []], {b: (0, 0), c: (0, 1), a: (0, 2)}),
    }
    found = {}
    for name, (layout, places) in layouts.items():
        result = evaluate(pack(examples, layout, 14, rows=3))
        found[name] = [
            (float(result.nelbo[places[i]]), float(result.standard_error[places[i]]))
            for i in examples
        ]
        assert [int(result.tokens[places[i]]) for i in examples] == [3, 2, 4]
        assert int(result.tokens.sum()) == 9
    np.testing.assert_allclose(found["reversed"], found["rows"], rtol=1e-6)
    np.testing.assert_allclose(found["packed"], found["rows"], rtol=1e-6)


WARM = ImportanceState(jnp.asarray([1.0, 4.0, 9.0, 1.0, 25.0, 0.01, 4.0]), jnp.full(7, 10.0))


COMBINATIONS = [
    ("single", LowDiscrepancy(), None, None),
    ("coupled", LowDiscrepancy(), None, None),
    ("coupled", LowDiscrepancy(), 7, None),
    ("two_step", LowDiscrepancy(), 7, None),
    ("two_sample", LowDiscrepancy(), None, None),
    ("coupled", IID(), 7, None),
    ("single", Importance(num_bins=7), None, WARM),
    ("coupled", Importance(num_bins=7), 7, WARM),
]


@pytest.mark.parametrize(("pairing", "sampling", "steps", "state"), COMBINATIONS)
def test_training_loss_is_unbiased_per_example_in_a_fixed_order(
    pairing, sampling, steps, state, make_keys, tiny_batch, toy_nll
):
    """Over seeds, every example's reweighted loss has its NELBO per token as its mean.

    The order of the examples is fixed: strata tied to rows fail this test (see below).
    """
    process = AbsorbingProcess(MASK_ID, num_timesteps=steps)
    objective = DiffusionObjective(process, "reciprocal", pairing, sampling)

    def losses(key):
        noised = objective.noise(tiny_batch, key, 0, state)
        per_row = (noised.weight * toy_nll(noised)).sum(axis=1)
        return per_row.reshape(objective.rows_per_example, 4).mean(axis=0)

    values = np.asarray(jax.jit(jax.vmap(losses))(make_keys(7, 6000)), np.float64)
    exact = exact_nelbo(process, toy_nll, tiny_batch) / TOKENS
    z = (values.mean(0) - exact) / (values.std(0) / 6000**0.5)
    assert np.abs(z).max() < 4


def test_strata_tied_to_rows_would_be_biased(make_keys, tiny_batch, toy_nll, subset_sums):
    """The trap: row i of a fixed order drawing its time from [i/4, (i+1)/4) only.

    The loss of an example at time t is known from the enumeration, so that of a sampling is too,
    without noise from the masks: the tied strata miss every example by far, ours none.
    """
    process = AbsorbingProcess(MASK_ID, num_timesteps=None)
    exact = exact_nelbo(process, toy_nll, tiny_batch)
    losses = [
        lambda t, s=s, n=n: expected_sum(s, n, t) / t for s, n in zip(subset_sums[:3], TOKENS)
    ]
    tied = [4 * integrate.quad(f, row / 4, (row + 1) / 4)[0] for row, f in enumerate(losses)]
    assert abs(tied[0] / exact[0] - 1) > 0.1
    ids = tiny_batch["example_ids"][:, 0]
    times = jax.jit(jax.vmap(lambda key: LowDiscrepancy().times(key, 0, ids, None)[0].t))
    drawn = np.asarray(times(make_keys(0, 20_000)), np.float64)
    for row, f in enumerate(losses):
        values = f(drawn[:, row])
        error = values.std() / 20_000**0.5
        assert abs(tied[row] - exact[row]) > 5 * error
        assert abs(values.mean() - exact[row]) < 4 * error
        assert stats.kstest(drawn[:, row], "uniform").pvalue > 1e-4


def test_limits():
    process = AbsorbingProcess(MASK_ID)
    batch = {
        "tokens": np.zeros((1, 11), np.int32),
        "maskable": np.ones((1, 11), bool),
        "segment_ids": np.ones((1, 11), np.int32),
        "positions": np.arange(11, dtype=np.int32)[None],
        "example_ids": np.zeros((1, 11), np.uint32),
    }
    key = jax.random.key(0, impl="threefry2x32")

    def token_nll(noised):
        return jnp.zeros(noised.tokens.shape)

    with pytest.raises(ValueError, match="11 maskable tokens"):
        exact_nelbo(process, token_nll, batch)
    with pytest.raises(ValueError, match="one example a row"):
        exact_nelbo(process, token_nll, batch | {"segment_ids": 2 * batch["segment_ids"]})
    empty = exact_nelbo(process, token_nll, batch | {"maskable": np.zeros((1, 11), bool)})
    assert empty.tolist() == [0]
    for arguments, message in [
        ({"num_draws": 1}, "num_draws=1"),
        ({"num_draws": 8, "estimator": "counts"}, "did you mean count"),
        ({"num_draws": 8, "estimator": "count"}, "continuous time"),
    ]:
        with pytest.raises(UserError, match=message):
            monte_carlo_nelbo(process, token_nll, batch, key, **arguments)
