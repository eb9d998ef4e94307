"""How fast a step could be at best: matrix products at peak, rings at the speed of their links.

An upper bound, not a forecast: norms, the optimizer, kernel launches and stragglers cost nothing
here. Real runs reach about 60 to 80 % of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dlm_jax.parallel.accelerators import Accelerator
from dlm_jax.planning.collectives import Collective
from dlm_jax.planning.kept_values import recomputed_flops
from dlm_jax.planning.request import Request, SamplingStep


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of one step over all devices, a multiply-add counted as two.

    Attributes:
        model: what the algorithm needs.
        hardware: what is computed, with the layers that the backward pass computes again.
    """

    model: float
    hardware: float


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Bounds of one step.

    Attributes:
        flops: of the step.
        compute_seconds: of the hardware's operations at peak.
        local_seconds: of what is sent within slices or hosts (ICI, NVLink).
        network_seconds: of what is sent between them (DCN, InfiniBand).
        mfu_without_overlap: model FLOPs utilisation when nothing is sent while computing.
        mfu_with_overlap: the same when the slowest of the three hides the others.
        assumptions: sentences on what the figures rest on.
    """

    flops: Flops
    compute_seconds: float
    local_seconds: float
    network_seconds: float
    mfu_without_overlap: float
    mfu_with_overlap: float
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> tuple[float, float]:
        """Shortest and longest time of the step: with full overlap, and with none."""
        parts = (self.compute_seconds, self.local_seconds, self.network_seconds)
        return max(parts), sum(parts)


def step_flops(request: Request) -> Flops:
    """Operations of a step: forward once, backward twice, and what is rematerialised."""
    config, length = request.config, request.length
    if isinstance(request, SamplingStep):
        forward = request.batch_size * length * config.flops_per_token(length, head_fraction=0.0)
        return Flops(forward, forward)
    tokens = request.rows * length
    model = 3 * tokens * config.flops_per_token(length, head_fraction=request.head_fraction)
    return Flops(model, model + tokens * config.num_layers * recomputed_flops(config, length))


def roofline(
    request: Request,
    sent: Sequence[Collective],
    accelerator: Accelerator,
    *,
    devices: int,
) -> Roofline:
    """Bounds the time of a step.

    Args:
        request: the step.
        sent: what a device sends in one step, one transfer after the other.
        accelerator: what one device can do.
        devices: number of devices.
    """
    flops = step_flops(request)
    link = accelerator.link_bandwidth / accelerator.devices_per_chip
    compute = flops.hardware / devices / accelerator.peak_flops
    # Without links (one device) nothing is sent, and there is no bandwidth to divide by.
    local = sum(item.local_bytes / item.directions for item in sent if item.local_bytes)
    local = local / link if local else 0.0
    network = sum(item.network_bytes for item in sent) / accelerator.network_bandwidth
    ideal = flops.model / devices / accelerator.peak_flops
    return Roofline(
        flops=flops,
        compute_seconds=compute,
        local_seconds=local,
        network_seconds=network,
        mfu_without_overlap=ideal / (compute + local + network),
        mfu_with_overlap=ideal / max(compute, local, network),
        assumptions=_assumptions(request, accelerator),
    )


def _assumptions(request: Request, accelerator: Accelerator) -> tuple[str, ...]:
    lines = [
        f"matrix products at the peak of {accelerator.peak_flops / 1e12:,.0f} TFLOP/s a device; "
        "norms, dropout and the optimizer cost nothing",
        f"rings over the links of their group, {accelerator.link_bandwidth / 1e9:.0f} GB/s each "
        f"way, shared by {accelerator.devices_per_chip} device(s) of a chip; "
        f"{accelerator.network_bandwidth / 1e9:.1f} GB/s a device between slices or hosts",
    ]
    if isinstance(request, SamplingStep):
        lines.append("FLOPs are the encoder's; the head is compiled for a piece of the positions")
    else:
        lines += [
            f"the head projects {request.head_fraction:.0%} of the positions, the expected share",
            f"model FLOPs count {request.rows} rows a step through the denoiser "
            f"({request.batch_size} clean rows), nothing that is computed again",
        ]
    return tuple(lines)
