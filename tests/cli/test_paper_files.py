"""The runs of the paper's tables: their hyper-parameters, and their shapes at full size.

Expected values: Ye et al. 2023 (arXiv 2308.12219), tables 5 and 6 and appendix A.3.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import dlm_jax.gin_configs
import jax
import pytest

from dlm_jax import config
from dlm_jax.cli.configurables import CONFIGURABLES, ENTRIES
from dlm_jax.cli.flags import import_task_module
from dlm_jax.data.tasks import get_task
from dlm_jax.models.encoder import abstract_parameters, logical_axes
from dlm_jax.parallel.rules import parameter_shardings
from dlm_jax.planning.request import shape_of
from dlm_jax.training.length_stage import train_length_predictor
from dlm_jax.training.optimizers import AdamW
from dlm_jax.training.train import train

FOLDER = Path(next(iter(dlm_jax.gin_configs.__path__))) / "examples" / "paper"
PARAMETERS = {
    "base": 278_295_186,
    "large": 560_142_482,
    "xl": 3_482_741_760,
    "xxl": 10_712_994_816,
}
# Thousands of tokens, or sequences, of a step; and thousands of steps for base, large, xl, xxl.
TABLES = {
    "iwslt14_de_en": ("tokens", (32, 32, 32, 32), (150, 150, 100, 30), 5e-5),
    "wmt14_en_de": ("tokens", (128, 128, 128, 128), (300, 300, 150, 100), 5e-5),
    "gigaword_10k": ("tokens", (16, 16, 16, 16), (30, 10, 5, 1), 5e-5),
    "flan2021_no_german": ("sequences", (512, 512, 512, 256), (5, 5, 3, 1), 5e-5),
    "flan2022": ("sequences", (512, 512, 1024, 2048), (70, 30, 17, 4), 1e-5),
}
# Thousands of steps of the length stage, and its rate; the paper has none for the other table.
LENGTHS = {
    "iwslt14_de_en": (30, 5e-5),
    "wmt14_en_de": (30, 5e-5),
    "gigaword_10k": (30, 5e-5),
    "flan2022": (16, 1e-5),
}
CASES = [(table, size) for table in TABLES for size in PARAMETERS]


def test_there_is_a_file_for_every_table_and_size_and_no_other() -> None:
    files = sorted(file.relative_to(FOLDER).as_posix() for file in FOLDER.rglob("*.gin"))
    stages = [f"{table}/length.gin" for table in LENGTHS]
    assert files == sorted([f"{table}/{size}.gin" for table, size in CASES] + stages)


def arguments_of(entry: str, name: str) -> dict[str, Any]:
    """Loads a file of the paper with the entry function replaced by one that returns what it is
    given."""
    target = {"train": train, "length_stage": train_length_predictor}[entry]

    @functools.wraps(target)
    def arguments(run_dir, **given):
        bound = inspect.signature(target).bind(run_dir, **given)
        bound.apply_defaults()
        return bound.arguments

    checked = config.load(
        [f"examples/paper/{name}.gin"],
        [],
        entry,
        {**CONFIGURABLES, entry: arguments},
        other_entries=ENTRIES,
        supplied=("run_dir",),
        importer=import_task_module,
    )
    return checked.call(run_dir="run")


def check_optimizer(optimizer: AdamW, learning_rate: float) -> None:
    assert (optimizer.learning_rate, optimizer.schedule) == (learning_rate, "constant")
    assert (optimizer.b1, optimizer.b2, optimizer.epsilon) == (0.9, 0.98, 1e-8)
    assert (optimizer.weight_decay, optimizer.decay) == (0.01, "all")
    assert (optimizer.warmup_steps, optimizer.max_grad_norm) == (0.01, 1.0)


@pytest.mark.parametrize("table", LENGTHS)
def test_the_length_stage_is_the_papers(table: str) -> None:
    values = arguments_of("length_stage", f"{table}/length")
    steps, learning_rate = LENGTHS[table]
    assert (values["total_steps"], values["batch_size"]) == (1000 * steps, 256)
    assert (values["dropout_rate"], values["feature_dropout"]) == (0.1, True)
    assert values["task"] == arguments_of("train", f"{table}/base")["task"]
    check_optimizer(values["optimizer"], learning_rate)


@pytest.mark.parametrize(("table", "size"), CASES)
def test_hyper_parameters_are_the_papers(table: str, size: str) -> None:
    unit, batches, steps, learning_rate = TABLES[table]
    index = list(PARAMETERS).index(size)
    values = arguments_of("train", f"{table}/{size}")
    assert values["total_steps"] == 1000 * steps[index]
    assert values["length"] == 512
    if unit == "tokens":
        assert values["pack"] and values["batch_size"] * 512 == 1024 * batches[index]
    else:
        assert not values["pack"] and values["batch_size"] == batches[index]
    check_optimizer(values["optimizer"], learning_rate)
    objective = values["objective"]
    assert (objective.num_timesteps, objective.pairing) == (50, "coupled")
    assert (objective.weighting, objective.label_smoothing) == ("linear", 0.0)
    assert (values["dtype"], values["dropout_rate"], values["seed"]) == ("bfloat16", 0.1, 42)
    get_task(values["task"])
    shape = shape_of(values["initial_checkpoint"])
    assert shape.num_parameters() == PARAMETERS[size]
    # On eight devices every large matrix of a sharded size is split eight ways; nothing is made.
    devices = jax.sharding.AbstractMesh(values["mesh"].shape(8), ("data", "fsdp", "tensor"))
    shapes = abstract_parameters(shape)
    shardings = parameter_shardings(logical_axes(shape), devices, shapes=shapes)
    ways = 8 if size in ("xl", "xxl") else 1
    total = sum(
        leaf.size // _parts(sharding)
        for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings))
    )
    assert total == pytest.approx(PARAMETERS[size] / ways, rel=2e-3)


def _parts(sharding: jax.sharding.NamedSharding) -> int:
    parts = 1
    for entry in sharding.spec:
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            parts *= sharding.mesh.shape[axis]
    return parts
