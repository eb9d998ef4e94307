"""Kernels spread over the cache give the products, and the derivatives, of plain ones."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.models.dense import dense
from dlm_jax.parallel.mesh import MeshConfig, make_mesh


def _drawn(*shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def _dot_shapes(function, *arguments):
    text = jax.jit(function).lower(*arguments).as_text()
    return [shape for shape in re.findall(r"stablehlo\.dot_general.*-> tensor<([\dx]+)xf32>", text)]


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "num_inputs"),
    [
        ((4, 160, 256), (256, 3, 4, 64), 1),  # both axes crowded: 256 and 768 floats
        ((640, 4, 64), (4, 64, 40), 2),  # the summed axes only
        ((640, 40), (40, 512), 1),  # the written axis only
        ((640, 40), (40, 24), 1),  # neither
        ((3, 100, 256), (256, 512), 1),  # too few rows
    ],
)
def test_values_and_gradients_are_those_of_tensordot(x_shape, kernel_shape, num_inputs):
    x, kernel = _drawn(*x_shape), _drawn(*kernel_shape)
    weights = _drawn(*x_shape[: len(x_shape) - num_inputs], *kernel_shape[num_inputs:])

    def loss(product):
        return jax.value_and_grad(lambda x, w: (product(x, w) * weights).sum(), argnums=(0, 1))

    ours, our_gradients = loss(lambda x, w: dense(x, w, num_inputs))(x, kernel)
    plain, gradients = loss(lambda x, w: jnp.tensordot(x, w, axes=num_inputs))(x, kernel)
    np.testing.assert_allclose(ours, plain, rtol=1e-4)
    for one, other in zip(our_gradients, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-4)


def test_no_product_of_a_large_batch_has_crowded_rows():
    x, kernel = _drawn(640, 256), _drawn(256, 1024)
    step = jax.grad(lambda x, w: dense(x, w, 1).sum(), argnums=(0, 1))
    assert _dot_shapes(step, x, kernel) == ["640x272", "272x1040"]
    assert _dot_shapes(lambda x, w: dense(x, w, 1), x, kernel) == ["640x1040"]
    # A few rows are multiplied as they are: widening the kernel would cost more.
    assert _dot_shapes(lambda x, w: dense(x, w, 1), x[:100], kernel) == ["100x1024"]


def test_the_dtype_is_that_of_the_factors():
    x, kernel = _drawn(640, 512, dtype=jnp.bfloat16), _drawn(512, 512, dtype=jnp.bfloat16)
    gradient = jax.grad(lambda w: dense(x, w, 1).sum().astype(jnp.float32))(kernel)
    assert dense(x, kernel, 1).dtype == gradient.dtype == jnp.bfloat16


def test_a_mesh_of_one_cpu_is_spread_too():
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        shapes = _dot_shapes(lambda x, w: dense(x, w, 1), _drawn(640, 256), _drawn(256, 1024))
    assert shapes == ["640x1040"]
