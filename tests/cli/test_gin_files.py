"""Every gin file of the package can be read, and sets only what exists."""

from __future__ import annotations

from pathlib import Path

import dlm_jax.gin_configs
import pytest

from dlm_jax import config
from dlm_jax.cli.configurables import CONFIGURABLES, ENTRIES
from dlm_jax.config.files import read_program
from dlm_jax.config.registry import Registry
from dlm_jax.config.signatures import signature
from dlm_jax.config.values import Macro, Reference, leaves

FOLDER = Path(next(iter(dlm_jax.gin_configs.__path__)))
FILES = sorted(file.relative_to(FOLDER).as_posix() for file in FOLDER.rglob("*.gin"))

EXAMPLES = [name for name in FILES if name.startswith("examples/")]


@pytest.mark.parametrize("name", FILES)
def test_shipped_file(name):
    program = read_program([name], [], ())
    registry = Registry(CONFIGURABLES, program.imports)
    assert program.bindings
    for binding in program.winners():
        for leaf in leaves(binding.value):
            if isinstance(leaf, Reference):
                assert leaf.name in CONFIGURABLES, binding
            elif isinstance(leaf, Macro) and name in EXAMPLES:
                assert leaf.name == "gin.REQUIRED" or program.macro(leaf.name), binding
        if not binding.key.is_macro:
            target = registry.target(binding.key.configurable)
            assert binding.key.parameter in signature(target).annotations, binding


@pytest.mark.parametrize("name", EXAMPLES)
def test_shipped_example_is_complete_and_its_record_loads_to_the_same(name, tmp_path):
    bound = {key.configurable for key in read_program([name], [], ()).bindings}
    entry = next(name for name in ENTRIES if name in bound)
    arguments = {"other_entries": ENTRIES, "supplied": ["run_dir"], "importer": str}
    loaded = config.load([name], [], entry, CONFIGURABLES, **arguments)
    record = config.record(loaded, tmp_path)
    again = config.load([record], [], entry, CONFIGURABLES, **arguments)
    assert again.values() == loaded.values()
