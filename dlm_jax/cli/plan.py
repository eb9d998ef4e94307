"""`dlm plan`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_jax.cli.flags import add_gin, load_config
from dlm_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from dlm_jax.parallel.mesh import MeshConfig
    from dlm_jax.planning.plan import Plan
    from dlm_jax.planning.request import Request, TrainingStep
    from dlm_jax.planning.topologies import Topology

SEARCHED = ("v5e", "v5p", "v6e")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    add_gin(parser)
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="what to compile for: v5e:4x4, v5p-64, v4, v6e, tpu7x, h100:8 or cpu:8; with "
        "--search, a family alone (v5e) looks for its smallest slice that fits",
    )
    parser.add_argument(
        "--slices",
        type=int,
        default=1,
        metavar="N",
        help="TPU slices joined by the network; "
        "replicas of each other unless --mesh or the gin file has dcn_ sizes",
    )
    parser.add_argument(
        "--model",
        metavar="SHAPE",
        help="shape in place of the checkpoint's: base, large, xl, xxl, a gin file of models/, a "
        "run or a Hugging Face folder; no weights are read",
    )
    parser.add_argument(
        "--mesh",
        metavar="SIZES",
        help="mesh in place of the gin file's, such as data=4,fsdp=16 (one may be -1)",
    )
    parser.add_argument(
        "--search", action="store_true", help="try meshes, rematerialisation and micro-batches"
    )
    parser.add_argument(
        "--max_chips", type=int, default=64, metavar="N", help="largest slice that --search tries"
    )
    parser.add_argument(
        "--cache_dir",
        metavar="FOLDER",
        help="where verdicts of compilations are kept, so that the same program is never compiled "
        "twice; by default the folder plans of DLM_CACHE_DIR, or of ~/.cache/dlm_jax",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")


def run(arguments: argparse.Namespace) -> int:
    """Plans the training or sampling step of gin files; nothing runs, no data or weights are read.

    Returns:
        0 when the step fits (or, with --search, a setting was found), 1 when it does not.
    """
    from dlm_jax.planning.topologies import FAMILIES, Topology, prepare_environment

    prepare_environment()
    if arguments.topology is None and not arguments.search:
        raise UserError("dlm plan needs --topology, such as --topology=v5e:4x4, or --search")
    if arguments.search and (arguments.topology is None or arguments.topology in FAMILIES):
        return _search(arguments, (arguments.topology,) if arguments.topology else SEARCHED)
    topology = Topology.parse(arguments.topology, arguments.slices)
    topology.prepare()
    request = _over_slices(_request(arguments), topology.slices)
    if arguments.search:
        return _fastest(arguments, _training(request), topology)
    plan = _planner(arguments)(request, topology)
    print(json.dumps(plan.to_json()) if arguments.json else plan.table())
    return int(plan.compiled.fits is False)


def _over_slices(request: Request, slices: int) -> Request:
    """Makes slices replicas of each other, unless the mesh says how they are used."""
    mesh = request.mesh
    if math.prod(mesh.slices) > 1:
        return request
    return dataclasses.replace(request, mesh=dataclasses.replace(mesh, dcn_data=slices))


def _search(arguments: argparse.Namespace, families: Sequence[str]) -> int:
    """The smallest slice of each family that fits, and its fastest setting."""
    from dlm_jax.planning.search import fastest, smallest

    request = _training(_request(arguments))
    planner = _planner(arguments)
    found = {}
    for family in families:
        how: dict[str, Any] = {"planner": planner, "report": _progress}
        plan = smallest(request, family, arguments.max_chips, **how)
        best = plan and fastest(request, plan.topology, **how).best
        found[family] = (best or plan) if plan else None
    if arguments.json:
        print(json.dumps({name: plan and plan.to_json() for name, plan in found.items()}))
    else:
        for family, plan in found.items():
            nothing = f"no slice of up to {arguments.max_chips} chips holds it"
            print(f"{family}: {plan.setting() if plan else nothing}")
    return int(not any(found.values()))


def _fastest(arguments: argparse.Namespace, request: TrainingStep, topology: Topology) -> int:
    from dlm_jax.planning.search import fastest

    found = fastest(request, topology, planner=_planner(arguments), report=_progress)
    if arguments.json:
        print(json.dumps(found.best and found.best.to_json()))
    elif found.best:
        print(f"fastest: {found.best.setting()}\n\n{found.best.table()}")
    else:
        print(
            f"nothing fits on {topology}: of {found.settings} settings {found.hopeless} cannot, by "
            f"arithmetic, and {len(found.plans)} were compiled"
        )
    return int(found.best is None)


def _planner(arguments: argparse.Namespace) -> Callable[[Request, Topology], Plan]:
    from dlm_jax.checkpoints.sources import cache_directory
    from dlm_jax.planning.plan import make_plan
    from dlm_jax.planning.verdicts import Verdicts

    folder = arguments.cache_dir and Path(arguments.cache_dir).expanduser()
    return functools.partial(make_plan, verdicts=Verdicts(folder or cache_directory() / "plans"))


def _progress(line: str) -> None:
    from dlm_jax.training.metrics import say

    say(f"  {line}")


def _training(request: Request) -> TrainingStep:
    from dlm_jax.planning.request import TrainingStep

    if not isinstance(request, TrainingStep):
        raise UserError("dlm plan --search needs gin files of a training run")
    return request


def _request(arguments: argparse.Namespace) -> Request:
    from dlm_jax.planning import request as requests

    if not arguments.gin_file and not arguments.gin_bindings:
        raise UserError("dlm plan needs --gin_file, such as --gin_file=runs/adapt.gin")
    if _entry(arguments) == "evaluate":
        from dlm_jax.evaluation.evaluate import evaluate

        model = arguments.model and requests.shape_of(arguments.model)
        values = _values(arguments, "evaluate", evaluate, {"run_dir": "", "step": None})
        request: Request = requests.sampling_step(values, model)
    else:
        from dlm_jax.training.train import train

        given: dict[str, Any] = dict.fromkeys(requests.UNNEEDED)
        if arguments.model and arguments.model.endswith(".gin"):
            given["initial_checkpoint"] = None
            arguments.gin_file = [arguments.model, *arguments.gin_file]
            arguments.gin_bindings = [*arguments.gin_bindings, "train.model = %MODEL"]
        elif arguments.model:
            given |= {"initial_checkpoint": None, "model": requests.shape_of(arguments.model)}
        request = requests.training_step(_values(arguments, "train", train, given))
    return dataclasses.replace(request, mesh=_mesh(arguments.mesh) or request.mesh)


def _entry(arguments: argparse.Namespace) -> str:
    from dlm_jax.config.files import read_program

    program = read_program(arguments.gin_file, arguments.gin_bindings, arguments.gin_search_path)
    bound = {key.configurable for key in program.bindings}
    return "evaluate" if "evaluate" in bound and "train" not in bound else "train"


def _values(
    arguments: argparse.Namespace,
    entry: str,
    function: Callable[..., Any],
    given: dict[str, Any],
) -> dict[str, Any]:
    """The arguments that gin files give an entry function, which is not called."""
    from dlm_jax.planning.request import capturing

    checked = load_config(
        arguments,
        entry,
        arguments.gin_file,
        supplied=tuple(given),
        stand_ins={entry: capturing(function)},
    )
    return checked.call(**given)


def _mesh(text: str | None) -> MeshConfig | None:
    from dlm_jax.parallel.mesh import MeshConfig

    if text is None:
        return None
    names = [field.name for field in dataclasses.fields(MeshConfig)]
    sizes: dict[str, int] = {"data": 1}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in names:
            raise UserError(
                f"--mesh={text} names an axis {name!r} that is none of {', '.join(names)}"
                f"{nearest(name, names)}"
            )
        if not size.removeprefix("-").isdecimal():
            raise UserError(f"--mesh={text}: {part} has no number, such as {name}=4")
        sizes[name] = int(size)
    return MeshConfig(**sizes)
