from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from dlm_jax.errors import UserError
from dlm_jax.evaluation.likelihood import (
    NelboResult,
    evaluate_nelbo,
    nelbo_difference,
    ratio_with_standard_error,
)

LENGTH = 16


def batches(lengths: dict[int, int], batch_size: int):
    """Batches with one example a row: a prompt of two tokens, then `lengths[id]` maskable ones."""
    items = list(lengths.items())
    for start in range(0, len(items), batch_size):
        shape = (batch_size, LENGTH)
        batch = {
            "tokens": np.zeros(shape, np.int32),
            "maskable": np.zeros(shape, bool),
            "segment_ids": np.zeros(shape, np.int32),
            "positions": np.zeros(shape, np.int32),
            "example_ids": np.zeros(shape, np.uint32),
        }
        for row, (example_id, count) in enumerate(items[start : start + batch_size]):
            batch["segment_ids"][row, : 2 + count] = 1
            batch["maskable"][row, 2 : 2 + count] = True
            batch["example_ids"][row, : 2 + count] = example_id
        # Padding says nothing, whatever its flags are.
        batch["maskable"] |= batch["segment_ids"] == 0
        yield batch


@dataclasses.dataclass(frozen=True)
class Estimate:
    nelbo: np.ndarray
    standard_error: np.ndarray
    tokens: np.ndarray


def nats_of(batch) -> Estimate:
    """Half a nat a token and the example's id; NaN in rows of padding."""
    alive = batch["segment_ids"] > 0
    tokens = (alive & batch["maskable"]).sum(1)
    nats = np.where(alive.any(1), 0.5 * tokens + batch["example_ids"].max(1), np.nan)
    return Estimate(nats[:, None], np.full((len(nats), 1), 0.2), tokens[:, None])


LENGTHS = {0: 4, 1: 7, 2: 1, 3: 10, 4: 0, 5: 3}


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6])
def test_every_example_once_whatever_the_batches(batch_size: int) -> None:
    result = evaluate_nelbo(nats_of, batches(LENGTHS, batch_size))
    assert result.example_ids.tolist() == [0, 1, 2, 3, 5]
    assert result.tokens.tolist() == [4, 7, 1, 10, 3]
    assert result.nats.tolist() == [2.0, 4.5, 2.5, 8.0, 6.5]
    assert result.per_token[0] == pytest.approx(23.5 / 25)
    assert result.per_example[0] == pytest.approx(23.5 / 5)
    assert result.per_example[1] == pytest.approx(np.std(result.nats, ddof=1) / math.sqrt(5))


def test_an_array_of_nats_a_row_gives_the_same_figures_without_the_errors_of_draws() -> None:
    plain = evaluate_nelbo(lambda batch: nats_of(batch).nelbo[:, 0], batches(LENGTHS, 4))
    full = evaluate_nelbo(nats_of, batches(LENGTHS, 4)).metrics()
    assert full.pop("nelbo_draws_se") == pytest.approx(0.2 * math.sqrt(5) / 25)
    assert plain.metrics() == full
    with pytest.raises(ValueError, match="shape"):
        evaluate_nelbo(lambda batch: np.zeros(3), batches(LENGTHS, 4))


def test_metrics_by_name() -> None:
    texts = {0: "abcdefgh", 1: "abcdefghij", 2: "a", 3: "abcdefghijkl", 5: "abcd"}
    figures = evaluate_nelbo(nats_of, batches(LENGTHS, 4), texts=texts).metrics()
    assert figures["nelbo"] == pytest.approx(0.94)
    assert figures["perplexity_bound"] == pytest.approx(math.exp(0.94))
    ends = [math.log(figures[f"perplexity_bound_{end}"]) for end in ("low", "high")]
    spread = 1.96 * figures["nelbo_se"]
    assert ends == pytest.approx([0.94 - spread, 0.94 + spread])
    assert figures["bits_per_character"] == pytest.approx(23.5 / math.log(2) / 35)
    assert figures["n"] == 5 and figures["maskable_tokens"] == 25
    assert {f"{name}_se" in figures for name in ("nelbo", "bits_per_character")} == {True}
    assert "bits_per_character" not in evaluate_nelbo(nats_of, batches(LENGTHS, 4)).metrics()


def test_one_example_has_no_standard_error() -> None:
    figures = evaluate_nelbo(nats_of, batches({3: 4}, 2)).metrics()
    assert figures["nelbo"] == pytest.approx(5.0 / 4)
    assert [name for name in figures if name.endswith("_se")] == ["nelbo_draws_se"]


