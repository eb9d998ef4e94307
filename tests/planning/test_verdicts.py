"""Verdicts of the compiler: asked once for a program, asked anew for another one."""

from __future__ import annotations

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.planning import verdicts as module
from dlm_jax.planning.topologies import Topology
from dlm_jax.planning.verdicts import Verdicts

CPU = Topology.parse("cpu:1")


def question(factor: float = 2.0, topology=CPU, options=None):
    program = jax.jit(lambda x: factor * x @ x).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32))
    return program, make_mesh(MeshConfig(), jax.devices()[:1]), topology, options


def test_a_program_is_compiled_once(tmp_path, monkeypatch) -> None:
    kept = Verdicts(tmp_path / "plans")
    first = kept.ask(*question())
    assert first.peak_bytes and first.program.startswith("HloModule") and not first.kept
    monkeypatch.setattr(module, "compiled_verdict", lambda *_: pytest.fail("compiled again"))
    again = kept.ask(*question())
    assert again.kept
    assert (again.peak_bytes, again.program) == (first.peak_bytes, first.program)
    assert again.cpu_seconds == first.cpu_seconds


def test_what_the_compiler_is_given_makes_the_name(tmp_path, monkeypatch) -> None:
    kept = Verdicts(tmp_path)
    asked = [
        question(),
        question(3.0),
        question(topology=Topology.parse("cpu:2")),
        question(options={"xla_cpu_enable_fast_math": True}),
    ]
    assert not any(kept.ask(*each).kept for each in asked)
    assert all(kept.ask(*each).kept for each in asked)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_min_max=true")
    assert not kept.ask(*asked[0]).kept


ORDERS = """
import json, pathlib, tempfile
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from dlm_jax.planning.topologies import Topology
from dlm_jax.planning.verdicts import Verdicts

devices, texts, known = np.array(jax.devices()).reshape(4, 2), [], []
verdicts = Verdicts(pathlib.Path(tempfile.mkdtemp()))
for order in (devices, devices[::-1], devices):
    mesh = Mesh(order, ("data", "fsdp"))
    rows = NamedSharding(mesh, PartitionSpec("data", "fsdp"))
    leaf = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=rows)
    program = jax.jit(lambda x: x @ x.T, out_shardings=rows).lower(leaf)
    texts.append(program.as_text())
    known.append(verdicts.ask(program, mesh, Topology.parse("cpu:8"), None).kept)
print(json.dumps({"same": len(set(texts)) == 1, "known": known}))
"""


def test_the_same_program_on_devices_in_another_order_is_another_question(on_eight_devices) -> None:
    assert on_eight_devices(ORDERS) == {"same": True, "known": [False, False, True]}


# `ids` and no time in the archive: both of pytest-xdist's workers must collect the same names.
@pytest.mark.parametrize(
    "damage",
    [b"", b"no gzip", gzip.compress(b'{"peak', mtime=0), None],
    ids=["empty", "no gzip", "half a record", "another release"],
)
def test_a_damaged_verdict_is_asked_for_again(tmp_path, damage) -> None:
    kept = Verdicts(tmp_path)
    kept.ask(*question())
    [path] = tmp_path.iterdir()
    other = gzip.compress(json.dumps({"written_by": "another release"}).encode())
    path.write_bytes(other if damage is None else damage)
    assert not kept.ask(*question()).kept
    assert kept.ask(*question()).kept


def test_nothing_is_kept_without_a_folder() -> None:
    assert not Verdicts().ask(*question()).kept
    assert not Verdicts().ask(*question()).kept


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, total memory required for HLO "
            "temporaries (17.12G) exceeds available HBM (15.75G)",
            17.12 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: … Used 44.4G of 31.25G hbm. Exceeded", 44.4 * 2**30),
    ],
)
def test_bytes_that_a_compiler_asked_for(text, size) -> None:
    assert module._needed_bytes(RuntimeError(text)) == round(size)
    with pytest.raises(RuntimeError, match="INTERNAL"):
        module._needed_bytes(RuntimeError("INTERNAL: something else"))
