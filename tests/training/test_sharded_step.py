"""The real training step on 8 virtual devices: the same numbers as on one, whatever the mesh."""

from __future__ import annotations

import pytest

PROGRAM = """
import dataclasses, json
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.parallel.rules import ShardingRules, use_rules
from dlm_jax.training.objectives import Diffusion
from dlm_jax.training.optimizers import AdamW
from dlm_jax.training.sharding import batch_sharding, jit_step, placed_parameters, shardings_of
from dlm_jax.training.stage import adaptation
from dlm_jax.training.state import TrainState

LENGTH = 24
OBJECTIVE = Diffusion(label_smoothing=0.1).build(ByteVocabulary())
# Updates that follow the gradient's size, so that a wrong gradient shows in the parameters.
OPTIMIZER = AdamW(learning_rate=0.01, warmup_steps=0, epsilon=1e-2).build(10)
PLAIN = EncoderConfig(vocab_size=264, embed_dim=16, num_layers=2, num_heads=4, mlp_dim=32,
                      max_positions=66, dropout_rate=0.0, attention_dropout_rate=0.0)

def packed_batch():
    random = np.random.default_rng(0)
    names = ("tokens", "segment_ids", "positions", "example_ids", "maskable")
    batch = {name: np.zeros((16, LENGTH), np.int32) for name in names}
    number = 0
    for row in range(16):
        begin, segment = 0, 0
        while begin + 5 < LENGTH:
            size = min(int(random.integers(5, 14)), LENGTH - begin - row % 3)
            place, segment = (row, slice(begin, begin + size)), segment + 1
            batch["tokens"][place] = random.integers(5, 250, size)
            batch["segment_ids"][place] = segment
            batch["positions"][place] = np.arange(size)
            batch["example_ids"][place] = number
            batch["maskable"][place] = np.arange(size) >= 3
            begin, number = begin + size, number + 1
    return {**batch, "maskable": batch["maskable"].astype(bool)}

def run(config, mesh, accumulation=1):
    with jax.set_mesh(mesh):
        stage = adaptation(config, None, OBJECTIVE, OPTIMIZER, mesh, length=LENGTH, seed=7,
                           chunk=32, accumulation=accumulation)
        shardings = shardings_of(stage.abstract)
        state = jax.device_put(FIRST[config], shardings)
        batch = jax.device_put(packed_batch(), batch_sharding(mesh))
        lowered = jit_step(stage.step, shardings).lower(state, batch)
        compiled = lowered.compile()
        losses = []
        for _ in range(2):
            state, metrics = compiled(state, batch)
            losses.append(float(metrics["loss_sum"] / metrics["weight_sum"]))
    return state, losses, lowered.as_text(), compiled.as_text()

def largest(ours, theirs):
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(ours),
                               jax.device_get(theirs))
    return float(max(jax.tree.leaves(differences)))

def parts(state):
    # Share of the parameters, and of their moments, that one device holds.
    share = lambda tree: sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(tree)) / (
        sum(x.size for x in jax.tree.leaves(tree)))
    return share(state.parameters), share(state.optimizer_state)

# 261 rows are divided by none of the meshes.
MIXED = dataclasses.replace(PLAIN, vocab_size=261, tie_embeddings=False, dropout_rate=0.1,
                            attention_dropout_rate=0.1)
cases = [("plain", PLAIN, 1, [(8, 1, 1), (1, 8, 1), (2, 1, 4)]), ("mixed", MIXED, 2, [(2, 2, 2)])]
FIRST = {}
report = []
for name, config, accumulation, meshes in cases:
    first = encoders.parameters(encoders.Encoder(config, rngs=nnx.Rngs(0)))
    FIRST[config] = jax.device_get(TrainState.create(first, OPTIMIZER))
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    expected, expected_losses, text, _ = run(config, one, accumulation)
    report.append({"case": name, "mesh": [1, 1, 1], "losses": expected_losses,
                   "constraints": text.count("sharding_constraint")})
    for shape in meshes:
        state, losses, text, program = run(config, make_mesh(MeshConfig(*shape)), accumulation)
        report.append({
            "case": name, "mesh": shape, "losses": losses, "parts": parts(state),
            "constraints": text.count("sharding_constraint"),
            "parameters": largest(state.parameters, expected.parameters),
            "moments": largest(state.optimizer_state, expected.optimizer_state),
            "tables": program.count(f"f32[{config.vocab_size},{config.embed_dim}]"),
        })
with use_rules(ShardingRules(parameters={"embed": None}, activations={"mlp": None})):
    kernel = shardings_of(placed_parameters(PLAIN, make_mesh(MeshConfig(2, 2, 2))))
    report.append({"case": "rules", "kernel": list(kernel["layers"]["mlp"]["up"]["kernel"].spec)})
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(on_eight_devices) -> list[dict]:
    return on_eight_devices(PROGRAM)


def _meshed(report: list[dict]) -> list[dict]:
    return [entry for entry in report if "parts" in entry]


def test_losses_and_updated_parameters_equal_those_of_one_device(report) -> None:
    alone = {e["case"]: e["losses"] for e in report if e.get("mesh") == [1, 1, 1]}
    assert len(alone) == 2 and len(_meshed(report)) == 4
    for entry in _meshed(report):
        assert entry["losses"] == pytest.approx(alone[entry["case"]], rel=2e-6), entry
        assert entry["parameters"] < 2e-6, entry
        assert entry["moments"] < 2e-6, entry


def test_optimizer_state_is_split_as_the_parameters_are(report) -> None:
    for entry in _meshed(report):
        parameters, moments = entry["parts"]
        assert moments == pytest.approx(parameters, rel=1e-3), entry
    shares = {tuple(e["mesh"]): e["parts"][0] for e in _meshed(report) if e["case"] == "plain"}
    assert shares[8, 1, 1] == 1.0
    # Biases of heads and feed-forward blocks have no axis for 'fsdp', the position table none for
    # 'tensor'; all else is split.
    assert 1 / 8 < shares[1, 8, 1] < 1.15 / 8
    assert 1 / 4 < shares[2, 1, 4] < 0.4


def test_constraints_are_in_the_lowered_step(report) -> None:
    assert all(e["constraints"] == 0 for e in report if e.get("mesh") == [1, 1, 1])
    for entry in _meshed(report):
        # Embeddings, qkv, context, MLP and two residual sums, and their counterparts backward.
        assert entry["constraints"] >= 12, entry


def test_no_device_holds_a_whole_vocabulary_table(report) -> None:
    split = [e for e in _meshed(report) if e["case"] == "plain" and e["mesh"] != [8, 1, 1]]
    assert len(split) == 2
    for entry in split:
        assert entry["tables"] == 0, entry


def test_rules_of_the_user_are_followed(report) -> None:
    assert report[-1]["kernel"] == [None, None, "tensor"]
