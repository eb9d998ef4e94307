"""Two real processes divide an evaluation and get, to the bit, what one finds alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TOYS = Path(__file__).parents[1] / "end_to_end"
PROGRAM = """
import json, pathlib, sys
from flax import nnx
from dlm_jax.parallel import multihost
from dlm_jax.parallel.cluster import Cluster

address, count, mine = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
folder = pathlib.Path(sys.argv[4]) / str(mine)
sys.path.insert(0, sys.argv[5])
if count > 1:
    multihost.initialize(Cluster(address, count, mine, "the test"))
import toy_tasks
from dlm_jax.api import DiffusionLanguageModel
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.evaluation import evaluators
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import Encoder

config = EncoderConfig(vocab_size=264, embed_dim=16, num_layers=1, num_heads=2, mlp_dim=16,
                       max_positions=50)
calls = {"likelihood": 0, "generation": 0}

def counted(name, function):
    def call(*args, **kwargs):
        calls[name] += 1
        return function(*args, **kwargs)
    return call

evaluators.nelbo_of_rows = counted("likelihood", evaluators.nelbo_of_rows)
DiffusionLanguageModel.generate_ids = counted("generation", DiffusionLanguageModel.generate_ids)
likelihood = dict(task="toy_v1.echo", draws=2, batch_size=4)
found = {"figures": [
    evaluator(Encoder(config, rngs=nnx.Rngs(0)), ByteVocabulary(),
              ModelDescription(config, length=48), RunFolder(folder), 7)
    for evaluator in (
        evaluators.LikelihoodEvaluator(max_examples=18, **likelihood),
        evaluators.LikelihoodEvaluator(max_examples=3, **likelihood),  # nothing for the second
        evaluators.GenerationEvaluator(task="toy_v1.echo", max_examples=10, batch_size=4, steps=2,
                                       canvas="fixed", response_lengths=(4,)),
    )
], "calls": calls}
# Longer than a message, and not of one length on all.
found["exchanged"] = [[len(text), text[:1]] for text in multihost.exchange(
    "long", str(mine) * (700_000 + mine))]
print(json.dumps(found), flush=True)
multihost.leave(0)
"""


@pytest.fixture(scope="module")
def runs(on_processes, tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("alone", "pair")]
    [alone] = on_processes(PROGRAM, 1, folders[0], TOYS)
    return folders, alone, on_processes(PROGRAM, 2, folders[1], TOYS)


def test_the_figures_are_those_of_one_process_on_both(runs):
    _, alone, pair = runs
    assert alone["figures"][0]["eval/toy_v1.echo"]["n"] == 18
    for one in pair:
        assert one["figures"] == alone["figures"]


def test_the_work_is_divided(runs):
    _, alone, pair = runs
    assert alone["calls"] == {"likelihood": 6, "generation": 3}
    assert [one["calls"] for one in pair] == [
        {"likelihood": 4, "generation": 2},
        {"likelihood": 2, "generation": 1},
    ]


def test_the_predictions_are_whole_and_in_order(runs):
    (alone, pair), *_ = runs
    name = "eval/toy_v1.echo/7.jsonl"
    [expected] = [path for path in alone.rglob("*.jsonl")]
    assert str(expected).endswith(name)
    assert (pair / "0" / name).read_text() == expected.read_text()
    assert [json.loads(line)["index"] for line in expected.open()] == list(range(10))


def test_long_texts_are_exchanged_whole(runs):
    _, alone, pair = runs
    assert alone["exchanged"] == [[700_000, "0"]]
    for one in pair:
        assert one["exchanged"] == [[700_000, "0"], [700_001, "1"]]
