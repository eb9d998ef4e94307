"""Broken configurations and the exact sentence that each one gives."""

from __future__ import annotations

import pytest

from dlm_jax import config
from dlm_jax.errors import UserError

GOOD = """TASK = 'reviews'
STEPS = 10
train.task = %TASK
train.steps = %STEPS
train.model = @small/Model()
Model.width = 4
small/Model.depth = 3
"""

# name: (what follows GOOD in run.gin, bindings of the command line, sentence)
CASES: dict[str, tuple[str, list[str], str]] = {
    "unknown configurable": (
        "Modle.width = 8",
        [],
        "Modle.width = 8 (run.gin:8) names no configurable (did you mean Model?)",
    ),
    "unknown configurable, nothing near": (
        "Zebra.width = 8",
        [],
        "Zebra.width = 8 (run.gin:8) names no configurable",
    ),
    "unknown reference": (
        "train.optimizer = @Sdg()",
        [],
        "train.optimizer = @Sdg() (run.gin:8) refers to Sdg, which is no configurable "
        "(did you mean Sgd?)",
    ),
    "unknown parameter": (
        "train.step = 5",
        [],
        "train.step = 5 (run.gin:8) sets no parameter of train (did you mean steps?)",
    ),
    "unknown parameter in a block": (
        "Model:\n  rate = 0.5\n  widht = 8",
        [],
        "Model.widht = 8 (run.gin:10) sets no parameter of Model (did you mean width?)",
    ),
    "unknown macro": (
        "train.verbose = %VERBOSE",
        [],
        "train.verbose = %VERBOSE (run.gin:8) uses macro VERBOSE, which is not set",
    ),
    "misspelled use of a macro": (
        "Sgd.learning_rate = %STEP\ntrain.optimizer = @Sgd()",
        [],
        "Sgd.learning_rate = %STEP (run.gin:8) uses macro STEP, which is not set "
        "(did you mean STEPS?)",
    ),
    "misspelled macro on the command line": (
        "",
        ["STEP=9"],
        "STEP = 9 (command line) sets a macro that nothing uses (did you mean STEPS?)",
    ),
    "unused macro in a file": (
        "WIDTH = 8",
        [],
        "WIDTH = 8 (run.gin:8) sets a macro that nothing uses",
    ),
    "misspelled scope": (
        "smal/Model.rate = 0.5",
        [],
        "smal/Model.rate = 0.5 (run.gin:8) is in scope smal, which is never entered "
        "(did you mean small?)",
    ),
    "misspelled scope on the command line": (
        "",
        ["samll/Model.rate=0.5"],
        "samll/Model.rate = 0.5 (command line) is in scope samll, which is never entered "
        "(did you mean small?)",
    ),
    "scope of another configurable": (
        "small/Sgd.learning_rate = 1.0\ntrain.optimizer = @Sgd()",
        [],
        "small/Sgd.learning_rate = 1.0 (run.gin:8) is in scope small, in which Sgd is never used",
    ),
    "unused binding": (
        "Sgd.learning_rate = 1.0",
        [],
        "Sgd.learning_rate = 1.0 (run.gin:8) binds Sgd, which train does not use",
    ),
    "required macro": (
        "train.colour = %COLOUR\nCOLOUR = %gin.REQUIRED",
        [],
        "COLOUR (run.gin:9) is required and has no value: give it with --gin.COLOUR=VALUE",
    ),
    "required parameter": (
        "train.colour = %gin.REQUIRED",
        [],
        "train.colour (run.gin:8) is required and has no value: give it with "
        "--gin.train.colour=VALUE",
    ),
    "constructor lacks an argument": (
        "train.metric = @exact\ntrain.extra = @make_model()",
        [],
        "train.extra = @make_model() (run.gin:9) needs make_model.width, which is not set",
    ),
    "str for int": (
        "",
        ["train.steps='5'"],
        "train.steps = '5' (command line) is a str, and steps takes int "
        "(did you mean 5, without quotes?)",
    ),
    "str for int through a macro": (
        "",
        ["STEPS='many'"],
        "STEPS = 'many' (command line) is a str, and train.steps (run.gin:4) takes int",
    ),
    "float for int": (
        "",
        ["STEPS=1e3"],
        "STEPS = 1000.0 (command line) is a float, and train.steps (run.gin:4) takes int "
        "(did you mean 1000?)",
    ),
    "bool for int": (
        "",
        ["STEPS=True"],
        "STEPS = True (command line) is a bool, and train.steps (run.gin:4) takes int",
    ),
    "int for bool": (
        "train.verbose = 1",
        [],
        "train.verbose = 1 (run.gin:8) is an int, and verbose takes bool",
    ),
    "int for str": (
        "",
        ["TASK=3"],
        "TASK = 3 (command line) is an int, and train.task (run.gin:3) takes str",
    ),
    "None for str": (
        "",
        ["TASK=None"],
        "TASK = None (command line) is None, and train.task (run.gin:3) takes str",
    ),
    "str for float or None": (
        "Model.rate = 'high'",
        [],
        "Model.rate = 'high' (run.gin:8) is a str, and rate takes float or None",
    ),
    "misspelled choice": (
        "train.optimizer = @Sgd()\nSgd.schedule = 'cosin'",
        [],
        "Sgd.schedule = 'cosin' (run.gin:9) is a str, and schedule takes one of 'constant', "
        "'cosine' (did you mean cosine?)",
    ),
    "misspelled enum": (
        "train.colour = 'BLEU'",
        [],
        "train.colour = 'BLEU' (run.gin:8) is a str, and colour takes one of 'RED', 'BLUE' "
        "(did you mean BLUE?)",
    ),
    "pair of the wrong length": (
        "train.optimizer = @Sgd()\nSgd.betas = (0.9, 0.99, 0.999)",
        [],
        "Sgd.betas = (0.9, 0.99, 0.999) (run.gin:9) is a tuple, and betas takes (float, float)",
    ),
    "wrong item in a list": (
        "train.evaluators = [@Accuracy()]\nAccuracy.sizes = [1, 2.5]",
        [],
        "Accuracy.sizes = [1, 2.5] (run.gin:9) is a list, and sizes takes a list of int",
    ),
    "wrong value in a dict": (
        "train.rates = {'a': 'half'}",
        [],
        "train.rates = {'a': 'half'} (run.gin:8) is a dict, and rates takes a dict or None",
    ),
    "literal for a dataclass": (
        "train.optimizer = 'Sgd'",
        [],
        "train.optimizer = 'Sgd' (run.gin:8) is a str, and optimizer takes @Sgd()",
    ),
    "reference without brackets": (
        "train.optimizer = @Sgd",
        [],
        "train.optimizer = @Sgd (run.gin:8) is a reference without (), and optimizer takes @Sgd() "
        "(did you mean @Sgd()?)",
    ),
    "reference of another type": (
        "train.optimizer = @Model()",
        [],
        "train.optimizer = @Model() (run.gin:8) is of type Model, and optimizer takes @Sgd()",
    ),
    "literal for a function": (
        "train.metric = 'exact'",
        [],
        "train.metric = 'exact' (run.gin:8) is a str, and metric takes a reference such as @name "
        "or None",
    ),
    "circle of macros": (
        "A = %B\nB = %A\ntrain.extra = %A",
        [],
        "B = %A (run.gin:9) makes a circle: %A would be its own value",
    ),
    "circle of references": (
        "Sgd.learning_rate = @Sgd()\ntrain.optimizer = @Sgd()",
        [],
        "Sgd.learning_rate = @Sgd() (run.gin:8) makes a circle: Sgd would be built from itself",
    ),
    "macro set twice in one file": (
        "STEPS = 20",
        [],
        "STEPS = 20 (run.gin:8) sets a macro that the same file has already set on line 2",
    ),
    "parameter set twice in one file": (
        "Model.width = 6",
        [],
        "Model.width = 6 (run.gin:8) sets a parameter that the same file has already set on line 6",
    ),
    "missing include": (
        "include 'bass.gin'",
        [],
        "include 'bass.gin' (run.gin:8) names a file that does not exist (did you mean base.gin?)",
    ),
    "include circle": (
        "include 'loop.gin'",
        [],
        "include 'run.gin' (loop.gin:1) makes a circle: run.gin includes loop.gin includes run.gin",
    ),
    "include that overwrites what stands above it": (
        "train.verbose = True\ninclude 'base.gin'",
        [],
        "train.verbose = True (run.gin:8) is overwritten by base.gin:1, which is included after "
        "it: move include 'base.gin' (run.gin:9) to the top of the file",
    ),
    "include on the command line": (
        "",
        ["include 'base.gin'"],
        "include 'base.gin' (command line) cannot be a binding: give the file with "
        "--gin_file=base.gin",
    ),
    "unquoted text on the command line": (
        "",
        ["TASK=reviews"],
        "TASK = reviews (command line) is not a value; a text needs quotes: write "
        "--gin.TASK=\"'reviews'\"",
    ),
    "unquoted path on the command line": (
        "",
        ["train.folder=/data/x"],
        "train.folder = /data/x (command line) is not a value; a text needs quotes: write "
        "--gin.train.folder=\"'/data/x'\"",
    ),
    "unquoted source on the command line": (
        "",
        ["TASK=hf:org/name"],
        "TASK = hf:org/name (command line) is not a value; a text needs quotes: write "
        "--gin.TASK=\"'hf:org/name'\"",
    ),
    "unquoted text in a file": (
        "train.extra = reviews  # which",
        [],
        "train.extra = reviews (run.gin:8) is not a value; a text needs quotes: write "
        "train.extra = 'reviews'",
    ),
    "no value": ("", ["TASK="], "TASK (command line) has no value after the equals sign"),
    "true for True": (
        "train.verbose = true",
        [],
        "train.verbose = true (run.gin:8) is not spelled as in Python: write train.verbose = True",
    ),
    "null for None": (
        "",
        ["train.model=null"],
        "train.model = null (command line) is not spelled as in Python: write "
        "--gin.train.model=None",
    ),
    "arithmetic": (
        "train.extra = 10 * 2",
        [],
        "train.extra = 10 * 2 (run.gin:8) is an expression, and gin computes nothing: write the "
        "resulting number",
    ),
    "open bracket": (
        "\n# sizes\ntrain.extra = [1,\n  2\n",
        [],
        "train.extra = [1, (run.gin:10) opens a bracket or quote that is never closed",
    ),
    "not a statement": (
        "train.extra 5",
        [],
        "train.extra 5 (run.gin:8) is not a gin statement: couldn't parse statement, expected "
        "':' or '='",
    ),
    "not a name": (
        "3steps = 5",
        [],
        "3steps = 5 (run.gin:8) does not set a name that gin can read, such as train.steps",
    ),
    "dynamic registration": (
        "from __gin__ import dynamic_registration",
        [],
        "from __gin__ import dynamic_registration (run.gin:8) is not needed: configurables have "
        "fixed names, so remove the line",
    ),
    "missing module": (
        "import no_such_module",
        [],
        "import no_such_module (run.gin:8) finds no module of that name: start in its folder, or "
        "give the file with --import=FOLDER/MODULE.py",
    ),
    "module that raises": (
        "import raises_on_import",
        [],
        "import raises_on_import (run.gin:8) fails with RuntimeError: no such corpus",
    ),
}

