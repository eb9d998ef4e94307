"""Every command of docs/planning.md, as it stands; only the compiler's answer is made up."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dlm_jax import cli
from dlm_jax.planning import plan as plans
from dlm_jax.planning.compile import Compiled
from dlm_jax.planning.topologies import Topology

PAGE = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("dlm plan")
]


def answer(request, topology, *_) -> Compiled:
    machine = topology.accelerator
    devices = topology.chips * topology.slices * machine.devices_per_chip
    return Compiled(
        mesh=dict(zip(("data", "fsdp", "tensor"), request.mesh.shape(devices))),
        parameter_bytes=1,
        state_bytes=3,
        peak_bytes=4,
        needed_bytes=None,
        usable_bytes=machine.usable_bytes,
        collectives=(),
        cpu_seconds=0.0,
    )


def test_the_page_shows_plans_and_searches() -> None:
    assert sum("--search" in command for command in COMMANDS) >= 2
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, monkeypatch, capsys) -> None:
    monkeypatch.setattr(plans, "compile_step", answer)
    monkeypatch.setattr(Topology, "prepare", lambda topology: None)
    assert cli.main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out
    if "--json" in command:
        assert json.loads(printed)["verdict"] == "fits"
    else:
        assert "fits" in printed
