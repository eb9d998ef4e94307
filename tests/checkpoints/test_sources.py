"""Packages and folders: fetched once, checked, and never half there."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dlm_jax.checkpoints.sources import cache_directory, resolve
from dlm_jax.errors import UserError

FILES = {
    "proverbs/__init__.py": b"raise RuntimeError('never imported')\n",
    "proverbs/data/manifest.json": b'{"texts": 2}',
    "proverbs/data/texts/first.txt": b"a stitch in time",
    "proverbs/data/texts/old/second.txt": bytes(range(256)) * 500,
}
TEXTS = {"first.txt", "old/second.txt"}
ZEROS = "0" * 64


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_wheel(folder: Path) -> Path:
    path = folder / "proverbs-1.2-py3-none-any.whl"
    information = "proverbs-1.2.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in FILES.items():
            wheel.writestr(name, content)
        # A Python that does not exist: what is only read need not run.
        metadata = "Metadata-Version: 2.1\nName: proverbs\nVersion: 1.2\nRequires-Python: >=9\n"
        wheel.writestr(f"{information}/METADATA", metadata)
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{information}/WHEEL", tag)
        wheel.writestr(f"{information}/RECORD", "")
    return path


def write_source_archive(folder: Path) -> Path:
    path = folder / "sayings-0.3.tar.gz"
    members = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: sayings\nVersion: 0.3\n",
        "setup.py": b"from setuptools import setup\nsetup(name='sayings', version='0.3')\n",
        "data/one.txt": b"one",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"sayings-0.3/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder that pip finds packages in."""
    folder = tmp_path_factory.mktemp("shelf")
    write_wheel(folder)
    write_source_archive(folder)
    return folder


