"""Loss and lookup with the vocabulary split over 8 virtual devices, against the dense ones."""

from __future__ import annotations

import pytest

PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from dlm_jax.models.cross_entropy import linear_cross_entropy
from dlm_jax.models.sharded_lookup import sharded_lookup
from dlm_jax.models.vocabulary_shards import vocabulary_shards
from dlm_jax.parallel.mesh import MeshConfig, make_mesh

POSITIONS, EMBED = 40, 16
random = np.random.default_rng(0)
# The first three eighths are never selected: whole devices have nothing to do.
share = np.where(np.arange(POSITIONS) < 15, 0.0, 0.6)
weight = random.uniform(0.5, 3.0, POSITIONS) * (random.uniform(size=POSITIONS) < share)
weight = jnp.asarray(weight, jnp.float32)
smoothing = 0.3 * (weight > 0)

def arrays(vocab):
    hidden = jnp.asarray(random.normal(size=(POSITIONS, EMBED)), jnp.float32)
    table = jnp.asarray(random.normal(size=(vocab, EMBED)), jnp.float32)
    bias = jnp.asarray(random.normal(size=vocab), jnp.float32)
    targets = jnp.asarray(random.integers(0, vocab, POSITIONS), jnp.int32)
    best = (hidden @ table.T + bias).argmax(-1)
    return hidden, table, bias, jnp.where(jnp.arange(POSITIONS) % 3 == 0, best, targets)

def dense(hidden, table, bias, targets):
    log_p = jax.nn.log_softmax(hidden @ table.T + bias)
    nll = -jnp.take_along_axis(log_p, targets[:, None], -1)[:, 0]
    return 2.5 * ((weight * nll).sum() + (smoothing * -log_p.mean(-1)).sum())

def ours(hidden, table, bias, targets, chunk):
    value, nll, correct = linear_cross_entropy(
        hidden, table, bias, targets, weight, smoothing, chunk=chunk)
    return 2.5 * value, (nll, correct)

def largest(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    pairs = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in pairs]
    return [float(np.abs(a - b).max() / max(1, np.abs(b).max())) for a, b in pairs]

def take(table, ids, cotangent):
    return (table[ids] * cotangent).sum()

def sharded_take(table, ids, cotangent):
    rows = sharded_lookup(table, ids, vocabulary_shards())
    return (rows * cotangent).sum(), rows

results = []
dense_step = jax.jit(jax.value_and_grad(dense, (0, 1, 2)))
for shape in ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)):
    mesh = make_mesh(MeshConfig(*shape))
    ways = shape[1] * shape[2]
    kinds = [(53, 7, "float32")]
    if shape[0] < 8:
        kinds.append((208, None, "float32"))
    if shape == (2, 2, 2):
        kinds.append((208, 16, "bfloat16"))
    for vocab, chunk, dtype in kinds:
        hidden, table, bias, targets = arrays(vocab)
        expected = dense_step(hidden, table, bias, targets)
        alone = ours(hidden, table, bias, targets, chunk)[1]
        with jax.set_mesh(mesh):
            rows = P(("data", "fsdp"))
            split = P(("tensor", "fsdp")) if vocab % ways == 0 else P(None, "fsdp")
            place = [NamedSharding(mesh, spec) for spec in (rows, split, P(*split[:1]), rows)]
            placed = jax.device_put((hidden.astype(dtype), table, bias, targets), tuple(place))
            step = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True),
                           static_argnums=4, out_shardings=(None, tuple(place[:3])))
            compiled = step.lower(*placed, chunk).compile()
            (value, (nll, correct)), gradients = compiled(*placed)
            text = compiled.as_text()
        results.append({
            "mesh": shape, "vocab": vocab, "dtype": dtype,
            "errors": largest((value, *gradients), (expected[0], *expected[1])),
            "nll": largest(nll, alone[0])[0],
            "hits": [int(correct.sum()), int((correct != alone[1]).sum())],
            "dtypes": [str(g.dtype) for g in gradients],
            "whole": text.count(f"[{vocab},{EMBED}]") + text.count(f"[56,{EMBED}]"),
            "part": text.count(f"f32[{vocab // ways},{EMBED}]"),
        })
    for vocab in (53,) if shape[0] == 8 else (53, 208) if shape == (2, 2, 2) else (208,):
        _, table, _, _ = arrays(vocab)
        ids = jnp.asarray(random.integers(0, vocab, 37), jnp.int32)
        cotangent = jnp.asarray(random.normal(size=(37, EMBED)), jnp.float32)
        with jax.set_mesh(mesh):
            split = P(("tensor", "fsdp")) if vocab % ways == 0 else P(None, "fsdp")
            placed = jax.device_put(table, NamedSharding(mesh, split))
            step = jax.jit(jax.value_and_grad(sharded_take, has_aux=True),
                           out_shardings=(None, NamedSharding(mesh, split)))
            compiled = step.lower(placed, ids, cotangent).compile()
            (_, rows), gradient = compiled(placed, ids, cotangent)
            text = compiled.as_text()
        results.append({
            "mesh": shape, "lookup": vocab,
            "rows": int((np.asarray(rows) != np.asarray(table[ids])).sum()),
            "gradient": largest(gradient, jax.grad(take)(table, ids, cotangent))[0],
            "whole": text.count(f"f32[{vocab},{EMBED}]") + text.count(f"f32[56,{EMBED}]"),
        })
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(on_eight_devices) -> list[dict]:
    return on_eight_devices(PROGRAM)


def test_loss_and_gradients_equal_the_dense_ones_on_every_mesh(results) -> None:
    exact = [r for r in results if r.get("dtype") == "float32"]
    assert len(exact) == 7
    for result in exact:
        assert max(result["errors"]) < 2e-6, result
        assert result["nll"] < 1e-5, result


def test_bfloat16_hidden_states_differ_by_their_rounding_only(results) -> None:
    narrow = [r for r in results if r.get("dtype") == "bfloat16"]
    assert len(narrow) == 1
    for result in narrow:
        assert max(result["errors"]) < 2e-2, result
        assert result["dtypes"] == ["bfloat16", "float32", "float32"]


def test_hits_are_those_of_one_device(results) -> None:
    for result in results:
        if result.get("dtype") == "float32":
            hits, different = result["hits"]
            assert hits > 3 and different == 0, result


def test_looked_up_rows_are_exact_and_gradients_add_up(results) -> None:
    lookups = [r for r in results if "lookup" in r]
    assert len(lookups) == 5
    for result in lookups:
        assert result["rows"] == 0, result
        assert result["gradient"] < 1e-6, result


def test_no_device_ever_holds_the_whole_table_or_its_gradient(results) -> None:
    split = [r for r in results if r["mesh"][1] > 1]
    assert len(split) == 11
    for result in split:
        assert result["whole"] == 0, result
        assert 208 not in result.values() or result.get("part", 1) > 0, result
