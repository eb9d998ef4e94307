"""What a right configuration does: precedence, scopes, conversion, its record, gin's meaning."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path

import gin
import pytest

from dlm_jax import config
from dlm_jax.errors import UserError

FULL = """include 'base.gin'
TASK = 'reviews'
MODEL = @Model()
train.task = %TASK
train.model = %MODEL
train.optimizer = @fast/Momentum()
train.evaluators = [@Accuracy(), @b/Accuracy()]
train.metric = @exact
train.rates = {'a': 0.5, 'b': %HALF}
train.colour = 'BLUE'
train.folder = 'out'
train.extra = ({'deep': [%TASK, @c/Model()]}, None, -1, 1e-08, 'it\\'s "q"', %LONG)
LONG = 'a long text that has to be cut somewhere, because it does not fit on a line, # and a sign'
MODEL/Model.width = 4
c/Model.width = 2
exact.threshold = 0.25
Momentum.betas = [0.8, 0.9]
fast/Momentum.learning_rate = 1
b/Accuracy.sizes = [1, 2]
"""
BASE = "HALF = 0.5\nTASK = %gin.REQUIRED\ntrain.steps = 3\nunused = 1  # optional: for other runs\n"


def load(table, files=("run.gin",), bindings=(), **arguments):
    return config.load(files, bindings, "train", table, supplied=("run_dir",), **arguments)


@pytest.fixture
def full(table, write):
    write({"run.gin": FULL, "base.gin": BASE})
    return load(table, bindings=["train.steps=7", "b/Accuracy.sizes=[3]"])


def test_arguments_are_built(full):
    built = full.call(run_dir="r")
    assert built["run_dir"] == "r"
    assert built["task"] == "reviews"
    assert built["steps"] == 7
    assert built["model"].width == 4
    assert dataclasses.astuple(built["optimizer"]) == (1, "constant", (0.8, 0.9), 0.9)
    assert [item.sizes for item in built["evaluators"]] == [(), (3,)]
    assert built["metric"](["x"]) == {"targets": ["x"], "threshold": 0.25}
    assert built["metric"](["x"], threshold=1.0)["threshold"] == 1.0
    assert built["metric"](["x"], 2.0)["threshold"] == 2.0
    assert built["rates"] == {"a": 0.5, "b": 0.5}
    assert built["colour"].name == "BLUE"
    assert built["folder"] == Path("out")
    assert built["verbose"] is False
    assert built["extra"][0]["deep"][1].width == 2
    assert isinstance(built["optimizer"].betas, tuple)


def test_single_values(full):
    assert full.value("TASK") == full.value("train.task") == "reviews"
    assert full.value("train.rates") == {"a": 0.5, "b": 0.5}
    assert full.value("b/Accuracy.sizes") == [3]
    with pytest.raises(KeyError):
        full.value("unused")


def test_arguments_of_the_call_win(full):
    assert full.call(run_dir="r", steps=1)["steps"] == 1


def test_nothing_mutable_is_shared_between_calls(full):
    first = full.call(run_dir="r")
    first["rates"]["a"] = 9
    assert full.call(run_dir="r")["rates"]["a"] == 0.5


def test_record_loads_to_the_same(full, table, write):
    text = full.text()
    write({"config.gin": text})
    again = load(table, files=["config.gin"])
    assert again.values() == full.values()
    one, two = full.call(run_dir="r"), again.call(run_dir="r")
    assert {k: v for k, v in one.items() if k != "metric"} == {
        k: v for k, v in two.items() if k != "metric"
    }
    write({"config2.gin": again.text()})
    assert load(table, files=["config2.gin"]).values() == full.values()


def test_record_says_where_each_value_comes_from(full):
    lines = full.text().splitlines()
    assert "TASK = 'reviews'  # run.gin:2, instead of base.gin:2" in lines
    assert "HALF = 0.5  # base.gin:1" in lines
    assert "train.steps = 7  # command line (--gin.train.steps), instead of base.gin:3" in lines
    assert "b/Accuracy.sizes = [3]  # command line (--gin.b/Accuracy.sizes), instead of " in (
        full.text()
    )
    assert "#   train.verbose = False" in lines
    assert not any(line.startswith("unused") for line in lines)


def test_record_in_a_run_folder_keeps_earlier_ones(full, table, tmp_path):
    path = config.record(full, tmp_path / "run")
    assert path == tmp_path / "run/config.gin"
    assert path.read_text() == full.text()
    config.record(full, tmp_path / "run")
    assert [file.name for file in path.parent.iterdir()] == ["config.gin"]
    other = load(table, bindings=["train.steps=8"])
    config.record(other, tmp_path / "run")
    assert path.read_text() == other.text()
    assert (tmp_path / "run/config.1.gin").read_text() == full.text()
    assert len(list(path.parent.iterdir())) == 2


def test_a_record_is_kept_where_files_cannot_be_linked(full, table, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(95, "Operation not supported")

    path = config.record(full, tmp_path)
    monkeypatch.setattr("os.link", refuse)
    config.record(load(table, bindings=["train.steps=8"]), tmp_path)
    assert path.with_name("config.1.gin").read_text() == full.text()
    assert "train.steps = 8" in path.read_text()


@pytest.mark.parametrize(
    ("files", "bindings", "steps"),
    [
        (["one.gin"], [], 1),
        (["one.gin", "two.gin"], [], 2),
        (["two.gin", "one.gin"], [], 1),
        (["both.gin"], [], 3),
        (["one.gin", "two.gin"], ["STEPS=4"], 4),
        (["one.gin", "two.gin"], ["STEPS=4", "STEPS=5"], 5),
        (["one.gin"], ["train.steps=6"], 6),
    ],
)
def test_later_wins(files, bindings, steps, table, write):
    use = "train.steps = %STEPS\ntrain.task = 't'\n"
    write(
        {
            "one.gin": f"STEPS = 1\n{use}",
            "two.gin": f"STEPS = 2\n{use}",
            "both.gin": "include 'one.gin'\ninclude 'two.gin'\nSTEPS = 3\n",
        }
    )
    assert load(table, files, bindings).call(run_dir="r")["steps"] == steps


def test_files_are_found_beside_the_includer_here_and_on_the_search_path(table, write, tmp_path):
    write(
        {
            "else/where/run.gin": "include 'near.gin'\ninclude 'far.gin'\n",
            "else/where/near.gin": "train.task = 'near'\n",
            "library/far.gin": "train.steps = 5\n",
        }
    )
    loaded = load(table, ["where/run.gin"], search_paths=["else", tmp_path / "library"])
    assert loaded.values() == {"train.task": "'near'", "train.steps": "5"}
    with pytest.raises(UserError, match="where/run.gin names a file that does not exist"):
        load(table, ["where/run.gin"])


def test_installed_files_are_found_from_anywhere(write):
    write({})
    assert config.imported_modules("runs/common.gin") == []


def test_what_another_entry_uses_is_in_use_but_need_not_be_complete(table, write):
    write(
        {
            "run.gin": "train.task = 't'\nevaluate.task = %TASK\nTASK = %gin.REQUIRED\n"
            "evaluate.metrics = [@exact]\nexact.threshold = 0.1\n"
        }
    )
    with pytest.raises(UserError, match="evaluate.task = %TASK .* binds evaluate, which train"):
        load(table)
    loaded = load(table, other_entries=["evaluate", "train"])
    assert loaded.call(run_dir="r")["task"] == "t"
    assert loaded.values()["exact.threshold"] == "0.1"
    with pytest.raises(UserError, match=r"TASK \(run.gin:3\) is required"):
        config.load(
            ["run.gin"], [], "evaluate", table, supplied=["run_dir"], other_entries=["train"]
        )
    with pytest.raises(UserError, match="evaluate.task .* takes str or None"):
        load(table, bindings=["TASK=5"], other_entries=["evaluate"])


def test_defaults_of_a_replaced_part_may_stay_but_not_be_set_anew(table, write):
    write(
        {
            "base.gin": "RATE = 0.5\ntrain.task = 't'\ntrain.optimizer = @Sgd()\n"
            "Sgd.learning_rate = %RATE\n",
            "run.gin": "include 'base.gin'\ntrain.optimizer = @Momentum()\n",
            "late.gin": "include 'run.gin'\nSgd.schedule = 'cosine'\n",
        }
    )
    loaded = load(table)
    assert loaded.values() == {"train.task": "'t'", "train.optimizer": "@Momentum()"}
    with pytest.raises(UserError, match=r"^RATE = 3 \(command line\) sets a macro that nothing"):
        load(table, bindings=["RATE=3"])
    with pytest.raises(
        UserError, match=r"^Sgd.schedule = 'cosine' \(late.gin:2\) binds Sgd, which"
    ):
        load(table, ["late.gin"])


def test_modules_are_imported_and_may_register_configurables(table, write, tmp_path, monkeypatch):
    write(
        {
            "my_parts.py": "import gin\n@gin.register\ndef double_it(value: int) -> int:\n"
            "  return 2 * value\ngin.constant('my_parts.SEVEN', 7)\n",
            "run.gin": "import my_parts\ntrain.task = 't'\ntrain.steps = @double_it()\n"
            "my_parts.double_it.value = %SEVEN\n",
        }
    )
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load(table)
    assert loaded.call(run_dir="r")["steps"] == 14
    write({"again.gin": loaded.text()})
    assert load(table, ["again.gin"]).call(run_dir="r")["steps"] == 14
    with pytest.raises(UserError, match=r"^double_it.value = .x. .* is a str, and value takes int"):
        load(table, bindings=["double_it.value='x'"])
    with pytest.raises(UserError, match="did you mean double_it"):
        load(table, bindings=["double_its.value=1"])


PARITY = {
    "scopes are inherited": """
        top.a = @s/node()
        node.x = @leaf()
        leaf.v = 1
        s/leaf.v = 2
    """,
    "a scope replaces the one around it": """
        top.a = @s/node()
        node.x = @t/leaf()
        leaf.v = 1
        s/leaf.v = 2  # optional
        t/leaf.w = 3
    """,
    "nested scopes": """
        top.a = @s/t/leaf()
        leaf.v = 1
        s/leaf.v = 2
        s/t/leaf.w = 3
        t/leaf.w = 4  # optional
    """,
    "a macro is a scope": """
        M = @leaf()
        top.a = %M
        top.b = @leaf()
        M/leaf.v = 5
        leaf.w = 6
    """,
    "macro inside a scope": """
        M = @leaf()
        top.a = @s/node()
        node.x = %M
        s/leaf.v = 2  # optional
        leaf.v = 1
        M/leaf.w = 9
    """,
    "containers": """
        top.a = [@leaf(), {'k': (@s/leaf(), 2)}]
        leaf.v = 1
        s/leaf.v = 2
    """,
    "blocks": """
        leaf:
          v = 1
          w = 2
        top.a = @leaf()
        top.b = (-1.5e-3, "it's", 'two ' 'parts', {})
    """,
}


@pytest.mark.parametrize("name", PARITY)
def test_bindings_mean_what_they_mean_to_gin(name, write):
    def leaf(v=None, w=None):
        return ("leaf", v, w)

    def node(x=None):
        return ("node", x)

    def top(a=None, b=None):
        return ("top", a, b)

    text = textwrap.dedent(PARITY[name])
    gin.clear_config()
    with gin.unlock_config():
        gin.enter_interactive_mode()
        functions = [gin.external_configurable(f, module="parity") for f in (leaf, node, top)]
        gin.exit_interactive_mode()
    gin.parse_config(text)
    expected = functions[2]()
    gin.clear_config()
    write({"run.gin": text})
    table = {"leaf": leaf, "node": node, "top": top}
    assert config.load(["run.gin"], [], "top", table).call() == expected
