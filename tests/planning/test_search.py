"""The search compiles little and finds what fits and what is fastest; its compiler is a formula."""

from __future__ import annotations

import pytest

from dlm_jax.errors import UserError
from dlm_jax.models.config import SIZES
from dlm_jax.planning.compile import Compiled
from dlm_jax.planning.plan import Plan
from dlm_jax.planning.roofline import roofline
from dlm_jax.planning.search import candidates, fastest, smallest, state_bytes
from dlm_jax.planning.topologies import Topology

XXL = SIZES["xxl"]
# Bytes of activations that a row of 512 tokens leaves in each of XXL's layers.
_KEPT = {"none": 200e6, "minimal": 60e6, "dots": 55e6, "full": 4.2e6}


def planner(request, topology) -> Plan:
    devices = topology.chips * topology.accelerator.devices_per_chip
    data, fsdp, tensor = request.mesh.shape(devices)
    rows = request.rows / request.accumulation / (data * fsdp)
    state = state_bytes(request) / (fsdp * tensor)
    kept = rows * request.config.num_layers * _KEPT[request.config.remat_policy] / tensor
    peak = round(state * 4 / 3 + kept)
    fits = peak <= topology.accelerator.usable_bytes
    compiled = Compiled(
        mesh={"data": data, "fsdp": fsdp, "tensor": tensor},
        parameter_bytes=round(state / 3),
        state_bytes=round(state),
        peak_bytes=peak if fits else None,
        needed_bytes=None if fits else peak,
        usable_bytes=topology.accelerator.usable_bytes,
        collectives=(),
        cpu_seconds=0.0,
        seconds=0.0,
    )
    bound = roofline(
        request, (), topology.accelerator, devices=devices, directions=topology.ring_directions
    )
    return Plan(request, topology, compiled, bound if fits else None)


@pytest.fixture
def make(request_for):
    def request(rows=64):
        return request_for(XXL, pairing="single", batch_size=rows, length=512, dtype="bfloat16")

    return request


def test_state_is_twelve_bytes_for_each_parameter_under_adamw(make) -> None:
    assert state_bytes(make()) == pytest.approx(12 * XXL.num_parameters(), rel=1e-6)


def test_candidates_divide_devices_batch_and_heads(make) -> None:
    topology = Topology.parse("v5e:4x4")
    found = list(candidates(make(), topology, "full"))
    assert found
    for candidate in found:
        mesh, micro = candidate.request.mesh, candidate.request.accumulation
        assert mesh.data * mesh.fsdp * mesh.tensor == 16
        assert 64 % (mesh.data * mesh.fsdp * micro) == 0
        assert candidate.request.config.remat_policy == "full"


def test_the_smallest_slice_that_fits(make) -> None:
    tried: list[Plan] = []
    plan = smallest(make(), "v5e", 64, planner=planner, report=tried.append)
    assert plan is not None and plan.topology.name == "v5e:4x4"
    # The state alone is too large for 4 chips, which are never compiled; it is not for 8.
    assert [(item.topology.chips, item.request.accumulation) for item in tried] == [
        (8, 1),
        (8, 8),
        (16, 1),
    ]
    assert plan.request.config.remat_policy == "full"
    assert smallest(make(), "v5e", 8, planner=planner) is None


def test_the_fastest_setting_recomputes_as_little_as_fits(make) -> None:
    roomy = fastest(make(), Topology.parse("v5p:4x4x4"), planner=planner)
    assert roomy.best is not None and roomy.best.request.config.remat_policy == "none"
    tight = fastest(make(), Topology.parse("v5e:4x4"), planner=planner, max_compiles=30)
    assert tight.best is not None and tight.best.compiled.fits
    assert tight.best.request.accumulation > 1
    assert tight.hopeless > 0
    assert all(plan.compiled.state_bytes < 15.75 * 2**30 for plan in tight.plans)
    fitting = [plan for plan in tight.plans if plan.compiled.fits]
    assert tight.best.roofline.seconds[1] == min(plan.roofline.seconds[1] for plan in fitting)


def test_a_search_stops_after_so_many_compilations(make) -> None:
    found = fastest(make(), Topology.parse("v5e:4x4"), planner=planner, max_compiles=2)
    assert len(found.plans) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda make: fastest(make(), Topology.parse("cpu:8"), planner=planner), "memory is known"),
        (lambda make: smallest(make(), "v5", 64, planner=planner), "v5 is no family.*did you mean"),
        (
            lambda make: fastest(make(6), Topology.parse("v5e:4x4"), planner=planner),
            "divides a batch of 6 rows",
        ),
    ],
)
def test_mistakes_are_a_sentence(make, call, message) -> None:
    with pytest.raises(UserError, match=message):
        call(make)