NEIGHBOURS = {"base.gin": "train.verbose = False\n", "loop.gin": "include 'run.gin'\n"}


def sentence(table, files=("run.gin",), bindings=(), **arguments):
    with pytest.raises(UserError) as caught:
        config.load(files, bindings, "train", table, supplied=("run_dir",), **arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_each_mistake_has_its_sentence(name, table, write, tmp_path, monkeypatch):
    addition, bindings, expected = CASES[name]
    write({"run.gin": GOOD + addition, **NEIGHBOURS})
    write({"raises_on_import.py": "raise RuntimeError('no such\\ncorpus')\n"})
    monkeypatch.syspath_prepend(tmp_path)
    found = sentence(table, bindings=bindings)
    assert found == expected
    assert "\n" not in found


def test_what_the_mistakes_are_made_in_is_itself_right(table, write):
    write({"run.gin": GOOD})
    loaded = config.load(["run.gin"], [], "train", table, supplied=("run_dir",))
    assert loaded.call(run_dir="r")["model"].depth == 3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train.step = 5", "Zebra.width = 8"),
        ("Zebra.width = 8", "train.step = 5"),
        ("train.verbose = 1", "smal/Model.rate = 0.5"),
        ("WIDTH = 8", "train.verbose = 1"),
        ("train.extra = %NO", "train.colour = %gin.REQUIRED"),
        ("train.colour = %gin.REQUIRED", "train.extra = @make_model()"),
        ("train.extra = @make_model()", "train.colour = %gin.REQUIRED"),
    ],
)
def test_of_two_mistakes_the_first_in_file_order_is_named(first, second, table, write):
    write({"run.gin": GOOD + f"{first}\n{second}\n"})
    assert "(run.gin:8)" in sentence(table)


