"""A plan: one step on one topology, with its memory, its traffic and its bound, for all to read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from dlm_jax.planning.compile import NOTHING_KEPT, Compiled, compile_step
from dlm_jax.planning.request import Request, SamplingStep, TrainingStep
from dlm_jax.planning.roofline import Roofline, roofline
from dlm_jax.planning.topologies import Topology
from dlm_jax.planning.verdicts import Options, Verdicts

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """What came out for one step on one topology.

    Attributes:
        request: the step.
        topology: where.
        compiled: what the compiler said.
        roofline: the bound; None for CPUs, and where the step was not compiled.
    """

    request: Request
    topology: Topology
    compiled: Compiled
    roofline: Roofline | None

    @property
    def verdict(self) -> str:
        """'fits', 'does not fit' or 'not known' (CPUs)."""
        return {True: "fits", False: "does not fit", None: "not known"}[self.compiled.fits]

    def to_json(self) -> dict[str, Any]:
        """Plain values; sizes are bytes of one device, times seconds of one step."""
        compiled, bound = self.compiled, self.roofline
        devices = _product(compiled.mesh)
        return {
            "step": "sampling" if isinstance(self.request, SamplingStep) else "training",
            "topology": self.topology.name,
            "slices": self.topology.slices,
            "devices": devices,
            "mesh": compiled.mesh,
            "parameters": self.request.config.num_parameters(),
            "dtype": self.request.config.dtype,
            "remat_policy": self.request.config.remat_policy,
            "batch_size": self.request.batch_size,
            "length": self.request.length,
            **_training_values(self.request, devices),
            "parameter_bytes": compiled.parameter_bytes,
            "state_bytes": compiled.state_bytes,
            "peak_bytes": compiled.peak_bytes,
            "needed_bytes": compiled.needed_bytes,
            "usable_bytes": compiled.usable_bytes,
            "verdict": self.verdict,
            "collectives": [dataclasses.asdict(item) for item in compiled.collectives],
            "compile_cpu_seconds": round(compiled.cpu_seconds, 2),
            "compiled_earlier": compiled.kept,
            "roofline": None if bound is None else dataclasses.asdict(bound),
        }

    def setting(self) -> str:
        """One line: what was chosen, and what came out."""
        compiled, request, bound = self.compiled, self.request, self.roofline
        mesh = " ".join(f"{name}={size}" for name, size in compiled.mesh.items())
        micro = getattr(request, "accumulation", 1)
        speed = f", at least {bound.seconds[1]:.3g} s a step" if bound else ""
        mfu = f", MFU at most {bound.mfu_with_overlap:.2f}" if bound else ""
        return (
            f"{self.topology} {mesh} remat={request.config.remat_policy} "
            f"micro-batches={micro}: {self.verdict}, {_memory_text(compiled)}{speed}{mfu}"
        )

    def table(self) -> str:
        """The same for people, a line a figure."""
        compiled, request = self.compiled, self.request
        config = request.config
        mesh = " ".join(f"{name}={size}" for name, size in compiled.mesh.items())
        rows = [
            ("topology", f"{self.topology}, {_product(compiled.mesh)} devices, mesh {mesh}"),
            ("parameters", f"{config.num_parameters():,}, {config.dtype} compute"),
            ("step", _step_text(request, compiled.mesh)),
            (
                "state",
                f"{_gib(compiled.state_bytes)} a device, parameters "
                f"{_gib(compiled.parameter_bytes)} of it",
            ),
            ("memory", _memory_text(compiled)),
        ]
        rows += [
            (
                "sends" if number == 0 else "",
                f"{item.kind:<18} {item.count:>7,.0f} x  group {item.group:<4} "
                f"{item.local_bytes / 1e9:9.2f} GB fast links, {item.directions} way(s) "
                f"{item.network_bytes / 1e9:9.2f} GB network",
            )
            for number, item in enumerate(compiled.collectives)
        ]
        rows += _bound_rows(self.roofline) if self.roofline else []
        when = ", earlier" if compiled.kept else ""
        rows.append(("compiled in", f"{compiled.cpu_seconds:.0f} s of processor time{when}"))
        rows.append(("verdict", self.verdict))
        return "\n".join(f"{name:<13}{text}" for name, text in rows)


def make_plan(
    request: Request,
    topology: Topology,
    compiler_options: Options = None,
    verdicts: Verdicts = NOTHING_KEPT,
) -> Plan:
    """Compiles the step, unless its verdict is kept already, and bounds it.

    Raises:
        UserError: mesh, batch or topology do not go together, or a compiler is missing.
    """
    compiled = compile_step(request, topology, compiler_options, verdicts)
    accelerator = topology.accelerator
    bound = None
    if accelerator is not None and compiled.peak_bytes is not None:
        bound = roofline(
            request,
            compiled.collectives,
            accelerator,
            devices=_product(compiled.mesh),
        )
    return Plan(request, topology, compiled, bound)


def _product(mesh: dict[str, int]) -> int:
    return math.prod(mesh.values())


def _training_values(request: Request, devices: int) -> dict[str, Any]:
    if not isinstance(request, TrainingStep):
        return {}
    return {
        "rows": request.rows,
        "rows_a_device": request.rows / devices,
        "accumulation": request.accumulation,
        "head_fraction": request.head_fraction,
    }


def _step_text(request: Request, mesh: dict[str, int]) -> str:
    size = f"{request.batch_size:,} rows of {request.length} tokens"
    if isinstance(request, SamplingStep):
        return f"sampling, one evaluation of {size}"
    micro = request.rows / request.accumulation / _product(mesh)
    return (
        f"training, {size}, {request.rows:,} through the denoiser in {request.accumulation} "
        f"micro-batch(es): {micro:g} a device; remat {request.config.remat_policy}"
    )


def _memory_text(compiled: Compiled) -> str:
    usable = "" if compiled.usable_bytes is None else f" of {_gib(compiled.usable_bytes)} usable"
    if compiled.peak_bytes is None:
        return f"{_gib(compiled.needed_bytes or 0)} needed{usable}: the compiler gave up"
    return f"{_gib(compiled.peak_bytes)} peak{usable} a device"


def _bound_rows(bound: Roofline) -> list[tuple[str, str]]:
    low, high = bound.seconds
    tera = 1e12
    return [
        (
            "FLOPs",
            f"{bound.flops.model / tera:,.1f} TFLOP a step needed, "
            f"{bound.flops.hardware / tera:,.1f} computed",
        ),
        (
            "step time",
            f"at least {low:.4g} s (all overlapped) to {high:.4g} s (nothing): compute "
            f"{bound.compute_seconds:.4g}, fast links {bound.local_seconds:.4g}, network "
            f"{bound.network_seconds:.4g}",
        ),
        (
            "MFU bound",
            f"{bound.mfu_without_overlap:.2f} without overlap, {bound.mfu_with_overlap:.2f} with",
        ),
        *(
            ("assumes" if number == 0 else "", text)
            for number, text in enumerate(bound.assumptions)
        ),
    ]


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"
