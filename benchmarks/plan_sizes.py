"""Smallest slices that hold each size of XLM-R in training, found without any of them.

    python -m benchmarks.plan_sizes [--sizes base large xl xxl] [--families v5e v5p h100]
        [--cache_dir FOLDER] [--only sizes larger head depth]

The real training step is compiled ahead of time: diffusive adaptation with one draw of noise a row,
sequences of 512 tokens, 8 a chip in as few micro-batches as fit, float32 AdamW, bfloat16 compute,
full rematerialisation, no dropout, state split over all chips (fsdp). Of each family the smallest
slice that the compiler accepts is shown with its peak memory and the roofline bound of its MFU.
Then follow XXL with a lean optimizer state on half of that slice, and with saved products on a
large one; the memory of the loss alone, against one that makes all logits; and the time to compile
XXL with 12 and with 48 layers: layers are scanned, so depth should cost next to nothing. Times are
of the processor, because compilation is threaded.

Verdicts are kept in a folder, so an interrupted run goes on where it was: what is there already is
traced again, and compiled no second time. Needs libtpu (extra `[plan]`); H100 is left out where
JAX's CUDA plugin is not installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.head_peak import HEAD_SLICES, head_bytes
from dlm_jax.errors import UserError
from dlm_jax.planning.topologies import FAMILIES, Topology, prepare_environment

SIZES = ("base", "large", "xl", "xxl")
PARTS = ("sizes", "larger", "head", "depth")
LENGTH = 512
ROWS_A_CHIP = 8
MICRO_BATCHES = (1, 2, 4, 8)
CHIPS = (1, 4, 8, 16, 32, 64)
GPUS = (1, 2, 4, 8, 16, 32, 64)
DEPTHS = (12, 48)
DEPTH_TOPOLOGY = "v5e:4x4"
# Settings of XXL that go further: topology, mesh (data, fsdp), rows a chip, policy, lean optimizer.
LARGER = {
    "lean optimizer": ("v5e:2x4", (1, 8), 8, "full", True),
    "saved products": ("v5p:4x4x4", (4, 16), 32, "dots", False),
}


def step(
    size: str,
    rows: int,
    *,
    layers: int | None = None,
    micro_batches: int = 1,
    policy: str = "full",
    mesh: tuple[int, int] = (1, -1),
    lean: bool = False,
) -> Any:
    """The training step of a size on so many rows, as `dlm plan` would read it from gin files."""
    from dlm_jax.models.config import SIZES as SHAPES
    from dlm_jax.parallel.mesh import MeshConfig
    from dlm_jax.planning.request import capturing, training_step
    from dlm_jax.training.objectives import Diffusion
    from dlm_jax.training.optimizers import AdamW
    from dlm_jax.training.train import train

    shape = SHAPES[size]
    optimizer = AdamW(first_moment="bfloat16", second_moment="factored") if lean else AdamW()
    return training_step(
        capturing(train)(
            "",
            task="",
            model=dataclasses.replace(shape, num_layers=layers or shape.num_layers),
            dtype="bfloat16",
            dropout_rate=0.0,
            remat_policy=policy,
            objective=Diffusion(pairing="single"),
            optimizer=optimizer,
            batch_size=rows,
            length=LENGTH,
            gradient_accumulation_steps=micro_batches,
            mesh=MeshConfig(*mesh, 1),
        )
    )


def smallest_slice(size: str, family: str, plan_of: Any) -> dict[str, Any] | None:
    """The plan of the smallest slice that fits, with as few micro-batches as fit."""
    from dlm_jax.planning.estimate import least_bytes, state_bytes

    state = state_bytes(step(size, 1))
    for chips in CHIPS if FAMILIES[family].platform == "tpu" else GPUS:
        if FAMILIES[family].shapes and chips not in FAMILIES[family].shapes:
            continue
        topology = Topology.of_size(family, chips)
        accelerator = topology.accelerator
        assert accelerator is not None
        least = math.inf
        for micro_batches in MICRO_BATCHES:
            request = step(size, ROWS_A_CHIP * chips, micro_batches=micro_batches)
            if least_bytes(request, state, chips) >= accelerator.usable_bytes:
                continue
            plan = plan_of(request, topology)
            print(f"  {size}: {plan.setting()}", flush=True)
            if plan.compiled.fits:
                return plan.to_json()
            asked = plan.compiled.peak_bytes or plan.compiled.needed_bytes or math.inf
            if asked >= least:
                break  # the sum of gradients costs more than smaller activations save
            least = asked
    return None


def larger_settings(plan_of: Any) -> dict[str, Any]:
    """Plans of XXL in the settings of `LARGER`."""
    found = {}
    for name, (where, mesh, rows, policy, lean) in LARGER.items():
        topology = Topology.parse(where)
        request = step("xxl", rows * topology.chips, policy=policy, mesh=mesh, lean=lean)
        plan = plan_of(request, topology)
        print(f"  xxl, {name}: {plan.setting()}", flush=True)
        found[name] = plan.to_json()
    return found


def head_memory() -> dict[str, dict[str, float]]:
    """GiB that the loss and its gradients need beside their inputs: ours, and with all logits."""
    found = {}
    for size, where in HEAD_SLICES.items():
        ours, naive = head_bytes(size, where, ROWS_A_CHIP * LENGTH)
        found[size] = {"ours_gib": round(ours / 2**30, 3), "naive_gib": round(naive / 2**30, 3)}
        print(
            f"  loss of {size} on {where}: {ours / 2**30:.2f} GiB a chip, "
            f"with all logits {naive / 2**30:.2f} GiB",
            flush=True,
        )
    return found


def compile_seconds(plan_of: Any) -> dict[int, float]:
    """Processor seconds to trace and compile XXL by its number of layers."""
    topology = Topology.parse(DEPTH_TOPOLOGY)
    seconds = {}
    for layers in DEPTHS:
        plan = plan_of(step("xxl", ROWS_A_CHIP * topology.chips, layers=layers), topology)
        seconds[layers] = plan.compiled.cpu_seconds
        print(f"  xxl with {layers} layers: {seconds[layers]:.0f} s", flush=True)
    return seconds


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """What the table and the JSON line show of a plan that fits."""
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
    print(
        f"\n{'size':20} {'slice':10} {'rows/chip':>9} {'state':>6} {'peak':>6} {'usable':>7}  MFU"
    )
    for size, families in results.items():
        for family, row in families.items():
            if row is None:
                print(f"{size:20} {family}: none of the slices holds it")
                continue
            rows = f"{row['rows_a_chip']:g}/{row['micro_batches']}"
            print(
                f"{size:20} {row['topology']:10} {rows:>9} {row['state_gib']:6.1f} "
                f"{row['peak_gib']:6.2f} {row['usable_gib']:7.2f}  "
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


def options() -> argparse.Namespace:
    """Reads the command line."""
    from dlm_jax.checkpoints.sources import cache_directory

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--families", nargs="+", default=["v5e", "v5p", "h100"])
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--cache_dir", type=Path, default=cache_directory() / "plans")
    return parser.parse_args()


def main() -> None:
    """Plans every size on every family, and ends with one line of JSON."""
    arguments = options()
    prepare_environment()
    from dlm_jax.planning.plan import make_plan
    from dlm_jax.planning.verdicts import Verdicts

    began = time.monotonic()
    plan_of = functools.partial(make_plan, verdicts=Verdicts(arguments.cache_dir))
    record: dict[str, Any] = {"benchmark": "plan_sizes", "length": LENGTH}
    results: dict[str, dict[str, Any]] = {}
    if "sizes" in arguments.only:
        families = available(arguments.families)
        for size in arguments.sizes:
            found = {family: smallest_slice(size, family, plan_of) for family in families}
            results[size] = {family: plan and summary(plan) for family, plan in found.items()}
        record["sizes"] = dict(results)
    if "larger" in arguments.only:
        larger = {name: summary(plan) for name, plan in larger_settings(plan_of).items()}
        record["larger"] = larger
        results |= {f"xxl, {name}": {"": row} for name, row in larger.items()}
    if "head" in arguments.only:
        record["head"] = head_memory()
    if "depth" in arguments.only:
        seconds = compile_seconds(plan_of)
        record["compile_cpu_seconds"] = {str(layers): round(s, 1) for layers, s in seconds.items()}
        record["compile_ratio"] = round(seconds[DEPTHS[1]] / seconds[DEPTHS[0]], 3)
    if results:
        show(results)
    if "compile_ratio" in record:
        print(f"48 layers take {record['compile_ratio']:.2f} times the time to compile of 12")
    record["seconds"] = round(time.monotonic() - began)
    record["versions"] = {name: metadata.version(name) for name in ("jax", "libtpu")}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
