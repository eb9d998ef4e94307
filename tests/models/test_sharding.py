"""The encoder on 8 virtual devices: constraints in the program, values as on one device."""

from __future__ import annotations

import pytest

PROGRAM = """
import dataclasses, json
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from dlm_jax.models.config import SIZES
from dlm_jax.models.encoder import Encoder, abstract_parameters, from_parameters, logical_axes
from dlm_jax.models.encoder import parameters
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.parallel.rules import parameter_shardings

config = dataclasses.replace(SIZES["test"], num_layers=1)
random = np.random.default_rng(0)
tokens = jnp.asarray(random.integers(3, 90, (8, 16)), jnp.int32)
positions = jnp.asarray(np.tile(np.arange(16), (8, 1)), jnp.int32)
segments = jnp.asarray(np.tile(np.arange(16) // 6 + 1, (8, 1)), jnp.int32)
key = jax.random.key(3)

def loss(tree):
    encoder = from_parameters(config, tree)
    features = encoder.features(tokens, positions, segments, dropout_key=key)
    return jnp.square(encoder.logits(features)).mean()

step = jax.value_and_grad(loss)
tree = parameters(Encoder(config, rngs=nnx.Rngs(0)))
report = {"devices": jax.device_count(), "meshes": []}
report["unset"] = jax.jit(step).lower(tree).as_text().count("sharding_constraint")
expected, gradients = jax.jit(step)(tree)
for shape in (MeshConfig(2, 2, 2), MeshConfig(1, 8, 1)):
    mesh = make_mesh(shape)
    shardings = parameter_shardings(logical_axes(config), mesh, shapes=abstract_parameters(config))
    with jax.set_mesh(mesh):
        placed = jax.device_put(tree, shardings)
        lowered = jax.jit(step).lower(placed)
        value, sharded = lowered.compile()(placed)
    differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), jax.device_get(gradients),
                               jax.device_get(sharded))
    kernel = placed["layers"]["mlp"]["up"]["kernel"]
    report["meshes"].append({
        "constraints": lowered.as_text().count("sharding_constraint"),
        "value": float(value - expected),
        "gradient": max(jax.tree.leaves(differences)),
        "kernel_part": kernel.addressable_shards[0].data.size / kernel.size,
    })
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(on_eight_devices) -> dict:
    return on_eight_devices(PROGRAM, optimized=True)


def test_constraints_are_in_the_lowered_program_under_a_mesh_and_only_there(report) -> None:
    assert report["devices"] == 8
    assert report["unset"] == 0
    # Embeddings, qkv, context, MLP and two residual sums: six in the forward pass alone.
    assert all(mesh["constraints"] >= 6 for mesh in report["meshes"])


def test_losses_and_gradients_equal_those_of_one_device(report) -> None:
    for mesh in report["meshes"]:
        assert abs(mesh["value"]) < 1e-6
        assert mesh["gradient"] < 1e-6


def test_parameters_are_split_over_fsdp_and_tensor(report) -> None:
    assert [mesh["kernel_part"] for mesh in report["meshes"]] == [1 / 4, 1 / 8]
