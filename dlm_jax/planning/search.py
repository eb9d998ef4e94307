"""Search over slices, meshes, rematerialisation and micro-batches: what fits, and what is fastest.

Compiling billions of parameters takes a minute and more, so the search compiles little. Settings
that cannot fit, by arithmetic, are never compiled; the others are in the order of their estimated
time. When the first one has fitted, a few other meshes follow whose estimate is below its time, in
case the compiler sends more than it should for the first. A setting that does not fit costs
seconds, because the compiler gives up early.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from dlm_jax.errors import UserError, nearest
from dlm_jax.models.config import REMAT_POLICIES
from dlm_jax.parallel.mesh import MeshConfig
from dlm_jax.planning.estimate import Machine, estimated_seconds, least_bytes, state_bytes
from dlm_jax.planning.plan import Plan, make_plan
from dlm_jax.planning.request import TrainingStep
from dlm_jax.planning.topologies import FAMILIES, Topology

_TENSOR_SIZES = (1, 2, 4)
_GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# What a setting must promise to save of the time of the best one so far to be worth a compilation.
_WORTHWHILE = 0.03
Planner = Callable[[TrainingStep, Topology], Plan]
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a step.

    Attributes:
        request: the step, with mesh, rematerialisation and micro-batches set.
        tokens: tokens of a micro-batch that go through a device.
        least_bytes: what a device must hold at a time.
        seconds: estimated time of the step without overlap.
    """

    request: TrainingStep
    tokens: float
    least_bytes: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search on one topology ended with.

    Attributes:
        plans: everything that was compiled, in order.
        settings: number of settings there are.
        hopeless: how many of them cannot fit, by arithmetic.
        best: the fastest plan that fits, by its time without overlap; None when none fits.
    """

    plans: tuple[Plan, ...]
    settings: int
    hopeless: int
    best: Plan | None


def candidates(request: TrainingStep, topology: Topology) -> Iterator[Candidate]:
    """Yields the ways to run a step: policies, and meshes and micro-batches that divide it."""
    machine = _machine(topology)
    devices, state = machine.devices // topology.slices, state_bytes(request)
    for accumulation in _divisors(request.batch_size):
        for tensor in _TENSOR_SIZES:
            ways = devices // tensor * topology.slices * accumulation
            if devices % tensor or request.batch_size % ways or request.config.num_heads % tensor:
                continue
            for fsdp in _divisors(devices // tensor):
                mesh = MeshConfig(devices // tensor // fsdp, fsdp, tensor, dcn_data=topology.slices)
                for policy in REMAT_POLICIES:
                    chosen = _with(request, policy, accumulation, mesh)
                    yield Candidate(
                        chosen,
                        request.rows * request.length * tensor / machine.devices / accumulation,
                        least_bytes(chosen, state, machine.devices),
                        estimated_seconds(chosen, machine),
                    )


def fastest(
    request: TrainingStep,
    topology: Topology,
    *,
    max_compiles: int = 12,
    max_meshes: int = 3,
    planner: Planner = make_plan,
    report: Report = lambda line: None,
) -> Found:
    """Finds the fastest setting on a topology.

    Args:
        request: the step; its model, batch size and length stay.
        topology: where.
        max_compiles: compilations after which the best so far is taken.
        max_meshes: meshes on which something fits after which it is taken as well.
        planner: makes a plan of a setting.
        report: told of each plan as it is made.

    Raises:
        UserError: the accelerator's memory is not known, or no mesh divides the batch.
    """
    machine = _machine(topology)
    usable = machine.accelerator.usable_bytes
    every = sorted(candidates(request, topology), key=lambda item: item.seconds)
    if not every:
        raise UserError(
            f"no mesh of {topology} divides a batch of {request.batch_size} rows: "
            f"take a multiple of {machine.devices}"
        )
    possible = [item for item in every if item.least_bytes < usable]
    report(
        f"{topology}: {len(every)} settings, {len(every) - len(possible)} of them too large for "
        f"{usable / 2**30:.2f} GiB by arithmetic; compiling the others, fastest first, until one "
        "fits (seconds for each that does not, minutes for one that does)"
    )
    compiled: list[tuple[Candidate, Plan]] = []
    fitting: dict[MeshConfig, Plan] = {}
    best: Plan | None = None
    for candidate in possible:
        promise = best is None or candidate.seconds < (1 - _WORTHWHILE) * _seconds(best)
        if len(compiled) >= max_compiles or len(fitting) >= max_meshes or not promise:
            break
        mesh = candidate.request.mesh
        if mesh in fitting or any(_must_exceed(usable, candidate, *pair) for pair in compiled):
            continue
        plan = planner(candidate.request, topology)
        compiled.append((candidate, plan))
        report(plan.setting())
        if plan.compiled.fits:
            fitting[mesh] = plan
            best = min(fitting.values(), key=_seconds)
    plans = tuple(plan for _, plan in compiled)
    return Found(plans, len(every), len(every) - len(possible), best)


def _must_exceed(usable: float, candidate: Candidate, other: Candidate, plan: Plan) -> bool:
    """Whether a setting needs too much, judged by another one of the same policy.

    What that one needed beyond the least, this one needs as well, at most in proportion less where
    it has fewer tokens at a time.
    """
    if candidate.request.config.remat_policy != other.request.config.remat_policy:
        return False
    beyond = (plan.compiled.peak_bytes or plan.compiled.needed_bytes or 0) - other.least_bytes
    return candidate.least_bytes + beyond * min(1.0, candidate.tokens / other.tokens) > usable


def smallest(
    request: TrainingStep,
    family: str,
    max_chips: int,
    *,
    planner: Planner = make_plan,
    report: Report = lambda line: None,
) -> Plan | None:
    """Finds the smallest slice that holds the step at all, in its leanest settings.

    They recompute every layer, split the state over all devices, and take either the whole batch or
    one row a device at a time.

    Args:
        request: the step; its model, batch size and length stay.
        family: of accelerators, such as 'v5e'.
        max_chips: largest slice that is tried.
        planner: makes a plan of a setting.
        report: told of each plan as it is made.

    Returns:
        The plan of the smallest slice that fits, or None.

    Raises:
        UserError: there is no such family, or the memory of its accelerators is not known.
    """
    state = state_bytes(request)
    for topology in _slices(family, max_chips):
        machine = _machine(topology)
        if request.batch_size % machine.devices:
            continue
        # One row a device at a time needs the least for activations, but a second set of gradients.
        for accumulation in sorted({1, request.batch_size // machine.devices}):
            lean = _with(request, "full", accumulation, MeshConfig(1, -1, 1))
            if least_bytes(lean, state, machine.devices) >= machine.accelerator.usable_bytes:
                continue
            plan = planner(lean, topology)
            report(plan.setting())
            if plan.compiled.fits:
                return plan
    return None


def _with(request: TrainingStep, policy: str, accumulation: int, mesh: MeshConfig) -> TrainingStep:
    config = dataclasses.replace(request.config, remat_policy=policy)
    return dataclasses.replace(request, config=config, accumulation=accumulation, mesh=mesh)


def _slices(family: str, max_chips: int) -> Iterator[Topology]:
    if family not in FAMILIES:
        raise UserError(
            f"--topology={family} is no family of accelerators{nearest(family, FAMILIES)}"
        )
    for chips in FAMILIES[family].shapes or _GPU_COUNTS:
        if chips <= max_chips:
            yield Topology.of_size(family, chips)


def _machine(topology: Topology) -> Machine:
    machine = Machine.of(topology)
    if machine is None:
        raise UserError(f"--search needs an accelerator whose memory is known, not {topology}")
    return machine


def _seconds(plan: Plan) -> float:
    assert plan.roofline is not None
    return plan.roofline.seconds[1]


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
