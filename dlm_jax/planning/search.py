"""Search over slices, meshes, rematerialisation and micro-batches: what fits, and what is fastest.

Compiling billions of parameters takes a minute and more, so the search compiles little: settings
whose state alone fills the memory never, the others in the order of what they recompute and resend,
and of each rematerialisation policy only until the first one fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from dlm_jax.errors import UserError, nearest
from dlm_jax.models.config import REMAT_POLICIES
from dlm_jax.parallel.mesh import MeshConfig
from dlm_jax.planning.plan import Plan, make_plan
from dlm_jax.planning.request import TrainingStep
from dlm_jax.planning.roofline import step_flops
from dlm_jax.planning.topologies import FAMILIES, Topology

_TENSOR_SIZES = (1, 2, 4)
_GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
Planner = Callable[[TrainingStep, Topology], Plan]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a step.

    Attributes:
        request: the step, with mesh, rematerialisation and micro-batches set.
        state_bytes: what parameters and optimizer need on a device.
    """

    request: TrainingStep
    state_bytes: float


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search on one topology ended with.

    Attributes:
        plans: everything that was compiled, in order.
        hopeless: settings that were not compiled, because their state alone fills the memory.
        best: the fastest plan that fits, by its time without overlap; None when none fits.
    """

    plans: tuple[Plan, ...]
    hopeless: int
    best: Plan | None


def state_bytes(request: TrainingStep) -> int:
    """Bytes of parameters and optimizer state over all devices, each part counted once."""
    import jax

    from dlm_jax.models.encoder import abstract_parameters

    shapes = abstract_parameters(request.config)
    state = jax.eval_shape(request.optimizer.init, shapes)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((shapes, state)))


def candidates(request: TrainingStep, topology: Topology, policy: str) -> Iterator[Candidate]:
    """Yields the ways to run a step under a rematerialisation policy, fewest micro-batches first.

    Among equals, the matrix products are split as little as possible, then the parameters: few
    FSDP shards and many replicas send less than many shards.
    """
    accelerator = topology.accelerator
    devices = topology.chips * (accelerator.devices_per_chip if accelerator else 1)
    total = state_bytes(request)
    config = dataclasses.replace(request.config, remat_policy=policy)
    for accumulation in _divisors(request.batch_size):
        for tensor in _TENSOR_SIZES:
            for fsdp in _divisors(devices // tensor if devices % tensor == 0 else 0):
                ways = devices // tensor * topology.slices * accumulation
                if request.batch_size % ways or config.num_heads % tensor:
                    continue
                mesh = MeshConfig(devices // tensor // fsdp, fsdp, tensor, dcn_data=topology.slices)
                chosen = dataclasses.replace(
                    request, config=config, accumulation=accumulation, mesh=mesh
                )
                yield Candidate(chosen, total / (fsdp * tensor))


def fastest(
    request: TrainingStep,
    topology: Topology,
    *,
    max_compiles: int = 12,
    planner: Planner = make_plan,
    report: Callable[[Plan], None] = lambda plan: None,
) -> Found:
    """Finds the fastest setting on a topology.

    Args:
        request: the step; its model, batch size and length stay.
        topology: where.
        max_compiles: compilations after which the best so far is taken.
        planner: makes a plan of a setting.
        report: told of each plan as it is made.

    Raises:
        UserError: the accelerator's memory is not known, or no mesh divides the batch.
    """
    usable, peak_flops, devices = _capacity(topology)
    plans: list[Plan] = []
    hopeless, tried = 0, 0
    best: Plan | None = None
    for policy in REMAT_POLICIES:
        for candidate in candidates(request, topology, policy):
            tried += 1
            if candidate.state_bytes >= usable:
                hopeless += 1
                continue
            ideal = step_flops(candidate.request).hardware / peak_flops / devices
            if len(plans) >= max_compiles or (best and ideal >= _seconds(best)):
                break
            plan = planner(candidate.request, topology)
            plans.append(plan)
            report(plan)
            if plan.compiled.fits:
                best = plan if best is None or _seconds(plan) < _seconds(best) else best
                break
    if not tried:
        raise UserError(
            f"no mesh of {topology} divides a batch of {request.batch_size} rows: "
            f"take a multiple of {devices}"
        )
    return Found(tuple(plans), hopeless, best)


def smallest(
    request: TrainingStep,
    family: str,
    max_chips: int,
    *,
    planner: Planner = make_plan,
    report: Callable[[Plan], None] = lambda plan: None,
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
    for topology in _slices(family, max_chips):
        usable, _, devices = _capacity(topology)
        if state_bytes(request) / devices >= usable or request.batch_size % devices:
            continue
        # One row a device at a time needs the least for activations, but a second set of gradients.
        for accumulation in sorted({1, request.batch_size // devices}):
            lean = dataclasses.replace(
                request,
                config=dataclasses.replace(request.config, remat_policy="full"),
                accumulation=accumulation,
                mesh=MeshConfig(1, -1, 1),
            )
            plan = planner(lean, topology)
            report(plan)
            if plan.compiled.fits:
                return plan
    return None


def _slices(family: str, max_chips: int) -> Iterator[Topology]:
    if family not in FAMILIES:
        raise UserError(
            f"--topology={family} is no family of accelerators{nearest(family, FAMILIES)}"
        )
    for chips in FAMILIES[family].shapes or _GPU_COUNTS:
        if chips <= max_chips:
            yield Topology.of_size(family, chips)


def _capacity(topology: Topology) -> tuple[float, float, int]:
    """Usable bytes and FLOP/s of a device, and the number of devices over all slices."""
    accelerator = topology.accelerator
    if accelerator is None:
        raise UserError(f"--search needs an accelerator whose memory is known, not {topology}")
    devices = topology.chips * accelerator.devices_per_chip * topology.slices
    return accelerator.usable_bytes, accelerator.peak_flops, devices


def _seconds(plan: Plan) -> float:
    assert plan.roofline is not None
    return plan.roofline.seconds[1]


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
