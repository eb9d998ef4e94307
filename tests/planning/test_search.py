"""The search compiles little and finds what fits and what is fastest; its compiler is a formula."""

from __future__ import annotations

import dataclasses

import pytest

from dlm_jax.errors import UserError
from dlm_jax.models.config import REMAT_POLICIES, SIZES
from dlm_jax.parallel.mesh import MeshConfig
from dlm_jax.planning.compile import Compiled
from dlm_jax.planning.estimate import Machine, estimated_seconds, least_bytes, state_bytes
from dlm_jax.planning.plan import Plan
from dlm_jax.planning.roofline import roofline, step_flops
from dlm_jax.planning.search import candidates, fastest, smallest
from dlm_jax.planning.topologies import Topology

XXL = SIZES["xxl"]
# Bytes of activations that a row of 512 tokens leaves in each of XXL's layers.
_KEPT = {"none": 200e6, "minimal": 60e6, "dots": 55e6, "full": 4.2e6}


def planner(request, topology) -> Plan:
    devices = topology.chips * topology.accelerator.devices_per_chip
    data, fsdp, tensor = request.mesh.shape(devices)
    rows = request.rows / request.accumulation / (data * fsdp)
    state = state_bytes(request) / (fsdp * tensor)
    kept = rows * request.config.num_layers * _KEPT[request.config.remat_policy]
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
    )
    bound = roofline(request, (), topology.accelerator, devices=devices)
    return Plan(request, topology, compiled, bound if fits else None)


@pytest.fixture
def make(request_for):
    def request(rows=64):
        return request_for(XXL, pairing="single", batch_size=rows, length=512, dtype="bfloat16")

    return request


def test_state_is_twelve_bytes_for_each_parameter_under_adamw(make) -> None:
    assert state_bytes(make()) == pytest.approx(12 * XXL.num_parameters(), rel=1e-6)


def test_candidates_divide_devices_batch_and_heads(make) -> None:
    found = list(candidates(make(), Topology.parse("v5e:4x4")))
    assert {item.request.config.remat_policy for item in found} == set(REMAT_POLICIES)
    for candidate in found:
        mesh, micro = candidate.request.mesh, candidate.request.accumulation
        assert mesh.data * mesh.fsdp * mesh.tensor == 16
        assert 64 % (mesh.data * mesh.fsdp * micro) == 0


@pytest.mark.parametrize(
    ("topology", "mesh", "rows", "policy", "peak"),
    [
        # GiB that the TPU compiler needs for these (docs/planning.md).
        ("v5e:4x4", MeshConfig(1, 16, 1), 128, "full", 13.75),
        ("v5p:4x4x4", MeshConfig(4, 16, 1), 2048, "dots", 67.28),
    ],
)
def test_the_least_memory_is_less_than_compilers_need(
    make, topology, mesh, rows, policy, peak
) -> None:
    request = make(rows)
    config = dataclasses.replace(request.config, remat_policy=policy)
    request = dataclasses.replace(request, config=config, mesh=mesh)
    devices = Topology.parse(topology).chips
    assert 0.6 * peak < least_bytes(request, state_bytes(request), devices) / 2**30 < peak


def test_the_least_memory_by_hand(make) -> None:
    def least(request):
        return least_bytes(request, 12 * parameters, 16) - 12 * parameters / 16

    parameters = XXL.num_parameters()
    config = dataclasses.replace(XXL, dtype="bfloat16", remat_policy="full")
    request = dataclasses.replace(make(), config=config, mesh=MeshConfig(1, 16, 1))
    # Four rows a device keep less than bfloat16 gradients take; micro-batches need sums as well.
    assert least(request) == 2 * parameters / 16
    micro = dataclasses.replace(request, accumulation=4)
    assert least(micro) == (4 + 2) * parameters / 16
    dots = dataclasses.replace(config, remat_policy="dots")
    products = 4 * 512 * 48 * 2 * (5 * 4096 + 4 * 4096)
    assert least(dataclasses.replace(request, config=dots)) == pytest.approx(products)


def test_estimated_time_of_the_links_by_hand(make) -> None:
    request = dataclasses.replace(make(), mesh=MeshConfig(1, 16, 1))
    machine = Machine.of(Topology.parse("v5e:4x4"))
    assert machine is not None and (machine.devices, machine.directions) == (16, 2)
    weights = 2 * (XXL.num_parameters() - XXL.vocab_size * XXL.embed_dim)
    compute = step_flops(request).hardware / 16 / 197e12
    links = 3 * weights * 15 / 16 / (2 * 45e9)
    assert estimated_seconds(request, machine) == pytest.approx(compute + links)
    # Every micro-batch gathers the weights again.
    twice = dataclasses.replace(request, accumulation=2)
    assert estimated_seconds(twice, machine) == pytest.approx(compute + 2 * links)


def test_the_smallest_slice_that_fits(make) -> None:
    tried: list[str] = []
    plan = smallest(make(), "v5e", 64, planner=planner, report=tried.append)
    assert plan is not None and plan.topology.name == "v5e:4x4"
    # State and gradients are too large for 8 chips by arithmetic: these are never compiled.
    assert [line.split()[0] for line in tried] == ["v5e:4x4"]
    assert plan.request.config.remat_policy == "full" and plan.request.accumulation == 1
    assert smallest(make(), "v5e", 8, planner=planner) is None


def test_the_fastest_setting_recomputes_as_little_as_fits(make) -> None:
    roomy = fastest(make(), Topology.parse("v5p:4x4x4"), planner=planner)
    assert roomy.best is not None and roomy.best.request.config.remat_policy == "none"
    assert len(roomy.plans) == 1  # nothing promises to be faster than the first that fits
    tight = fastest(make(), Topology.parse("v5e:4x4"), planner=planner)
    assert tight.best is not None and tight.best.compiled.fits
    assert tight.best.request.config.remat_policy != "none"
    assert 0 < tight.hopeless < tight.settings
    assert len(tight.plans) <= 6
    # One plan of a mesh, and not every mesh.
    assert len({plan.request.mesh for plan in tight.plans if plan.compiled.fits}) <= 3
    fitting = [plan for plan in tight.plans if plan.compiled.fits]
    assert tight.best.roofline.seconds[1] == min(plan.roofline.seconds[1] for plan in fitting)


def test_a_search_stops_after_so_many_compilations(make) -> None:
    found = fastest(make(), Topology.parse("v5e:4x4"), planner=planner, max_compiles=1)
    assert len(found.plans) == 1


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
