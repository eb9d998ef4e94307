"""What a user gets: the wheel, its metadata, the pinned environment, floors, the first command."""

from __future__ import annotations

import email.parser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")


def run(*command: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    if check and result.returncode:
        pytest.fail(f"{' '.join(command)}\n{result.stdout}\n{result.stderr}")
    return result


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("packaging") / "source"
    copy.mkdir()
    source = ("dlm_jax", "tasks", "gin_configs", "launch", "README.md", "LICENSE")
    for name in (*source, "setup.py", "pyproject.toml"):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", "dist", ".", cwd=tree)
    (built,) = (tree / "dist").glob("dlm_jax-*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: Path, tree: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
        assert len(licences) == 1
        assert archive.read(licences[0]) == (tree / "LICENSE").read_bytes()

    def files(folder: str, inside: str, pattern: str) -> set[str]:
        found = (tree / folder).rglob(pattern)
        return {f"{inside}/{path.relative_to(tree / folder).as_posix()}" for path in found}

    expected = (
        files("dlm_jax", "dlm_jax", "*.py")
        | files("tasks", "dlm_jax/tasks", "*.py")
        | files("launch", "dlm_jax/launch", "*.py")
        | files("launch", "dlm_jax/launch", "*.sbatch")
        | files("launch", "dlm_jax/launch", "*.yaml")
        | files("gin_configs", "dlm_jax/gin_configs", "*.py")
        | files("gin_configs", "dlm_jax/gin_configs", "*.gin")
        | {"dlm_jax/py.typed"}
    )
    assert packed == expected


def test_the_installed_wheel_finds_its_tasks_and_gin_files(
    wheel: Path, tree: Path, tmp_path: Path
) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path)
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
from importlib import resources
import dlm_jax.tasks, dlm_jax.launch
assert dlm_jax.tasks.__file__.startswith({str(tmp_path)!r}), dlm_jax.tasks.__file__
def gin_files(folder):
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from gin_files(entry)
        elif entry.name.endswith('.gin'):
            yield entry.name
print(*sorted(gin_files(resources.files('dlm_jax.gin_configs'))))
"""
    listed = run(sys.executable, "-c", program, cwd=tmp_path).stdout.split()
    assert listed == sorted(path.name for path in (tree / "gin_configs").rglob("*.gin"))


def test_metadata(metadata: email.message.Message, wheel: Path) -> None:
    assert metadata["Name"] == "dlm_jax"
    assert set(metadata["Requires-Python"].split(",")) == {">=3.11", "<3.14"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra")) == {
        "hf",
        "quickstart",
        "tpu",
        "cuda",
        "plan",
        "bench",
        "dev",
    }
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        points = archive.read(name).decode().replace(" ", "").split()
        assert points == ["[console_scripts]", "dlm=dlm_jax.cli:main"]


def test_constraints_pin_every_requirement_once_for_every_python(
    metadata: email.message.Message,
) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    declared = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    extras = metadata.get_all("Provides-Extra")
    for python in PYTHONS:
        environment = {**default_environment(), "python_version": python}
        pinned: dict[str, str] = {}
        for pin in pins:
            if pin.marker is None or pin.marker.evaluate(environment):
                (version,) = pin.specifier
                assert version.operator == "==", pin
                name = pin.name.lower().replace("_", "-")
                assert name not in pinned, f"{name} is pinned twice for Python {python}"
                pinned[name] = version.version
        for requirement in declared:
            marker = requirement.marker
            if marker is None or any(marker.evaluate({**environment, "extra": e}) for e in extras):
                version = pinned[requirement.name.lower().replace("_", "-")]
                assert requirement.specifier.contains(version), (python, requirement, version)
        assert (pinned["jax"], pinned["flax"]) == (
            ("0.10.2", "0.12.8") if python == "3.11" else ("0.12.0.1", "0.12.12")
        )


def test_floors_hold_and_the_contract_notices_a_breach(tree: Path) -> None:
    linter = str(Path(sys.executable).with_name("lint-imports"))
    assert "0 broken" in run(linter, "--no-cache", cwd=tree).stdout
    breach = tree / "dlm_jax" / "diffusion" / "breach.py"
    breach.write_text('"""Imports from above."""\n\nimport dlm_jax.training\n')
    try:
        broken = run(linter, "--no-cache", cwd=tree, check=False)
    finally:
        breach.unlink()
    assert broken.returncode == 1
    assert "dlm_jax.diffusion is not allowed to import dlm_jax.training" in broken.stdout


@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_make_refuses_another_python_in_one_sentence(target: str, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c "
        "'import sys; sys.version_info = (3, 9, 1); exec(sys.argv[2])' \"$@\"\n"
    )
    old.chmod(0o755)
    for python, expected in ((str(old), "is 3.9"), ("python-of-nowhere", "python-of-nowhere")):
        venv = tmp_path / "venv"
        command = ("make", "--no-print-directory", f"PYTHON={python}", f"VENV={venv}", target)
        refused = run(*command, cwd=ROOT, check=False)
        message = refused.stderr.splitlines()[0]
        assert refused.returncode == 2
        assert message.startswith("error: ")
        assert expected in message
        assert not venv.exists()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_git_ignores_no_source_file() -> None:
    folders = ("dlm_jax", "tasks", "gin_configs", "launch", "tests", "benchmarks")
    paths = [
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for pattern in ("*.py", "*.gin")
        for path in (ROOT / folder).rglob(pattern)
    ]
    ignored = run("git", "check-ignore", "--no-index", *paths, cwd=ROOT, check=False)
    assert ignored.returncode == 1, f"git would leave out {ignored.stdout}{ignored.stderr}"
