"""The blockwise attention against the dense one, which JAX differentiates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.models import attention as module
from dlm_jax.models.attention import attention, blockwise_attention, dense_attention

BATCH, LENGTH, HEADS, KV = 6, 12, 2, 8


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    qkv = jnp.asarray(random.normal(size=(BATCH, LENGTH, 3, HEADS, KV)), jnp.float32)
    segments = jnp.asarray(np.sort(random.integers(0, 3, (BATCH, LENGTH))), jnp.int32)
    weights = jnp.asarray(random.normal(size=(BATCH, LENGTH, HEADS, KV)), jnp.float32)
    return qkv, segments, weights


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("rows", [1, 2, 6])
def test_values_and_gradients_equal_the_dense_ones(inputs, rate, rows, causal, monkeypatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * rows * HEADS * LENGTH * LENGTH)
    qkv, segments, weights = inputs
    seed = jnp.asarray([5, 6], jnp.uint32)

    def loss(function, qkv):
        context = function(qkv, segments, seed, rate, causal)
        return (context * weights).sum(), context

    results = []
    for function in (dense_attention, blockwise_attention):
        step = jax.value_and_grad(lambda x, f=function: loss(f, x), has_aux=True)
        results.append(jax.jit(step)(qkv))
    ((_, dense), dense_gradient), ((_, blockwise), gradient) = results
    np.testing.assert_allclose(blockwise, dense, atol=2e-6)
    np.testing.assert_allclose(gradient, dense_gradient, atol=1e-5)


def test_dropped_probabilities_keep_the_expectation(inputs) -> None:
    qkv, segments, _ = inputs
    full = attention(qkv, segments)

    def dropped(number):
        seed = jnp.stack([number, jnp.uint32(1)])
        return attention(qkv, segments, dropout_rate=0.2, dropout_seed=seed)

    draws = jax.lax.map(dropped, jnp.arange(2000, dtype=jnp.uint32))
    error = np.asarray(draws.mean(0) - full)
    standard_error = np.asarray(draws.std(0)) / np.sqrt(2000)
    # 1152 elements, nearly normal: the largest of so many stays under 5 standard errors.
    assert (np.abs(error) <= 5 * standard_error + 1e-6).all()
    assert standard_error.max() > 0


def test_no_seed_means_no_dropout(inputs) -> None:
    qkv, segments, _ = inputs
    np.testing.assert_array_equal(
        attention(qkv, segments, dropout_rate=0.5), attention(qkv, segments)
    )


def test_equal_scores_average_the_values_of_the_segment() -> None:
    value = np.random.default_rng(1).normal(size=(1, 5, 2, 4))
    qkv = jnp.zeros((1, 5, 3, 2, 4)).at[:, :, 2].set(value)
    segments = jnp.asarray([[1, 1, 1, 2, 2]])
    context = attention(qkv, segments)[0]
    np.testing.assert_allclose(context[1], value[0, :3].mean(0), atol=1e-6)
    np.testing.assert_allclose(context[4], value[0, 3:].mean(0), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_the_dense_attention_is_a_softmax_over_the_visible_tokens(inputs, causal) -> None:
    qkv, segments = (np.asarray(x, np.float64) for x in inputs[:2])
    context = attention(*inputs[:2], causal=causal)
    for row, place, head in np.ndindex(BATCH, LENGTH, HEADS):
        seen = np.flatnonzero(segments[row] == segments[row, place])
        seen = seen[seen <= place] if causal else seen
        query, key, value = (
            qkv[row, place, 0, head],
            qkv[row, seen, 1, head],
            qkv[row, seen, 2, head],
        )
        weights = np.exp(key @ query / np.sqrt(KV))
        np.testing.assert_allclose(
            context[row, place, head], weights @ value / weights.sum(), atol=2e-6
        )
