"""What a setting needs at the very least, by arithmetic alone: what a search need not compile.

The bounds of memory hold whatever the compiler does. The estimate of time only orders settings.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from dlm_jax.parallel.accelerators import Accelerator
from dlm_jax.planning.kept_values import kept_width
from dlm_jax.planning.links import ring_directions
from dlm_jax.planning.request import TrainingStep
from dlm_jax.planning.roofline import step_flops
from dlm_jax.planning.topologies import Topology

_WIDTHS = {"bfloat16": 2, "float32": 4}
# Passes over the weights of a layer in which each is sent once: gathered forward, gathered again
# backward, and the gradients added up.
_PASSES = 3
# Sums over the tensor shards of a layer's activations: two forward and two backward.
_TENSOR_SUMS = 4


@dataclasses.dataclass(frozen=True)
class Machine:
    """A topology as arithmetic sees it.

    Attributes:
        accelerator: what one device can do.
        slices: number of slices.
        devices: over all slices.
        directions: link directions that rings over a whole slice keep busy at each chip.
    """

    accelerator: Accelerator
    slices: int
    devices: int
    directions: int

    @classmethod
    def of(cls, topology: Topology) -> Machine | None:
        """The machine of a topology; None where the accelerator is not known."""
        accelerator = topology.accelerator
        if accelerator is None:
            return None
        sizes = topology.dimensions if topology.is_tpu else ()
        directions = ring_directions(sizes, sizes, topology.wrap)
        devices = topology.chips * accelerator.devices_per_chip * topology.slices
        return cls(accelerator, topology.slices, devices, directions)


def state_bytes(request: TrainingStep) -> int:
    """Bytes of parameters and optimizer state over all devices, each part counted once."""
    import jax

    from dlm_jax.models.encoder import abstract_parameters

    shapes = abstract_parameters(request.config)
    state = jax.eval_shape(request.optimizer.init, shapes)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((shapes, state)))


def least_bytes(request: TrainingStep, state: float, devices: int) -> float:
    """Bytes that a device must hold at a time.

    That is the state, and beside it first what the layers leave to the backward pass and then all
    gradients, since their norm is awaited before the first update. With several micro-batches the
    float32 sums of their gradients stand beside everything.

    Args:
        request: the step, with its mesh.
        state: what `state_bytes` says of it.
        devices: number of devices.
    """
    config = request.config
    data, fsdp, tensor = request.mesh.shape(devices)
    parameters = config.num_parameters() / (fsdp * tensor)
    tokens = request.rows * request.length / request.accumulation / (data * fsdp)
    width = _WIDTHS[config.dtype]
    kept = tokens * config.num_layers * width * kept_width(config, tensor)
    sums = 4.0 * parameters if request.accumulation > 1 else 0.0
    return state / (fsdp * tensor) + sums + max(kept, width * parameters)


def estimated_seconds(request: TrainingStep, machine: Machine) -> float:
    """Time of a step in which nothing overlaps: products at peak, and the weights on the links.

    Args:
        request: the step, with its mesh.
        machine: where.
    """
    config, devices = request.config, machine.devices
    data, fsdp, tensor = request.mesh.shape(devices)
    compute = step_flops(request).hardware / machine.accelerator.peak_flops / devices
    width = _WIDTHS[config.dtype]
    weights = width * (config.num_parameters() - config.vocab_size * config.embed_dim) / tensor
    tokens = request.rows * request.length / (data * fsdp)
    activations = tokens * config.embed_dim * config.num_layers * width
    seconds = functools.partial(_ring_seconds, machine=machine)
    across = (1 - 1 / machine.slices) * weights / fsdp / machine.accelerator.network_bandwidth
    a_micro_batch = (
        _PASSES * seconds(weights, fsdp)
        + 2 * seconds(weights / fsdp, data // machine.slices)
        + 2 * across
    )
    sums = 2 * _TENSOR_SUMS * seconds(activations, tensor)
    return compute + request.accumulation * a_micro_batch + sums


def _ring_seconds(size: float, group: int, machine: Machine) -> float:
    """Time to gather an array of `size` bytes over a group of devices."""
    if group == 1:
        return 0.0
    accelerator = machine.accelerator
    if accelerator.devices_per_host and group > accelerator.devices_per_host:
        bandwidth = accelerator.network_bandwidth
    else:
        # A group takes its share of the axes of the torus, by the logarithm of its size.
        share = math.log(group) / math.log(machine.devices // machine.slices)
        ways = max(1.0, machine.directions * share)
        bandwidth = accelerator.link_bandwidth * ways / accelerator.devices_per_chip
    return size * (group - 1) / group / bandwidth
