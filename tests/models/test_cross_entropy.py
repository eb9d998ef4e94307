"""The chunked loss against the dense one, by automatic differentiation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.models.cross_entropy import linear_cross_entropy

POSITIONS, EMBED, VOCAB = 37, 16, 53


def dense(hidden, table, bias, targets, weight, smoothing):
    log_p = jax.nn.log_softmax(hidden @ table.T + bias)
    nll = -jnp.take_along_axis(log_p, targets[:, None], -1)[:, 0]
    return (weight * nll).sum() + (smoothing * -log_p.mean(-1)).sum()


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    return (
        jnp.asarray(random.normal(size=(POSITIONS, EMBED)), jnp.float32),
        jnp.asarray(random.normal(size=(VOCAB, EMBED)), jnp.float32),
        jnp.asarray(random.normal(size=VOCAB), jnp.float32),
        jnp.asarray(random.integers(0, VOCAB, POSITIONS), jnp.int32),
    )


def weights(share: float, smoothing: float):
    random = np.random.default_rng(1)
    weight = random.uniform(0.5, 3.0, POSITIONS) * (random.uniform(size=POSITIONS) < share)
    return jnp.asarray(weight, jnp.float32), jnp.asarray(smoothing * (weight > 0), jnp.float32)


@pytest.mark.parametrize("chunk", [1, 8, 37, 64, None])
@pytest.mark.parametrize(("share", "smoothing"), [(0.5, 0.0), (0.5, 0.7), (1.0, 0.3)])
def test_loss_and_gradients_equal_the_dense_ones(arrays, chunk, share, smoothing) -> None:
    hidden, table, bias, targets = arrays
    weight, smooth = weights(share, smoothing)

    def ours(*trained):
        return 2.5 * linear_cross_entropy(*trained, targets, weight, smooth, chunk=chunk)[0]

    def reference(*trained):
        return 2.5 * dense(*trained, targets, weight, smooth)

    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(hidden, table, bias)
    expected, expected_gradients = jax.value_and_grad(reference, (0, 1, 2))(hidden, table, bias)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient, wanted in zip(gradients, expected_gradients):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5, rtol=1e-5)


def test_without_differentiation_the_value_is_the_same(arrays) -> None:
    weight, smooth = weights(0.5, 0.2)
    value = linear_cross_entropy(*arrays, weight, smooth, chunk=8)[0]
    np.testing.assert_allclose(value, dense(*arrays, weight, smooth), rtol=1e-6)


def test_an_empty_selection_is_a_loss_of_zero_with_zero_gradients(arrays) -> None:
    hidden, table, bias, targets = arrays
    zero = jnp.zeros(POSITIONS)

    def ours(*trained):
        return linear_cross_entropy(*trained, targets, zero, zero, chunk=8)[0]

    value, gradients = jax.value_and_grad(ours, (0, 1, 2))(hidden, table, bias)
    assert value == 0.0
    assert all(not np.any(gradient) for gradient in gradients)


def test_nll_and_correct_cover_exactly_the_selected_positions(arrays) -> None:
    hidden, table, bias, targets = arrays
    logits = np.asarray(hidden @ table.T + bias)
    targets = jnp.where(jnp.arange(POSITIONS) % 3 == 0, jnp.asarray(logits.argmax(-1)), targets)
    selected = jnp.arange(POSITIONS) % 2 == 0
    weight = jnp.where(jnp.arange(POSITIONS) % 4 == 0, 1.0, 0.0)
    _, nll, correct = linear_cross_entropy(
        hidden, table, bias, targets, weight, jnp.zeros(POSITIONS), selected=selected, chunk=5
    )
    log_p = np.asarray(jax.nn.log_softmax(logits))
    wanted = np.where(selected, -log_p[np.arange(POSITIONS), targets], 0.0)
    np.testing.assert_allclose(nll, wanted, atol=1e-5)
    hits = np.asarray(selected) & (logits.argmax(-1) == np.asarray(targets))
    np.testing.assert_array_equal(correct, hits)
    assert 0 < hits.sum() < np.asarray(selected).sum()


def test_a_position_with_weight_that_is_not_selected_counts_for_nothing(arrays) -> None:
    selected = jnp.arange(POSITIONS) < 9
    ones, zeros = jnp.ones(POSITIONS), jnp.zeros(POSITIONS)
    value = linear_cross_entropy(*arrays, ones, zeros, selected=selected, chunk=4)[0]
    np.testing.assert_allclose(value, dense(*arrays, selected * ones, zeros), rtol=1e-6)


def test_extreme_logits_stay_finite_and_exact() -> None:
    hidden = jnp.asarray([[1000.0], [-1000.0]])
    table, bias = jnp.asarray([[1.0], [-1.0]]), jnp.zeros(2)
    ones = jnp.ones(2)

    def loss(hidden):
        targets = jnp.zeros(2, jnp.int32)
        return linear_cross_entropy(hidden, table, bias, targets, ones, 0 * ones)[0]

    value, gradient = jax.value_and_grad(loss)(hidden)
    assert value == 2000.0
    np.testing.assert_array_equal(gradient, [[0.0], [-2.0]])


def test_no_buffer_is_as_large_as_positions_by_vocabulary() -> None:
    positions, embed, vocab, chunk = 512, 8, 4096, 32
    shapes = [(positions, embed), (vocab, embed), (vocab,)]
    trained = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    weight = jax.ShapeDtypeStruct((positions,), jnp.float32)
    targets = jax.ShapeDtypeStruct((positions,), jnp.int32)

    def loss(hidden, table, bias, targets, weight):
        return linear_cross_entropy(hidden, table, bias, targets, weight, weight, chunk=chunk)[0]

    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    needed = step.lower(*trained, targets, weight).compile().memory_analysis().temp_size_in_bytes
    assert needed < positions * vocab * 4 / 2


def test_bfloat16_hidden_states_keep_float32_table_gradients(arrays) -> None:
    hidden, table, bias, targets = arrays
    weight, smooth = weights(1.0, 0.0)

    def ours(hidden, table):
        return linear_cross_entropy(hidden, table, bias, targets, weight, smooth, chunk=8)[0]

    value, (first, second) = jax.value_and_grad(ours, (0, 1))(hidden.astype(jnp.bfloat16), table)
    assert (first.dtype, second.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(value, dense(*arrays, weight, smooth), rtol=2e-2)


def test_a_chunk_without_positions_is_refused(arrays) -> None:
    with pytest.raises(ValueError, match="chunk=0"):
        linear_cross_entropy(*arrays, jnp.ones(POSITIONS), jnp.ones(POSITIONS), chunk=0)
