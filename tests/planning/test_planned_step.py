"""What is planned is what a run compiles, instruction for instruction."""

from __future__ import annotations

import collections
import re

from dlm_jax.data.tasks import register_task
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel.compiler import training_compiler_options
from dlm_jax.planning.compile import compile_step
from dlm_jax.planning.request import capturing, training_step
from dlm_jax.planning.topologies import Topology
from dlm_jax.planning.verdicts import Verdict, Verdicts
from dlm_jax.training.objectives import Diffusion
from dlm_jax.training.spikes import SkipSpikes
from dlm_jax.training.train import train

WINDOW = 8
# The vocabulary has the ids of special tokens that a plan assumes.
CONFIG = EncoderConfig(
    vocab_size=ByteVocabulary().size,
    embed_dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=32,
    max_positions=34,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
)


class _Asked(Verdicts):
    """Notes what it answers."""

    answers: list[Verdict] = []

    def ask(self, *question):
        self.answers.append(super().ask(*question))
        return self.answers[-1]


def _instructions(program: str) -> collections.Counter[str]:
    """What is computed, without names and without where in the source it came from."""
    lines = [line.strip() for line in program.splitlines() if " = " in line]
    return collections.Counter(
        re.sub(r"%[\w.\-]+|, metadata=\{[^}]*\}", "", line) for line in lines
    )


def test_the_planned_step_is_the_one_that_a_run_compiles(tmp_path) -> None:
    ByteVocabulary().save(tmp_path / "vocabulary")
    task = register_task(
        "planned_v1.echo",
        splits={"train": lambda: [{"word": "word"}]},
        inputs="say {word}: ",
        targets="{word}",
    )
    values = {
        "task": task.name,
        "model": CONFIG,
        "vocabulary": str(tmp_path / "vocabulary"),
        "objective": Diffusion(time_sampling="importance", pairing="single"),
        "total_steps": 1,
        "batch_size": 4,
        "length": 32,
        "gradient_accumulation_steps": 2,
        "seed": 0,
        "skip_spikes": SkipSpikes(window=WINDOW),
    }
    train(tmp_path / "run", dump_hlo=True, **values)
    run = (tmp_path / "run" / "hlo" / "train_step.hlo.txt").read_text(encoding="utf-8")
    request = training_step(capturing(train)(None, **values))
    compile_step(request, Topology.parse("cpu:1"), training_compiler_options(), _Asked())
    planned = _Asked.answers[-1].program
    assert _instructions(planned) == _instructions(run)
    assert run.count(f"f32[{WINDOW}]") > 10