def test_the_blame_is_where_the_value_stands(table, write):
    write({"run.gin": "STEPS = 'x'\ntrain.task = 't'\nZebra.x = 1\ntrain.steps = %STEPS\n"})
    assert sentence(table).startswith("STEPS = 'x' (run.gin:1)")


def test_missing_file_names_the_nearest(table, write):
    write({"runs/finetune.gin": ""})
    assert sentence(table, files=["runs/finetun.gin"]) == (
        "--gin_file=runs/finetun.gin names a file that does not exist "
        "(did you mean runs/finetune.gin?)"
    )


def test_file_that_is_not_text(table, write, tmp_path):
    write({})
    (tmp_path / "run.gin").write_bytes(b"\xff\xfe\x00")
    assert sentence(table).startswith("gin file run.gin cannot be read as UTF-8 text: ")


def test_missing_argument_of_the_entry(table):
    assert sentence(table, files=[]) == (
        "train.task is not set, and train needs it: give it with --gin.train.task=VALUE"
    )


def test_constructor_that_refuses_is_blamed_on_its_binding(table, write):
    write({"run.gin": GOOD})
    loaded = config.load(["run.gin"], ["Model.width=5"], "train", table, supplied=("run_dir",))
    with pytest.raises(UserError) as caught:
        loaded.call(run_dir="r")
    assert str(caught.value) == (
        "train.model = @small/Model() (run.gin:5) cannot be built: Model.width=5 is odd"
    )


def test_names_are_checked_without_importing_what_they_stand_for(table, write):
    write({"run.gin": "Zebra.x = 1\ntrain.task = 'a'\n"})
    absent = {"train": "no_such_module:train"}
    found = sentence(absent)
    assert found == "Zebra.x = 1 (run.gin:1) names no configurable"
