"""The parts of a step's time add up to it, and carry the names of what ran."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
from flax import nnx

from dlm_jax.data.packing import empty_batch
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.breakdown import (
    Span,
    _add_up,
    group_of_instructions,
    innermost,
)
from dlm_jax.training.compilations import CompilationCounter
from dlm_jax.training.goodput import Goodput
from dlm_jax.training.objectives import Diffusion
from dlm_jax.training.optimizers import AdamW
from dlm_jax.training.profiling import StepProfiler
from dlm_jax.training.program import KeptProgram, hlo_writer
from dlm_jax.training.stage import adaptation
from dlm_jax.training.state import TrainState

CONFIG = EncoderConfig(
    vocab_size=264, embed_dim=64, num_layers=2, num_heads=2, mlp_dim=128, max_positions=66
)
STEPS = 3


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Folder of a profiled run of the real step, what was said, and how often it was compiled."""
    folder, said = tmp_path_factory.mktemp("run"), []
    optimizer = AdamW().build(10)
    objective, mesh = Diffusion().build(ByteVocabulary()), make_mesh(MeshConfig())
    step = adaptation(CONFIG, None, objective, optimizer, mesh, length=64, seed=0).step
    state = TrainState.create(
        encoders.parameters(encoders.Encoder(CONFIG, rngs=nnx.Rngs(0))), optimizer
    )
    batch = {**empty_batch(8, 64, 0)}
    batch["segment_ids"] = np.ones_like(batch["segment_ids"])
    batch["maskable"] = np.ones_like(batch["maskable"])
    compilations, goodput = CompilationCounter(), Goodput(0.0)
    program = KeptProgram(jax.jit(step, donate_argnums=0), hlo_writer(folder / "hlo", said.append))
    profiler = StepProfiler(folder / "profile", (2, 1 + STEPS), said.append, program.text)
    for number in range(1, 3 + STEPS):
        profiler.before(number, state)
        with goodput.measure("data"):
            placed = jax.device_put(batch)
        with (
            compilations.counting(),
            jax.profiler.StepTraceAnnotation("train", step_num=number),
            # Compiling brings constants to the device; after it a step takes nothing from the host.
            jax.transfer_guard("allow" if number == 1 else "disallow"),
        ):
            state, metrics = program(state, placed)
        profiler.after(number, metrics)
    compilations.close()
    return folder, said, compilations.count


def test_a_profile_says_where_the_time_of_a_step_went(profiled):
    folder, said, _ = profiled
    found = json.loads((folder / "profile/breakdown.json").read_text())
    assert found["steps"] == STEPS
    for parts in (found["host"], found["device"]):
        assert sum(parts.values()) == pytest.approx(found["step"], rel=1e-6)
        assert all(value > -1e-3 * found["step"] for value in parts.values()), parts
    named = {"attention", "mlp", "layers", "embeddings", "head_and_loss", "optimizer", "noise"}
    assert all(found["device"].get(name, 0) > 0 for name in named), found["device"]
    assert found["host"]["data"] > 0 and found["host"]["dispatch"] > 0
    table = (folder / "profile/breakdown.txt").read_text()
    assert table.strip() in said and "attention" in table


def test_the_program_is_written_down_without_a_second_compilation(profiled):
    folder, said, compiled = profiled
    assert compiled == 1
    assert "stablehlo.dot_general" in (folder / "hlo/train_step.stablehlo.txt").read_text()
    optimized = (folder / "hlo/train_step.hlo.txt").read_text()
    assert optimized.startswith("HloModule")
    products = re.findall(r"(\S+) = .*op_name=\"[^\"]*/dot_general\"", optimized)
    names = {name.lstrip("%") for name in products}
    assert len(names) > 10 and names <= group_of_instructions(optimized).keys()
    assert str(folder / "hlo") in said[0]


def test_instructions_belong_to_the_innermost_scope_whatever_transforms_surround_it():
    program = """
  %fusion.1 = f32[2]{0} fusion(%a), metadata={op_name="jit(s)/jvp(layers)/while/body/attention/add"}
  ROOT %dot.7 = f32[2]{0} dot(%a, %b), metadata={op_name="transpose(jvp(layers))/mlp/dot" x=1}
  %all-reduce.2 = f32[2]{0} all-reduce(%c), metadata={op_name="jit(step)/optimizer/psum"}
  %add.3 = f32[2]{0} add(%c, %d), metadata={op_name="jit(step)/mlp_like/add"}
"""
    assert group_of_instructions(program) == {
        "fusion.1": "attention",
        "dot.7": "mlp",
        "all-reduce.2": "collectives",
    }


def test_loops_count_without_their_bodies_and_lanes_share_the_time():
    lane = [Span(0, 10, "loop"), Span(2, 5, "body"), Span(6, 8, "body"), Span(12, 13, "tail")]
    pieces = list(innermost(lane))
    assert [(p.begin, p.end, p.name) for p in pieces] == [
        (0, 2, "loop"),
        (2, 5, "body"),
        (5, 6, "loop"),
        (6, 8, "body"),
        (8, 10, "loop"),
        (12, 13, "tail"),
    ]
    host = [Span(0, 4e6, "train"), Span(10e6, 14e6, "train"), Span(8e6, 10e6, "dlm:data")]
    device = [[Span(0, 8e6, "attention")], [Span(4e6, 12e6, "mlp")]]
    found = _add_up(host, [device])
    assert found is not None and found.step == 7.0
    assert found.host == {"dispatch": 4.0, "data": 1.0, "rest": 2.0}
    assert found.device == {"attention": 3.0, "mlp": 3.0, "idle": 1.0}
