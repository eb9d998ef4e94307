"""Smallest slices that hold each size of XLM-R in training, found without any of them.

    python -m benchmarks.plan_sizes [--sizes base large xl xxl] [--families v5e v5p h100]

The real training step is compiled ahead of time: diffusive adaptation with one draw of noise a row,
sequences of 512 tokens, 8 a chip in as few micro-batches as fit, float32 AdamW, bfloat16 compute,
full rematerialisation, no dropout, state split over all chips (fsdp). Of each family the smallest
slice that the compiler accepts is shown with its peak memory and the roofline bound of its MFU.
The last part compares the time to compile XXL with 12 and with 48 layers: layers are scanned, so
depth should cost next to nothing. Times are of the processor, because compilation is threaded.
Needs libtpu (extra `[plan]`); H100 is left out where JAX's CUDA plugin is not installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from importlib import metadata
from typing import Any

from dlm_jax.errors import UserError
from dlm_jax.planning.topologies import FAMILIES, Topology, prepare_environment

SIZES = ("base", "large", "xl", "xxl")
LENGTH = 512
ROWS_A_CHIP = 8
MICRO_BATCHES = (1, 2, 4, 8)
CHIPS = (1, 4, 8, 16, 32, 64)
GPUS = (1, 2, 4, 8, 16, 32, 64)
DEPTHS = (12, 48)
DEPTH_TOPOLOGY = "v5e:4x4"


def step(size: str, chips: int, *, layers: int | None = None, micro_batches: int = 1) -> Any:
    """The training step of a size on so many chips, as `dlm plan` would read it from gin files."""
    from dlm_jax.models.config import SIZES as SHAPES
    from dlm_jax.parallel.mesh import MeshConfig
    from dlm_jax.parallel.rules import ShardingRules
    from dlm_jax.planning.request import training_step
    from dlm_jax.training.objectives import Diffusion
    from dlm_jax.training.optimizers import AdamW

    shape = SHAPES[size]
    return training_step(
        {
            "model": dataclasses.replace(shape, num_layers=layers or shape.num_layers),
            "initial_checkpoint": None,
            "dtype": "bfloat16",
            "dropout_rate": 0.0,
            "remat_policy": "full",
            "attention": None,
            "objective": Diffusion(pairing="single"),
            "optimizer": AdamW(),
            "total_steps": 1000,
            "batch_size": ROWS_A_CHIP * chips,
            "length": LENGTH,
            "gradient_accumulation_steps": micro_batches,
            "head_chunk": None,
            "mesh": MeshConfig(1, -1, 1),
            "sharding": ShardingRules(),
        }
    )


def smallest_slice(size: str, family: str) -> dict[str, Any] | None:
    """The plan of the smallest slice that fits, with as few micro-batches as fit."""
    from dlm_jax.planning.plan import make_plan
    from dlm_jax.planning.search import state_bytes

    for chips in CHIPS if FAMILIES[family].platform == "tpu" else GPUS:
        if FAMILIES[family].shapes and chips not in FAMILIES[family].shapes:
            continue
        topology = Topology.of_size(family, chips)
        accelerator = topology.accelerator
        assert accelerator is not None
        if state_bytes(step(size, chips)) / chips >= accelerator.usable_bytes:
            continue
        least = math.inf
        for micro_batches in MICRO_BATCHES:
            plan = make_plan(step(size, chips, micro_batches=micro_batches), topology)
            print(f"  {size}: {plan.setting()}", flush=True)
            if plan.compiled.fits:
                return plan.to_json()
            asked = plan.compiled.peak_bytes or plan.compiled.needed_bytes or math.inf
            if asked >= least:
                break  # the sum of gradients costs more than smaller activations save
            least = asked
    return None


def compile_seconds() -> dict[int, float]:
    """Processor seconds to trace and compile XXL by its number of layers."""
    from dlm_jax.planning.plan import make_plan

    topology = Topology.parse(DEPTH_TOPOLOGY)
    seconds = {}
    for layers in DEPTHS:
        plan = make_plan(step("xxl", topology.chips, layers=layers), topology)
        seconds[layers] = plan.compiled.cpu_seconds
        print(f"  xxl with {layers} layers: {seconds[layers]:.0f} s", flush=True)
    return seconds


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """What the table and the JSON line show of a plan."""
    bound = found["roofline"]
    return {
        "topology": found["topology"],
        "chips": found["devices"],
        "rows_a_chip": found["rows_a_device"],
        "micro_batches": found["accumulation"],
        "state_gib": round(found["state_bytes"] / 2**30, 2),
        "peak_gib": round(found["peak_bytes"] / 2**30, 2),
        "usable_gib": round(found["usable_bytes"] / 2**30, 2),
        "mfu_without_overlap": round(bound["mfu_without_overlap"], 3),
        "mfu_with_overlap": round(bound["mfu_with_overlap"], 3),
        "compile_cpu_seconds": found["compile_cpu_seconds"],
    }


def show(results: dict[str, dict[str, Any]]) -> None:
    """Prints the table."""
    print(f"\n{'size':6} {'slice':12} {'rows/chip':>9} {'state':>6} {'peak':>6} {'usable':>7}  MFU")
    for size, families in results.items():
        for family, row in families.items():
            if row is None:
                print(f"{size:6} {family}: none of the slices holds it")
                continue
            rows = f"{row['rows_a_chip']:g}/{row['micro_batches']}"
            print(
                f"{size:6} {row['topology']:12} {rows:>9} {row['state_gib']:6.1f} "
                f"{row['peak_gib']:6.1f} {row['usable_gib']:7.2f}  "
                f"{row['mfu_without_overlap']:.2f}..{row['mfu_with_overlap']:.2f}"
            )
    print(
        "rows/chip: sequences a chip / micro-batches; GiB a chip; MFU bound without..with overlap"
    )


def available(families: list[str]) -> list[str]:
    """The families whose compiler is installed."""
    usable = []
    for family in families:
        try:
            Topology.of_size(family, 4).prepare()
        except UserError as error:
            print(f"{family}: skipped, {error}")
        else:
            usable.append(family)
    return usable


def main() -> None:
    """Plans every size on every family, and ends with one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--families", nargs="+", default=["v5e", "v5p", "h100"])
    parser.add_argument("--no_depth", action="store_true", help="leave the compile times out")
    arguments = parser.parse_args()
    prepare_environment()
    families = available(arguments.families)
    results: dict[str, dict[str, Any]] = {}
    for size in arguments.sizes:
        found = {family: smallest_slice(size, family) for family in families}
        results[size] = {family: plan and summary(plan) for family, plan in found.items()}
    seconds = {} if arguments.no_depth else compile_seconds()
    show(results)
    record: dict[str, Any] = {"benchmark": "plan_sizes", "length": LENGTH, "sizes": results}
    if seconds:
        ratio = seconds[DEPTHS[1]] / seconds[DEPTHS[0]]
        print(f"48 layers take {ratio:.2f} times the time to compile of 12")
        record["compile_cpu_seconds"] = {str(layers): round(s, 1) for layers, s in seconds.items()}
        record["compile_ratio"] = round(ratio, 3)
    versions = {name: metadata.version(name) for name in ("jax", "libtpu")}
    print(json.dumps(record | {"versions": versions}))


if __name__ == "__main__":
    main()