@pytest.fixture
def offline(monkeypatch, shelf):
    """pip sees the shelf and no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")


@pytest.fixture
def no_pip(monkeypatch):
    """Any call of pip fails the test."""

    def refuse(*arguments, **options):
        raise AssertionError("the cache was full, yet a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)


def source_of(shelf: Path, inner: str, checksum: str | None = None) -> str:
    checksum = checksum or sha256(shelf / "proverbs-1.2-py3-none-any.whl")
    return f"pypi:proverbs==1.2/{inner}#sha256={checksum}"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def visible(cache: Path) -> list[Path]:
    """What a cache offers or leaves lying about: everything but the locks, which are empty."""
    return [path for path in (cache / "pypi").glob("*") if path.suffix != ".lock"]


def refusal(source: str, cache: Path) -> str:
    with pytest.raises(UserError) as caught:
        resolve(source, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_of_a_wheel(offline, shelf, tmp_path):
    folder = resolve(source_of(shelf, "proverbs/data/texts"), tmp_path)
    assert folder.name == "texts"
    expected = {name: FILES[f"proverbs/data/texts/{name}"] for name in TEXTS}
    assert contents(folder) == expected
    assert len(visible(tmp_path)) == 1


def test_second_call_needs_neither_pip_nor_the_package(offline, shelf, tmp_path, monkeypatch):
    source = source_of(shelf, "proverbs/data/texts/")
    first = resolve(source, tmp_path)
    monkeypatch.setattr(subprocess, "run", None)
    assert resolve(source, tmp_path) == first


def test_single_file_named_as_the_manifest(offline, shelf, tmp_path):
    path = resolve(source_of(shelf, "proverbs/data/manifest.json"), tmp_path)
    assert path.read_bytes() == FILES["proverbs/data/manifest.json"]


def test_source_archive_below_its_top_folder(offline, shelf, tmp_path):
    checksum = sha256(shelf / "sayings-0.3.tar.gz")
    folder = resolve(f"pypi:sayings==0.3/data#sha256={checksum}", tmp_path)
    assert contents(folder) == {"one.txt": b"one"}


def test_cache_directory_is_a_setting(offline, shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("DLM_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"
    path = resolve(source_of(shelf, "proverbs/data"))
    assert path.is_relative_to(tmp_path / "mine" / "pypi")
    monkeypatch.delenv("DLM_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "dlm_jax"


def test_checksum_mismatch(offline, shelf, tmp_path):
    sentence = refusal(source_of(shelf, "proverbs/data", ZEROS), tmp_path)
    assert "does not match" in sentence and ZEROS in sentence
    assert sha256(shelf / "proverbs-1.2-py3-none-any.whl") in sentence
    assert visible(tmp_path) == []


def test_full_cache_does_not_answer_for_another_checksum(offline, shelf, tmp_path):
    source = source_of(shelf, "proverbs/data")
    resolve(source, tmp_path)
    altered = source[:-1] + ("0" if source[-1] != "0" else "1")
    assert "does not match" in refusal(altered, tmp_path)


def test_wrong_inner_path(offline, shelf, tmp_path):
    sentence = refusal(source_of(shelf, "proverbs/data/text"), tmp_path)
    assert "'proverbs/data/text'" in sentence
    assert "did you mean proverbs/data/texts?" in sentence
    assert visible(tmp_path) == []


def test_unknown_package(offline, tmp_path):
    sentence = refusal(f"pypi:proverbs==9.9/data#sha256={ZEROS}", tmp_path)
    assert "No matching distribution found for proverbs==9.9" in sentence
    assert visible(tmp_path) == []


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    sentence = refusal(f"pypi:proverbs==1.2/data#sha256={ZEROS}", tmp_path)
    assert "no network" in sentence and str(tmp_path) in sentence
    assert visible(tmp_path) == []


def test_damaged_entry_is_fetched_again(offline, shelf, tmp_path):
    source = source_of(shelf, "proverbs/data/texts")
    folder = resolve(source, tmp_path)
    for damage in (
        lambda: (folder / "first.txt").write_bytes(b"A stitch in time"),
        lambda: (folder / "first.txt").unlink(),
        lambda: (folder.parent.parent / "manifest.json").write_text("{"),
    ):
        damage()
        assert resolve(source, tmp_path) == folder
        assert set(contents(folder)) == TEXTS
        assert (folder / "first.txt").read_bytes() == b"a stitch in time"
    assert len(visible(tmp_path)) == 1


def test_unwritable_cache(offline, shelf, tmp_path):
    (tmp_path / "file").write_text("")
    sentence = refusal(source_of(shelf, "proverbs/data"), tmp_path / "file")
    assert "DLM_CACHE_DIR" in sentence


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pypi:proverbs==1.2/data", "#sha256="),
        (f"pypi:proverbs/data#sha256={ZEROS}", "pypi:package==version/"),
        (f"pypi:proverbs==1.2#sha256={ZEROS}", "pypi:package==version/"),
        ("pypi:proverbs==1.2/data#sha256=abc", "64 lower-case hex digits"),
        (f"pypi:proverbs==1.2/../data#sha256={ZEROS}", "'../data'"),
        (f"pypi:proverbs==1.2//etc/passwd#sha256={ZEROS}", "'/etc/passwd'"),
        (f"pypi:--help==1.2/data#sha256={ZEROS}", "pypi:package==version/"),
        ("pypl:proverbs==1.2/data", "did you mean pypi?"),
        ("org/model", "did you mean hf:org/model?"),
        ("hf:a/b/c", "hf:org/name[@revision]"),
        ("hf:/no/such/folder", "'hf:/no/such/folder' is not here"),
    ],
)
def test_malformed(source, words, tmp_path, no_pip):
    assert words in refusal(source, tmp_path)


def test_plain_paths(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    assert resolve(tmp_path / "weights") == tmp_path / "weights"
    assert resolve(f"hf:{tmp_path}/weights") == tmp_path / "weights"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/weights") == tmp_path / "weights"
    assert "did you mean weights?" in refusal(str(tmp_path / "weigths"), tmp_path)


@pytest.fixture
def slow_index(shelf):
    """A package index over HTTP that never sends the second half of the wheel; (url, started)."""
    wheel = shelf / "proverbs-1.2-py3-none-any.whl"
    started, finish = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = wheel.read_bytes()
            listing = f'<a href="/{wheel.name}#sha256={sha256(wheel)}">{wheel.name}</a>'.encode()
            is_wheel = self.path.endswith(".whl")
            self.send_response(200)
            self.send_header("Content-Type", "application/zip" if is_wheel else "text/html")
            self.send_header("Content-Length", str(len(content) if is_wheel else len(listing)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if is_wheel else listing)
            if is_wheel:
                self.wfile.flush()
                started.set()
                finish.wait(30)

        def log_message(self, *arguments) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple", started
    finish.set()
    server.shutdown()


def test_killed_in_the_middle_of_a_download(slow_index, offline, shelf, tmp_path):
    url, started = slow_index
    source = source_of(shelf, "proverbs/data/texts")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PIP_")
    } | {"PIP_INDEX_URL": url, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    program = "import sys; from dlm_jax.checkpoints.sources import resolve; resolve(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, source, str(tmp_path)],
        env=environment,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert started.wait(60), "pip never asked for the wheel"
        time.sleep(0.2)
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # Nothing that a later call could take for the whole, and the later call clears up.
    assert all(path.name.startswith(".") for path in visible(tmp_path))
    folder = resolve(source, tmp_path)
    assert set(contents(folder)) == TEXTS
    assert [path.name for path in visible(tmp_path)] == [folder.parent.parent.name]


def test_two_processes_at_once_fetch_once(offline, shelf, tmp_path):
    source = source_of(shelf, "proverbs/data/texts")
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(resolve(source, tmp_path))) for _ in range(3)
    ]
    calls: list[list[str]] = []
    run = subprocess.run

    def counted(command, **options):
        calls.append(command)
        return run(command, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", counted)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 3 and len(set(results)) == 1
    assert len(calls) == 1
