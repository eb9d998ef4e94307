"""The hub source against a real HTTP endpoint on the loopback that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from dlm_jax.checkpoints import sources
from dlm_jax.errors import UserError

pytest.importorskip("huggingface_hub")

COMMIT = "c0ffee" + "0" * 34
OTHER_COMMIT = "decade" + "0" * 34
NEEDED = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(range(256)) * 300,
    "tokenizer.json": b"{}",
    "sentencepiece.bpe.model": b"pieces",
}
NOT_NEEDED = {
    "pytorch_model.bin": b"pickle",
    "tf_model.h5": b"h5",
    "README.md": b"read",
    "onnx/model.safetensors": b"onnx",
}
REPOSITORIES = {
    ("org/model", "main"): (COMMIT, NEEDED | NOT_NEEDED),
    ("org/model", "v2"): (OTHER_COMMIT, NEEDED | {"config.json": b'{"model_type": "roberta"}'}),
    ("org/pickles", "main"): (COMMIT, NOT_NEEDED | {"config.json": b"{}"}),
}
PROGRAM = """
import sys
from dlm_jax.checkpoints.sources import resolve
from dlm_jax.errors import UserError
try:
    print(resolve(sys.argv[1]))
except UserError as error:
    sys.exit(str(error))
"""


class Hub(BaseHTTPRequestHandler):
    """The routes that a snapshot download asks for, and the error codes of the hub."""

    requested: list[str] = []

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.requested.append(path)
        parts = path.split("/")
        if parts[:2] == ["api", "models"] and len(parts) == 6:
            return self._api("/".join(parts[2:4]), parts[4], parts[5], with_body)
        if parts[2:3] == ["resolve"]:
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_body)
        return self._send(404, b"", {}, with_body)

    def _api(self, repository: str, kind: str, revision: str, with_body: bool) -> None:
        if repository == "org/gated":
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"}, with_body)
        if repository not in {name for name, _ in REPOSITORIES}:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        found = self._find(repository, revision)
        if found is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
        commit, files = found
        siblings = [{"rfilename": name} for name in files]
        document: object = {"id": repository, "sha": commit, "siblings": siblings}
        if kind == "tree":
            document = [
                {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                for name, data in files.items()
            ]
        headers = {"Content-Type": "application/json"}
        return self._send(200, json.dumps(document).encode(), headers, with_body)

    def _file(self, repository: str, revision: str, name: str, with_body: bool) -> None:
        found = self._find(repository, revision)
        if found is None or name not in found[1]:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        data = found[1][name]
        headers = {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": found[0]}
        return self._send(200, data, headers, with_body)

    @staticmethod
    def _find(repository: str, revision: str):
        for (name, label), (commit, files) in REPOSITORIES.items():
            if name == repository and revision in (label, commit):
                return commit, files
        return None

    def _send(self, code: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        pass


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def resolve(source: str, endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Runs `resolve` in a process of its own: the endpoint is read when the client is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DLM_CACHE_DIR": str(cache),
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", PROGRAM, source]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def refusal(source: str, endpoint: str, cache: Path) -> str:
    finished = resolve(source, endpoint, cache)
    assert finished.returncode == 1, finished
    sentence = finished.stderr.strip().splitlines()[-1]
    assert sentence.startswith(f"source '{source}'"), finished.stderr
    return sentence


@pytest.fixture(scope="module")
def fetched(endpoint, tmp_path_factory):
    """(cache, folder) after one successful call."""
    cache = tmp_path_factory.mktemp("cache")
    finished = resolve("hf:org/model", endpoint, cache)
    assert finished.returncode == 0, finished.stderr
    return cache, Path(finished.stdout.strip())


def test_only_the_needed_files_are_fetched(fetched):
    cache, folder = fetched
    assert folder.is_relative_to(cache / "huggingface")
    contents = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert contents == NEEDED
    base = f"org/model/resolve/{COMMIT}/"
    asked = {path.removeprefix(base) for path in Hub.requested if path.startswith(base)}
    assert asked == set(NEEDED)


def test_full_cache_answers_without_the_hub(fetched):
    cache, folder = fetched
    finished = resolve("hf:org/model", "http://127.0.0.1:9", cache)
    assert finished.returncode == 0, finished.stderr
    assert Path(finished.stdout.strip()) == folder


def test_revision(endpoint, tmp_path):
    finished = resolve("hf:org/model@v2", endpoint, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "roberta" in (Path(finished.stdout.strip()) / "config.json").read_text()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hf:org/absent", "not on the hub"),
        ("hf:org/model@v3", "no revision 'v3'"),
        ("hf:org/gated", "gated"),
        ("hf:org/pickles", "no safetensors weights"),
    ],
)
def test_refusals(source, words, endpoint, tmp_path):
    assert words in refusal(source, endpoint, tmp_path)


def test_no_network(tmp_path):
    sentence = refusal("hf:org/model", "http://127.0.0.1:9", tmp_path)
    assert "cannot be downloaded" in sentence and "ConnectError" in sentence


def test_without_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"dlm_jax\[hf\]"):
        sources.resolve("hf:org/model", tmp_path)