def test_ratio_error_of_equal_lengths_is_the_error_of_the_mean() -> None:
    values = np.array([1.0, 4.0, 2.0, 7.0])
    ratio, error = ratio_with_standard_error(values, np.full(4, 5.0))
    assert ratio == pytest.approx(values.mean() / 5)
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(4) / 5)
    proportional = ratio_with_standard_error(3.0 * values, values)
    assert proportional == pytest.approx((3.0, 0.0))


def test_ratio_error_is_the_spread_of_repeated_samples() -> None:
    generator = np.random.default_rng(2)

    def draw() -> tuple[float, float]:
        tokens = generator.integers(3, 60, size=200)
        return ratio_with_standard_error(tokens * generator.normal(2.5, 0.5, size=200), tokens)

    ratios, errors = np.array([draw() for _ in range(400)]).T
    # A standard deviation from 400 samples is known to 3.5%: this allows four times that.
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.14)
    assert np.mean(ratios) == pytest.approx(2.5, abs=4 * np.std(ratios) / math.sqrt(400))


def test_difference_is_paired() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 50, size=100)
    hard = generator.normal(3.0, 1.0, size=100)
    first = NelboResult(np.arange(100), tokens * hard, tokens)
    second = NelboResult(np.arange(100), tokens * (hard - 0.1), tokens)
    difference, error = nelbo_difference(first, second)
    assert difference == pytest.approx(-0.1)
    assert error == pytest.approx(0.0, abs=1e-9)
    assert first.per_token[1] > 0.05
    with pytest.raises(ValueError, match="same examples"):
        nelbo_difference(first, NelboResult(np.arange(1, 101), second.nats, tokens))


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(UserError, match="no evaluation example"):
        evaluate_nelbo(nats_of, [])
    with pytest.raises(UserError, match="example 1 is nan"):
        evaluate_nelbo(
            lambda batch: dataclasses.replace(nats_of(batch), nelbo=np.full((2, 1), np.nan)),
            batches({1: 3}, 2),
        )
    with pytest.raises(UserError, match="example 5 comes twice"):
        evaluate_nelbo(nats_of, [*batches({5: 3}, 2), *batches({5: 3}, 2)])
    (packed,) = batches({1: 3}, 2)
    packed["segment_ids"][0, 3:5] = 2
    with pytest.raises(ValueError, match="2 segments in a row"):
        evaluate_nelbo(nats_of, [packed])


def rows_of(packed: bool) -> list[dict[str, np.ndarray]]:
    """Examples 7, 8 and 9 of 3, 5 and 2 maskable tokens: one a row, or all in the first row."""
    lengths = {7: 3, 8: 5, 9: 2}
    (alone,) = batches(lengths, 3)
    alone["maskable"] &= alone["segment_ids"] > 0
    alone["positions"][:] = np.arange(LENGTH)
    if not packed:
        return [alone]
    joined = {name: np.zeros_like(array) for name, array in alone.items()}
    start = 0
    for row, count in enumerate(lengths.values()):
        end = start + 2 + count
        for name, array in alone.items():
            joined[name][0, start:end] = array[row, : 2 + count]
        joined["segment_ids"][0, start:end] = row + 1
        start = end
    return [joined]


def test_the_estimate_of_the_diffusion_packed_or_not_is_within_its_error_of_the_truth() -> None:
    import functools

    import jax
    import jax.numpy as jnp

    from dlm_jax.diffusion.likelihood import exact_nelbo, monte_carlo_nelbo
    from dlm_jax.diffusion.process import AbsorbingProcess

    process = AbsorbingProcess(mask_id=9, num_timesteps=None)

    def token_nll(noised):
        # The more of the example is hidden, the less sure.
        same = noised.segment_ids[:, :, None] == noised.segment_ids[:, None, :]
        hidden = jnp.where(same & noised.absorbed[:, None, :], 1.0, 0.0).sum(axis=2)
        return jnp.where(noised.absorbed, 1.0 + 0.1 * hidden, 0.0)

    key = jax.random.key(0, impl="threefry2x32")
    estimate = jax.jit(
        functools.partial(
            monte_carlo_nelbo, process, token_nll, key=key, num_draws=64, num_segments=3
        )
    )
    results = [evaluate_nelbo(estimate, rows_of(packed)) for packed in (False, True)]
    alone, together = results
    assert alone.example_ids.tolist() == together.example_ids.tolist() == [7, 8, 9]
    assert alone.tokens.tolist() == together.tokens.tolist() == [3, 5, 2]
    np.testing.assert_allclose(alone.nats, together.nats, rtol=1e-5)
    truth = exact_nelbo(process, token_nll, rows_of(False)[0])
    assert np.all(np.abs(alone.nats - truth) < 4 * alone.draw_errors)
    noise = math.sqrt((alone.draw_errors**2).sum()) / 10
    assert alone.metrics()["nelbo_draws_se"] == pytest.approx(noise)
