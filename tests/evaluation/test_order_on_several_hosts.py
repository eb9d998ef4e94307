"""Two real processes divide the tracing of answers and get, to the bit, what one finds alone."""

from __future__ import annotations

from pathlib import Path

import pytest

PROGRAM = """
import json, pathlib, sys
from dlm_jax.parallel import multihost
from dlm_jax.parallel.cluster import Cluster

address, count, mine = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
folder = pathlib.Path(sys.argv[4]) / str(mine)
sys.path.insert(0, sys.argv[5])
if count > 1:
    multihost.initialize(Cluster(address, count, mine, "the test"))
import test_reasoning_order as toys
from dlm_jax.api import DiffusionLanguageModel
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.evaluation.order_evaluator import ReasoningOrderEvaluator

task, denoiser, calls = toys.toy_task(), toys.parrot("add 2 2 "), []
generate = DiffusionLanguageModel.generate_ids

def counted(*args, **kwargs):
    calls.append(kwargs.get("trace", False))
    return generate(*args, **kwargs)

DiffusionLanguageModel.generate_ids = counted
found = []
for step, examples in enumerate((18, 3)):  # of the second, nothing for the second process
    evaluator = ReasoningOrderEvaluator(
        task=task.name, steps=7, strategy="cmlm", max_examples=examples, batch_size=4
    )
    description = ModelDescription(denoiser.config)
    found.append(evaluator(denoiser, toys.LETTERS, description, RunFolder(folder), step))
print(json.dumps({"figures": found, "traced": sum(calls)}), flush=True)
multihost.leave(0)
"""


@pytest.fixture(scope="module")
def runs(on_processes, tmp_path_factory):
    folders, here = [tmp_path_factory.mktemp(name) for name in ("alone", "pair")], Path(__file__)
    [alone] = on_processes(PROGRAM, 1, folders[0], here.parent)
    return folders, alone, on_processes(PROGRAM, 2, folders[1], here.parent)


def test_the_figures_are_those_of_one_process_on_both(runs) -> None:
    _, alone, pair = runs
    [figures] = alone["figures"][0].values()
    assert figures["n"] == 18 and figures["answers_read"] == 1.0
    assert 0.0 < figures["early/answer before result"] < 1.0 < figures["order_violations"]
    assert figures["answers_right"] == 18
    for one in pair:
        assert one["figures"] == alone["figures"]


def test_the_work_is_divided(runs) -> None:
    _, alone, pair = runs
    assert alone["traced"] == 6
    assert [one["traced"] for one in pair] == [4, 2]


def test_what_process_0_leaves_is_what_one_leaves_alone(runs) -> None:
    (alone, pair), *_ = runs
    files = sorted(path.relative_to(alone / "0") for path in alone.rglob("*.*") if path.is_file())
    assert len(files) == 4
    for file in files:
        assert (pair / "0" / file).read_bytes() == (alone / "0" / file).read_bytes(), file
