"""The fused kernels against the dense attention, on one device, over a mesh, and for a TPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.errors import UserError
from dlm_jax.models.attention import attention, chosen_implementation, dense_attention
from dlm_jax.models.config import SIZES, EncoderConfig
from dlm_jax.models.fused_attention import dot_product_attention, splash_attention

BATCH, LENGTH, HEADS, KV = 2, 128, 2, 16


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    qkv = jnp.asarray(random.normal(size=(BATCH, LENGTH, 3, HEADS, KV)), jnp.float32)
    # Two examples and padding; a row of padding alone.
    segments = np.zeros((BATCH, LENGTH), np.int32)
    segments[0, :50], segments[0, 50:110] = 1, 2
    weights = jnp.asarray(random.normal(size=(BATCH, LENGTH, HEADS, KV)), jnp.float32)
    return qkv, jnp.asarray(segments), weights


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", ["splash", "dot_product"])
def test_values_and_gradients_equal_the_dense_ones(inputs, kernel, causal) -> None:
    qkv, segments, weights = inputs

    def fused(qkv):
        if kernel == "splash":
            return splash_attention(qkv, segments, causal=causal, interpret=True)
        return dot_product_attention(qkv, segments, causal=causal)

    def dense(qkv):
        return dense_attention(qkv, segments, jnp.zeros(2, jnp.uint32), 0.0, causal)

    results = []
    for function in (fused, dense):
        gradient_of = jax.jit(jax.grad(lambda x, f=function: (f(x) * weights).sum()))
        results.append((jax.jit(function)(qkv), gradient_of(qkv)))
    (values, gradient), (wanted, wanted_gradient) = results
    np.testing.assert_allclose(values, wanted, atol=5e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=2e-5)


def test_auto_is_the_kernel_of_the_platform_that_is_compiled_for() -> None:
    def chosen(platform, kind, length=512, dropout=False):
        device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
        mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            return chosen_implementation(length, dropout=dropout)

    assert chosen("tpu", "TPU v5 lite") == "splash"
    assert chosen("tpu", "TPU v5 lite", length=500) == "xla"
    assert chosen("tpu", "TPU v5 lite", dropout=True) == "xla"
    assert chosen("gpu", "NVIDIA H100 80GB HBM3") == "dot_product"
    assert chosen("cpu", "cpu") == "xla"


def test_fused_kernels_refuse_what_they_cannot_do(inputs) -> None:
    qkv, segments, _ = inputs
    with pytest.raises(UserError, match="multiple of 128 tokens, not 100"):
        splash_attention(qkv[:, :100], segments[:, :100])
    with pytest.raises(ValueError, match="'splash' has no dropout"):
        seed = jnp.zeros(2, jnp.uint32)
        attention(qkv, segments, dropout_rate=0.1, dropout_seed=seed, implementation="splash")
    values = {name: getattr(SIZES["test"], name) for name in ("vocab_size", "embed_dim")}
    with pytest.raises(UserError, match="attention='splash' has no dropout, but .*=0.1 is not 0"):
        EncoderConfig(**values, num_layers=1, num_heads=2, mlp_dim=8, attention="splash")


def _run(program: str, **environment: str) -> dict:
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


MESH_PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from dlm_jax.models.attention import dense_attention
from dlm_jax.models.fused_attention import splash_attention
from dlm_jax.parallel.mesh import MeshConfig, make_mesh

random = np.random.default_rng(0)
qkv = jnp.asarray(random.normal(size=(4, 128, 3, 2, 8)), jnp.float32)
segments = jnp.asarray(np.sort(random.integers(0, 3, (4, 128))), jnp.int32)
weights = jnp.asarray(random.normal(size=(4, 128, 2, 8)), jnp.float32)
fused = lambda x: (splash_attention(x, segments, interpret=True) * weights).sum()
dense = lambda x: (dense_attention(x, segments, jnp.zeros(2, jnp.uint32), 0.0) * weights).sum()
wanted = jax.jit(jax.value_and_grad(dense))(qkv)
with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
    compiled = jax.jit(jax.value_and_grad(fused)).lower(qkv).compile()
    got = compiled(qkv)
pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(got, wanted)]
print(json.dumps([float(np.abs(a - b).max()) for a, b in pairs]))
"""


def test_over_a_mesh_each_device_attends_for_its_rows_and_heads() -> None:
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    value, gradient = _run(MESH_PROGRAM, XLA_FLAGS=flags)
    assert value < 1e-3 and gradient < 2e-5


TPU_PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.experimental import topologies
from dlm_jax.models.attention import attention
from dlm_jax.parallel.mesh import MeshConfig, make_mesh

devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
kernels = []
with jax.set_mesh(make_mesh(MeshConfig(1, 2, 2), devices)):
    for length, kv in ((512, 128), (640, 80)):
        qkv = jax.ShapeDtypeStruct((4, length, 3, 4, kv), jnp.bfloat16)
        segments = jax.ShapeDtypeStruct((4, length), jnp.int32)
        loss = lambda qkv, segments: attention(qkv, segments).astype(jnp.float32).sum()
        program = jax.jit(jax.grad(loss)).lower(qkv, segments).compile().as_text()
        kernels.append(program.count('custom_call_target="tpu_custom_call"'))
print(json.dumps(kernels))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_splash_kernel_compiles_for_a_tpu() -> None:
    one_block, several = _run(
        TPU_PROGRAM,
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_WORKER_HOSTNAMES="localhost",
    )
    # Forward and backward kernels; two for the backward pass where one block does not cover a row.
    assert (one_block, several) == (2, 3)
