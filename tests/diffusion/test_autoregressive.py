"""The autoregressive objective against a shift written by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.diffusion.autoregressive import AutoregressiveObjective
from dlm_jax.diffusion.scores import dense_scores
from dlm_jax.errors import UserError

EXAMPLES = {5: ([0, 3], [1, 4, 2]), 9: ([0], [2, 2, 4, 1, 2]), 4: ([0, 1, 1, 3], [2])}


@pytest.fixture(scope="module")
def packed(pack):
    return pack(EXAMPLES, [[5, -1, 9], [4]], 13)


def logits_of(batch) -> np.ndarray:
    """Logits [rows, length, 6] that know their own example and the place in it."""
    random = np.random.default_rng(3)
    table = random.normal(size=(10, 8, 6)).astype(np.float32)
    return table[batch["example_ids"], batch["positions"]]


def by_hand(batch, average: str, smoothing: float) -> float:
    """The loss of one example after another: logits[:-1] predict tokens[1:]."""
    logits = logits_of(batch).astype(np.float64)
    sums, counts = [], []
    for row, segment in ((0, 1), (0, 2), (1, 1)):
        where = batch["segment_ids"][row] == segment
        tokens, scored = batch["tokens"][row][where][1:], batch["maskable"][row][where][1:]
        scores = logits[row][where][:-1]
        log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        nll = -log_probs[np.arange(len(tokens)), tokens]
        loss = (1 - smoothing) * nll - smoothing * log_probs.mean(-1)
        sums.append(loss[scored].sum())
        counts.append(scored.sum())
    if average == "tokens":
        return float(sum(sums) / sum(counts))
    return float(np.mean(np.divide(sums, counts)))


@pytest.mark.parametrize("average", ["sequences", "tokens"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_shifted_cross_entropy(packed, average, smoothing) -> None:
    objective = AutoregressiveObjective(average, smoothing)
    noised = objective.noise(packed)
    scores = dense_scores(jnp.asarray(logits_of(packed)), noised)
    loss_sum, weight_sum, metrics = objective.loss(noised, scores)
    np.testing.assert_allclose(
        loss_sum / weight_sum, by_hand(packed, average, smoothing), rtol=1e-6
    )
    assert metrics["absorbed_tokens"] == metrics["maskable_tokens"] == 9
    assert metrics["sequences"] == 3


def test_packing_changes_no_loss(packed, pack) -> None:
    objective = AutoregressiveObjective()
    losses = []
    for batch in (packed, pack(EXAMPLES, [[4], [], [9], [5]], 6)):
        noised = objective.noise(batch)
        loss_sum, weight_sum, _ = objective.loss(
            noised, dense_scores(jnp.asarray(logits_of(batch)), noised)
        )
        losses.append(float(loss_sum / weight_sum))
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_inputs_are_clean_and_a_first_token_is_predicted_from_nothing(pack) -> None:
    batch = pack({7: ([], [3, 1, 2])}, [[7, 7]], 8)
    noised = AutoregressiveObjective().noise(batch)
    np.testing.assert_array_equal(noised.tokens, batch["tokens"])
    # Places 0 and 1 of each example predict its tokens 1 and 2; nothing predicts token 0.
    np.testing.assert_array_equal(noised.absorbed[0], [1, 1, 0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(noised.targets[0, [0, 1, 3, 4]], [1, 2, 1, 2])
    np.testing.assert_array_equal(noised.weight[0], [0.5, 0.5, 0, 0.5, 0.5, 0, 0, 0])


def test_the_gradient_reaches_no_other_place(packed) -> None:
    noised = AutoregressiveObjective().noise(packed)
    gradient = jax.grad(lambda logits: dense_scores(logits, noised).loss_sum)(
        jnp.asarray(logits_of(packed))
    )
    np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, noised.absorbed)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="average='token' is none of sequences, tokens"):
        AutoregressiveObjective(average="token")
    with pytest.raises(UserError, match="label_smoothing=1.0 must lie in"):
        AutoregressiveObjective(label_smoothing=1.0)
