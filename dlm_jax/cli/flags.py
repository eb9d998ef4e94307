"""Flags that several verbs share, and the parser whose complaints are `UserError`s."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dlm_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from dlm_jax.config import Config

_GIN = "--gin."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def parse(
    verb: str,
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    arguments: Sequence[str],
) -> argparse.Namespace:
    """Parses the arguments of a verb.

    Raises:
        UserError: a flag is unknown, incomplete, or has a value of the wrong kind.
    """
    parser = _Parser(prog=f"dlm {verb}", description=description, allow_abbrev=False)
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks of mistakes, too")
    rewritten = [_as_binding(item) for item in arguments]
    for item in rewritten:
        # Before argparse looks: it would complain of a missing flag, not of the misspelled one.
        flag = item.partition("=")[0]
        if flag.startswith("--") and flag != "--" and flag not in parser._option_string_actions:
            if flag == "--gin_bindings":
                binding = item.removeprefix("--gin_bindings=")
                raise UserError(f"dlm {verb} takes no gin bindings, such as --gin.{binding}")
            hint = nearest(flag, parser._option_string_actions)
            raise UserError(f"dlm {verb} has no flag {flag}{hint}")
    known, unknown = parser.parse_known_args(rewritten)
    if unknown:
        raise UserError(
            f"dlm {verb}: {unknown[0]} belongs to no flag; a text with spaces needs quotes"
        )
    for name in ("run_dir", "output"):
        folder = getattr(known, name, None)
        if folder == "":
            raise UserError(f"--{name} is empty: name a folder (is a variable of the shell unset?)")
        if folder is not None and "://" in folder:
            raise UserError(
                f"--{name}={folder} is no folder of this machine: mount the bucket (gcsfuse, s3fs) "
                "and name the folder where it appears"
            )
    return known


def _as_binding(argument: str) -> str:
    """Rewrites `--gin.NAME=VALUE`, which argparse cannot declare, as `--gin_bindings=…`."""
    if not argument.startswith(_GIN):
        return argument
    binding = argument.removeprefix(_GIN)
    if "=" not in binding:
        raise UserError(f"{argument} has no value: write {argument}=VALUE, without spaces")
    return f"--gin_bindings={binding}"


def add_gin(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that make up a configuration."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="gin file, here or among the installed ones; of several, later ones win",
    )
    group.add_argument(
        "--gin_bindings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one binding, which wins over the files; the short form is --gin.NAME=VALUE",
    )
    group.add_argument(
        "--gin_search_path",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder to look into for gin files",
    )
    add_import(parser)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds `--import`."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="module, or path of a .py file, that registers tasks or configurables",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run of several processes, which launchers give as variables instead."""
    group = parser.add_argument_group(
        "several processes",
        "found in the variables of Slurm, GKE, JobSet, Kubeflow or JAX where not given here",
    )
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process_id", type=int, metavar="I", help="number of this one, from 0")
    for name, seconds, text in (
        ("heartbeat_timeout", 60, "silence after which another process counts as lost"),
        ("shutdown_timeout", 60, "wait for the others after the last step"),
        ("initialization_timeout", 300, "wait for the others to start"),
    ):
        group.add_argument(
            f"--{name}", type=int, default=seconds, metavar="SECONDS", help=f"{text} ({seconds} s)"
        )


def join_processes(arguments: argparse.Namespace) -> bool:
    """Joins the other processes of the run, as the flags of `add_processes` or variables say.

    Returns:
        Whether there are others.

    Raises:
        UserError: they contradict each other.
        RetryError: the others did not come in time.
    """
    from dlm_jax.parallel.cluster import find_cluster
    from dlm_jax.parallel.tpu_machine import on_tpu_machine

    cluster = find_cluster(
        os.environ,
        coordinator_address=arguments.coordinator_address,
        num_processes=arguments.num_processes,
        process_id=arguments.process_id,
        tpu_pod=on_tpu_machine(os.environ),
    )
    if cluster is None:
        return False
    from dlm_jax.parallel.supervision import supervise

    supervise()  # forks, so it must precede the import of JAX and its threads
    from dlm_jax.parallel import multihost

    multihost.initialize(
        cluster,
        heartbeat_timeout=arguments.heartbeat_timeout,
        shutdown_timeout=arguments.shutdown_timeout,
        initialization_timeout=arguments.initialization_timeout,
    )
    return True


def agreed_config(several: bool, read: Callable[[], Config]) -> Config:
    """The configuration, once all processes of the run have found it right and the same.

    Args:
        several: whether there are others, as `join_processes` says.
        read: reads it.
    """
    if not several:
        return read()
    from dlm_jax.parallel import multihost

    checked = multihost.together("config", read)
    multihost.require_equal("config", checked.values(), "start all with the same files and flags")
    return checked


def is_main(several: bool) -> bool:
    """Whether this process writes what is written once."""
    if not several:
        return True
    from dlm_jax.parallel import multihost

    return multihost.is_main()


def load_config(
    arguments: argparse.Namespace,
    entry: str,
    files: Sequence[str],
    modules: Sequence[str] = (),
    *,
    supplied: Sequence[str] = ("run_dir",),
    stand_ins: Mapping[str, Callable[..., Any]] | None = None,
) -> Config:
    """Reads and checks what `add_gin`'s flags say; the entry function gets `run_dir` from its verb.

    Args:
        arguments: parsed flags.
        entry: name of the function that will be called.
        files: gin files, in order.
        modules: modules to import, beside those that the flags name.
        supplied: parameters of the entry function that the verb gives itself.
        stand_ins: name -> what is called in place of the configurable of that name.

    Raises:
        UserError: the first mistake.
    """
    from dlm_jax import config
    from dlm_jax.cli.configurables import CONFIGURABLES, ENTRIES

    names = dict.fromkeys([*modules, *(module_name(name) for name in arguments.modules)])
    return config.load(
        files,
        [*(f"import {name}" for name in names), *arguments.gin_bindings],
        entry,
        {**CONFIGURABLES, **(stand_ins or {})},
        arguments.gin_search_path,
        other_entries=ENTRIES,
        supplied=supplied,
        importer=import_task_module,
    )


def import_modules(names: Sequence[str]) -> None:
    """Imports the modules of `--import` for a verb without gin.

    Raises:
        UserError: a module is missing or raises.
    """
    for name in names:
        import_task_module(module_name(name))


def import_task_module(name: str) -> Any:
    """Imports a module by its dotted name; the tasks of this package need no prefix."""
    from dlm_jax.data.tasks import import_task_modules

    return import_task_modules([name])


def module_name(name: str) -> str:
    """Returns the name under which `--import` finds a module, and makes a .py file findable.

    Raises:
        UserError: the file is missing, or its name is no module's or already that of another.
    """
    if not name.endswith(".py"):
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"--import={name} is neither the name of a module nor a .py file")
        return name
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        hint = nearest(path.name, [file.name for file in path.parent.glob("*.py")])
        raise UserError(f"--import={name} names a file that does not exist{hint}")
    if not path.stem.isidentifier():
        raise UserError(f"--import={name} cannot be imported: {path.stem} is no name for a module")
    from dlm_jax.data.tasks import shipped_modules

    if path.stem in shipped_modules():
        raise UserError(
            f"--import={name} has the name of a task module of this package, so rename the file"
        )
    loaded = getattr(sys.modules.get(path.stem), "__file__", None)
    if path.stem in sys.modules and (loaded is None or Path(loaded).resolve() != path):
        raise UserError(f"--import={name} has the name of another module, so rename the file")
    sys.path.insert(0, str(path.parent))
    return path.stem
