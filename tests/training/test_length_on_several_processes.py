"""The length stage on two real processes: none runs a program that the other has not compiled."""

from __future__ import annotations

import numpy as np

PROGRAM = """
import json, sys
from dlm_jax.parallel import multihost
from dlm_jax.parallel.cluster import Cluster

address, count, mine = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if count > 1:
    multihost.initialize(Cluster(address, count, mine, "the test"))
import jax, numpy as np, optax
from flax import nnx
from dlm_jax.checkpoints.fingerprint import fingerprint
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import SIZES
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.length_objective import frozen_features, length_stage, log_probs_program
from dlm_jax.training.sharding import batch_sharding, parameter_shardings

met, exchange = [], multihost.exchange

def noted(topic, text):
    met.append(topic)
    return exchange(topic, text)

multihost.exchange = noted
config = SIZES["test"]
random = np.random.default_rng(0)
batch = {
    "tokens": random.integers(5, 90, (8, 16)).astype(np.int32),
    "maskable": np.arange(16)[None] >= random.integers(3, 9, (8, 1)),
    "segment_ids": np.ones((8, 16), np.int32),
    "positions": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
}

def split(array, sharding):
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

tree = encoders.parameters(encoders.Encoder(config, rngs=nnx.Rngs(0)))
mesh = make_mesh(MeshConfig(data=1, fsdp=2))
with jax.set_mesh(mesh):
    frozen = jax.tree.map(split, tree, parameter_shardings(config, mesh))
    rows = {name: split(array, batch_sharding(mesh)) for name, array in batch.items()}
    found = {"print": fingerprint(frozen)}
    features, log_probs = frozen_features(config, frozen, 16), log_probs_program(config)
    state = length_stage(config, optax.adam(1e-2), mesh, seed=0).create()
    # The second time nothing is compiled.
    for number in range(2):
        read = features(rows, number)
        found["log_probs"] = np.asarray(log_probs(state.parameters, read)).tolist()
print(json.dumps({**found, "met": met}), flush=True)
multihost.leave(0)
"""


def test_each_program_is_compiled_by_both_before_one_runs_it(on_processes) -> None:
    [alone] = on_processes(PROGRAM, 1, devices=2)
    pair = on_processes(PROGRAM, 2)
    assert alone["met"] == []
    for one in pair:
        assert one["met"] == ["compiled"] * 3  # fingerprint, features, log-probabilities
        assert one["print"] == alone["print"]
        np.testing.assert_allclose(one["log_probs"], alone["log_probs"], atol=1e-5)
