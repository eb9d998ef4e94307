"""What the compiler says of a lowered step, asked once and kept on disk for every program."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import re
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_jax.planning.topologies import Topology

if TYPE_CHECKING:
    import jax

Options = dict[str, str | bool] | None
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TOO_MUCH = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
)
# Packages whose release decides what is compiled, by platform.
_COMPILERS = {
    "tpu": ("jaxlib", "libtpu"),
    "cuda": ("jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin"),
    "cpu": ("jaxlib",),
}
_SETTINGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What only a compilation can tell.

    Attributes:
        peak_bytes: most that is alive on a device at a time; None where the compiler gave up.
        needed_bytes: what it asked for when it gave up; None when it did not.
        program: the compiled program as text; empty where there is none.
        cpu_seconds: processor time of the compilation.
        kept: whether it is the verdict of an earlier compilation.
    """

    peak_bytes: int | None
    needed_bytes: int | None
    program: str
    cpu_seconds: float
    kept: bool = False


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """A folder of verdicts, each under a name made of all that the compiler is given.

    That is the lowered program, the devices that its partitions run on, the topology, the
    compiler's release and its settings; so a verdict is never used for another program, and a
    change of the code that matters compiles anew.

    Attributes:
        folder: where they are kept, made when the first one is; None keeps nothing.
    """

    folder: Path | None = None

    def ask(
        self,
        lowered: jax.stages.Lowered,
        mesh: jax.sharding.Mesh,
        topology: Topology,
        options: Options,
    ) -> Verdict:
        """The verdict on a program: the kept one, or a new one, which is kept.

        Args:
            lowered: the program.
            mesh: of the devices that it was lowered for.
            topology: what they belong to.
            options: of XLA.
        """
        if self.folder is None:
            return compiled_verdict(lowered, options)
        path = self.folder / f"{_name(lowered, mesh, topology, options)}.json.gz"
        verdict = _read(path)
        if verdict is None:
            verdict = compiled_verdict(lowered, options)
            _write(path, verdict)
        return verdict


def compiled_verdict(lowered: jax.stages.Lowered, options: Options) -> Verdict:
    """Compiles.

    Raises:
        jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    import jax

    began = time.process_time()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        return Verdict(None, _needed_bytes(error), "", time.process_time() - began)
    memory, program = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and program is not None  # every compiler that plans states both
    return Verdict(memory.peak_memory_in_bytes, None, program, time.process_time() - began)


def _name(
    lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh, topology: Topology, options: Options
) -> str:
    # The text numbers partitions; which device is which decides what is sent over which links.
    order = [device.id for device in mesh.devices.flat]
    settings = [topology.name, topology.slices, order, sorted((options or {}).items())]
    releases = [_release(name) for name in _COMPILERS[topology.family.platform]]
    environment = [os.environ.get(name) for name in _SETTINGS]
    digest = hashlib.sha256(json.dumps([settings, releases, environment]).encode())
    digest.update(lowered.as_text().encode())
    return digest.hexdigest()


def _release(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> Verdict | None:
    try:
        fields: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        return dataclasses.replace(Verdict(**fields), kept=True)
    except (OSError, EOFError, ValueError, TypeError):  # absent, cut short, or of another release
        return None


def _write(path: Path, verdict: Verdict) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # no place to keep it: it is compiled again the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(gzip.compress(json.dumps(dataclasses.asdict(verdict)).encode()))
        os.replace(temporary, path)


def _needed_bytes(error: Exception) -> int:
    """Bytes that the compiler asked for when memory did not suffice.

    Raises:
        Exception: the error itself, when it is of another kind.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise error
    for pattern in _TOO_MUCH:
        match = pattern.search(text)
        if match:
            return round(float(match[1]) * _UNITS[match[2]])
    raise error
