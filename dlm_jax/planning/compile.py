"""The real step, compiled for devices that are not there: what it needs, and what it sends."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

from dlm_jax.errors import UserError
from dlm_jax.planning.collectives import Collective, collectives
from dlm_jax.planning.links import Links
from dlm_jax.planning.request import Request, SamplingStep, TrainingStep
from dlm_jax.planning.topologies import Topology
from dlm_jax.planning.verdicts import Options, Verdicts

if TYPE_CHECKING:
    import jax

# Positions of a sampling step whose logits exist at once.
_SAMPLED_POSITIONS = 512
_SEED = 0
NOTHING_KEPT = Verdicts()


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step on a topology; sizes are bytes of one device.

    Attributes:
        mesh: size of each mesh axis.
        parameter_bytes: parameters.
        state_bytes: what lives from step to step: parameters, optimizer state, counters.
        peak_bytes: most that is alive at a time, the state included; None where the compiler gave
            up before it knew.
        needed_bytes: what the compiler asked for when it gave up; None when it did not.
        usable_bytes: memory of a device that programs can use; None where unknown.
        collectives: what is sent between devices, in one step.
        cpu_seconds: processor time of tracing and compilation.
        kept: whether the verdict is that of an earlier compilation.
    """

    mesh: dict[str, int]
    parameter_bytes: int
    state_bytes: int
    peak_bytes: int | None
    needed_bytes: int | None
    usable_bytes: float | None
    collectives: tuple[Collective, ...]
    cpu_seconds: float
    kept: bool = False

    @property
    def fits(self) -> bool | None:
        """The verdict; None where the memory of the device is not known."""
        if self.peak_bytes is None:
            return False
        return None if self.usable_bytes is None else self.peak_bytes <= self.usable_bytes


def compile_step(
    request: Request,
    topology: Topology,
    compiler_options: Options = None,
    verdicts: Verdicts = NOTHING_KEPT,
) -> Compiled:
    """Compiles the step of a request; allocates nothing but what the compiler itself needs.

    Args:
        request: the step.
        topology: where.
        compiler_options: of XLA.
        verdicts: of earlier compilations.

    Raises:
        UserError: mesh, batch or topology do not go together, or a compiler is missing.
    """
    from dlm_jax.parallel.mesh import make_mesh

    devices = topology.devices()
    mesh = make_mesh(request.mesh, devices)
    _check_rows(request, mesh.shape)
    began = time.process_time()
    lowered, parameters, state = _lower(request, mesh)
    traced = time.process_time() - began
    verdict = verdicts.ask(lowered, mesh, topology, compiler_options)
    sent: tuple[Collective, ...] = ()
    if verdict.program:
        rounds = expected_head_rounds(request, mesh.shape)
        links = Links.of(devices, mesh, topology)
        sent = tuple(collectives(verdict.program, links, unknown_trips=rounds))
    accelerator = topology.accelerator
    return Compiled(
        mesh=dict(mesh.shape),
        parameter_bytes=shard_bytes(parameters),
        state_bytes=shard_bytes(state),
        peak_bytes=verdict.peak_bytes,
        needed_bytes=verdict.needed_bytes,
        usable_bytes=accelerator.usable_bytes if accelerator else None,
        collectives=sent,
        cpu_seconds=traced + verdict.cpu_seconds,
        kept=verdict.kept,
    )


def expected_head_rounds(request: Request, mesh_shape: Any) -> float:
    """Expected rounds of the loop over chunks of absorbed positions, of one micro-batch.

    How many positions are absorbed is drawn when the program runs, so no compiler can know it.
    """
    if isinstance(request, SamplingStep):
        return 1.0
    from dlm_jax.models.sharded_cross_entropy import default_chunk

    ways = mesh_shape["data"] * mesh_shape["fsdp"]
    positions = request.rows * request.length / request.accumulation / ways
    shards = mesh_shape["fsdp"] * mesh_shape["tensor"]
    vocabulary = -(-request.config.vocab_size // shards)
    chunk = request.head_chunk or default_chunk(vocabulary)
    return max(1.0, math.ceil(request.head_fraction * positions * mesh_shape["fsdp"] / chunk))


def shard_bytes(tree: Any) -> int:
    """Bytes of one device's parts of a tree of abstract arrays with shardings."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _check_rows(request: Request, mesh_shape: Any) -> None:
    ways = mesh_shape["data"] * mesh_shape["fsdp"]
    cut = request.accumulation if isinstance(request, TrainingStep) else 1
    if request.batch_size % (ways * cut):
        several = f" in {cut} micro-batches" if cut > 1 else ""
        raise UserError(
            f"{request.batch_size} rows{several} cannot be split over data={mesh_shape['data']} x "
            f"fsdp={mesh_shape['fsdp']} devices: take a multiple of {ways * cut} for the batch size"
        )


def _lower(request: Request, mesh: jax.sharding.Mesh) -> tuple[Any, Any, Any]:
    """The lowered step, and its abstract parameters and state."""
    import jax

    from dlm_jax.parallel.rules import use_rules
    from dlm_jax.training import sharding
    from dlm_jax.training.stage import adaptation

    if isinstance(request, SamplingStep):
        return _lower_sampling(request, mesh)
    with use_rules(request.sharding):
        # Outside of the mesh: what is computed here and now cannot run on devices that are not
        # there.
        stage = adaptation(
            request.config,
            None,
            request.objective,
            request.optimizer,
            mesh,
            length=request.length,
            seed=_SEED,
            accumulation=request.accumulation,
            chunk=request.head_chunk,
            spikes=request.skip_spikes,
        )
        batch = sharding.abstract_batch(request.batch_size, request.length, mesh)
        step = sharding.jit_step(stage.step, sharding.shardings_of(stage.abstract))
        with jax.set_mesh(mesh):
            lowered = step.lower(stage.abstract, batch)
    return lowered, stage.abstract.parameters, stage.abstract


def _lower_sampling(request: SamplingStep, mesh: jax.sharding.Mesh) -> tuple[Any, Any, Any]:
    import jax
    import jax.numpy as jnp

    from dlm_jax.models import encoder as encoders
    from dlm_jax.parallel.rules import use_rules
    from dlm_jax.training import sharding

    def evaluate(parameters: Any, batch: dict[str, jax.Array]) -> jax.Array:
        denoiser = encoders.from_parameters(request.config, parameters)
        names = ("tokens", "positions", "segment_ids")
        features = denoiser.features(*(batch[name] for name in names))
        piece = features.reshape(-1, features.shape[-1])[:_SAMPLED_POSITIONS]
        return jnp.argmax(denoiser.logits(piece), axis=-1)

    with jax.set_mesh(mesh), use_rules(request.sharding):
        parameters = sharding.placed_parameters(request.config, mesh)
        batch = sharding.abstract_batch(request.batch_size, request.length, mesh)
        lowered = jax.jit(evaluate).lower(parameters, batch)
    return lowered, parameters, parameters
