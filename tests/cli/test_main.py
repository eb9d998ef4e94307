"""The frame of the command line: verbs, flags, exit codes, and what is not imported."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from dlm_jax import cli
from dlm_jax.cli import configurables, flags
from dlm_jax.errors import RunError, UserError

HEAVY = ("jax", "flax", "numpy", "tensorflow", "seqio", "torch", "matplotlib", "gin", "argparse")


def run(capsys, *arguments):
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    """The one line that a mistake prints."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("dlm: error: ") and err.count("\n") == 1
    return err.removeprefix("dlm: error: ").rstrip("\n")


def python(code, *arguments, **options):
    """Runs Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",), ("--debug",)])
def test_help_names_every_verb(arguments, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(
        cli.VERBS
    )


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    assert f"usage: dlm {verb}" in capsys.readouterr().out


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, "dlm_jax 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "trian is no verb (did you mean train?); the verbs are "),
        (["--gin_file=x"], "--gin_file=x is a flag before any verb; the verbs are "),
        (["train"], "dlm train: the following arguments are required: --run_dir"),
        (["train", "--run-dir=x"], "dlm train has no flag --run-dir (did you mean --run_dir?)"),
        (["train", "--run=x"], "dlm train has no flag --run"),
        (["train", "--run_dir=no_such"], "dlm train needs --gin_file: no_such has no config.gin"),
        (["train", "--run_dir=x", "--gin.TASK"], "--gin.TASK has no value: write --gin.TASK=VALUE"),
        (["train", "--run_dir=x", "y"], "dlm train: y belongs to no flag; a text with spaces"),
        (["train", "--run_dir="], "--run_dir is empty: name a folder"),
        (["train", "--run_dir=gs://b/run"], "--run_dir=gs://b/run is no folder of this machine"),
        (["export", "--run_dir=x", "--output=s3://b/c"], "--output=s3://b/c is no folder of"),
        (["train", "--run_dir"], "dlm train: argument --run_dir: expected one argument"),
        (["eval", "--run_dir=no_such"], "--run_dir=no_such is not a run folder: dlm import"),
        (["tasks", "show"], "dlm tasks show needs the name of a task, and --vocabulary=PATH"),
        (["tasks", "list", "--gin.X=3"], "dlm tasks takes no gin bindings, such as --gin.X=3"),
        (["tasks", "lst"], "dlm tasks: argument action: invalid choice: 'lst'"),
        (["sample", "--run_dir=x"], "dlm sample needs either --prompt"),
        (["sample", "--run_dir=x", "--prompt=a", "--infill=b"], "dlm sample needs either --prompt"),
        (
            ["sample", "--run_dir=x", "--length=0"],
            "dlm sample: argument --length: '0' is no number of",
        ),
        (["sample", "--run_dir=x", "--steps=ten"], "dlm sample: argument --steps: invalid int"),
    ],
)
def test_wrong_flags(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, *arguments).startswith(expected)


def test_debug_adds_the_traceback(capsys):
    code, _, err = run(capsys, "trian", "--debug")
    assert code == 2
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("dlm: error: trian is no verb")


def fake_train(
    run_dir: str, task: str, steps: int = 1, on_ready: Callable[[], None] = lambda: None
) -> SimpleNamespace:
    if task == "fails":
        raise RuntimeError("loss is\nnan")
    if task == "diverges":
        raise RunError("loss was not finite")
    if task == "interrupted":
        raise KeyboardInterrupt
    if task == "refused":
        raise UserError("task refused is for evaluation only")
    on_ready()
    with open(os.path.join(run_dir, "result.json"), "w") as file:
        json.dump({"task": task, "steps": steps}, file)
    return SimpleNamespace(step=steps, seconds=0.5)


def fake_evaluate(run_dir: str, task: str | None = None) -> dict[str, dict[str, float]]:
    fake_train(run_dir, f"evaluation of {task}", on_ready=lambda: None)
    return {"eval/fake": {"nelbo": 2.0, "nelbo_se": 0.25, "n": 4.0}}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = {"train": fake_train, "evaluate": fake_evaluate}
    monkeypatch.setattr(configurables, "CONFIGURABLES", table)
    (tmp_path / "run.gin").write_text("TASK = %gin.REQUIRED\ntrain.task = %TASK\n")
    (tmp_path / "more.gin").write_text("train.steps = 3\n")
    return tmp_path


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    ("task", "code", "last"),
    [
        ("fails", 1, "dlm: failed: RuntimeError: loss is nan"),
        ("diverges", 1, "dlm: failed: loss was not finite"),
        ("interrupted", 130, "dlm: interrupted"),
        ("refused", 2, "dlm: error: task refused is for evaluation only"),
    ],
)
def test_exit_codes(task, code, last, fakes, capsys):
    found, _, err = run(
        capsys, "train", "--run_dir=r", "--gin_file=run.gin", f"--gin.TASK='{task}'"
    )
    assert found == code
    assert err.splitlines()[-1] == last
    # A failure that has a sentence of its own needs no traceback.
    assert ("Traceback" in err) == (task == "fails")


def test_train_is_called_recorded_and_called_again_from_the_record(fakes, capsys):
    first = [
        "--gin_file=run.gin",
        "--gin_file=more.gin",
        "--gin.TASK='a'",
        "--gin_bindings=TASK='b'",
    ]
    assert run(capsys, "train", "--run_dir=r/one", *first)[0] == 0
    assert result(fakes / "r/one") == {"task": "b", "steps": 3}
    text = (fakes / "r/one/config.gin").read_text()
    assert "TASK = 'b'  # command line (--gin.TASK), instead of command line" in text
    assert "train.steps = 3  # more.gin:1" in text
    (fakes / "r/one/result.json").unlink()
    assert run(capsys, "train", "--run_dir=r/one", "--gin.train.steps=4")[0] == 0
    assert result(fakes / "r/one") == {"task": "b", "steps": 4}
    assert (fakes / "r/one/config.1.gin").read_text() == text


def test_wrong_config_leaves_no_run_folder(fakes, capsys):
    message = refused(capsys, "train", "--run_dir=r", "--gin_file=run.gin", "--gin.TASK=reviews")
    assert message.endswith("a text needs quotes: write --gin.TASK=\"'reviews'\"")
    message = refused(capsys, "train", "--run_dir=r", "--gin_file=run.gn")
    assert message == "--gin_file=run.gn names a file that does not exist (did you mean run.gin?)"
    assert sorted(file.name for file in fakes.iterdir()) == ["more.gin", "run.gin"]


def test_eval_imports_the_modules_of_the_run(fakes, capsys, monkeypatch):
    (fakes / "my_task_module.py").write_text("open('imported', 'a').write('x')\n")
    (fakes / "r").mkdir()
    (fakes / "r/config.gin").write_text("import my_task_module\nZebra.x = 1\n")
    (fakes / "r/model.json").write_text("{}")
    (fakes / "e.gin").write_text("evaluate.task = 't'\n")
    monkeypatch.delitem(sys.modules, "my_task_module", raising=False)
    assert run(capsys, "eval", "--run_dir=r", "--gin_file=e.gin")[0] == 0
    assert result(fakes / "r")["task"] == "evaluation of t"
    assert (fakes / "imported").read_text() == "x"
    assert "import my_task_module  # command line" in (fakes / "r/eval.gin").read_text()
    assert (fakes / "r/config.gin").read_text().endswith("Zebra.x = 1\n")


@pytest.mark.parametrize(
    ("flag", "text", "expected"),
    [
        ("here/parts_a.py", "", None),
        ("parts_b", "", "--import"),
        ("here/parts_c.py", "raise KeyError('corpus')", "KeyError: 'corpus'"),
        ("here/parts_d.py", "import not_installed_at_all", "not_installed_at_all"),
        ("here/parts_e.py", "def broken(:", "SyntaxError"),
        ("here/part_a.py", None, "--import=here/part_a.py names a file that does not exist "),
        ("a file.txt", None, "is neither the name of a module nor a .py file"),
        ("here/json.py", "", "--import=here/json.py has the name of another module, so rename"),
        ("here/my-parts.py", "", "cannot be imported: my-parts is no name for a module"),
    ],
)
def test_import_flag(flag, text, expected, fakes, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (fakes / "here").mkdir()
    (fakes / "here/parts_a.py").write_text("")
    if text is not None and flag.endswith(".py"):
        (fakes / flag).write_text(text)
    arguments = ["train", "--run_dir=r", "--gin_file=run.gin", "--gin.TASK='a'", f"--import={flag}"]
    if expected is None:
        assert run(capsys, *arguments)[0] == 0
        assert "import parts_a  # command line" in (fakes / "r/config.gin").read_text()
    elif flag == "parts_b":
        assert refused(capsys, *arguments).startswith("import parts_b (command line) ")
    else:
        assert expected in refused(capsys, *arguments)


def test_every_name_of_the_table_stands_for_something():
    for name, entry in configurables.CONFIGURABLES.items():
        module, _, attribute = entry.partition(":")
        target = getattr(importlib.import_module(module), attribute)
        assert callable(target) and target.__name__ == attribute, name
    assert set(configurables.ENTRIES) <= set(configurables.CONFIGURABLES)


def test_help_imports_nothing_heavy():
    done = python(
        f"""
        import sys
        from dlm_jax import cli
        code = cli.main(["--help"])
        print([name for name in {HEAVY} if name in sys.modules])
        sys.exit(code)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_wrong_names_in_a_config_import_neither_jax_nor_tensorflow(tmp_path):
    (tmp_path / "run.gin").write_text("Zebra.x = 1\ntrain.total_steps = 'x'\n")
    done = python(
        """
        import sys
        from dlm_jax import cli
        code = cli.main(["train", "--run_dir=r", "--gin_file=run.gin"])
        assert not {"jax", "tensorflow", "seqio"} & set(sys.modules)
        sys.exit(code)
        """,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == "dlm: error: Zebra.x = 1 (run.gin:1) names no configurable\n"


def test_wrong_types_in_a_config_import_no_tensorflow(tmp_path):
    done = python(
        """
        import sys
        from dlm_jax import cli
        code = cli.main(["train", "--run_dir=r", "--gin.train.total_steps='x'"])
        assert not {"tensorflow", "seqio", "torch"} & set(sys.modules)
        sys.exit(code)
        """,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "dlm: error: train.total_steps = 'x' (command line) is a str, and total_steps takes int\n"
    )


def test_installed_command_and_its_exit_code():
    command = os.path.join(os.path.dirname(sys.executable), "dlm")
    done = subprocess.run([command, "sampel"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("dlm: error: sampel is no verb (did you mean sample?)")


def test_interrupt_from_outside(tmp_path):
    code = """
        import signal, sys, time
        from dlm_jax import cli
        from dlm_jax.cli import configurables
        def train(run_dir, on_ready=None):
            print("ready", flush=True)
            time.sleep(60)
        configurables.CONFIGURABLES = {"train": train, "evaluate": train}
        # A background job of a shell starts with interrupts ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(cli.main(["train", "--run_dir=r", "--gin_file=run.gin"]))
    """
    (tmp_path / "run.gin").write_text("")
    (tmp_path / "r").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "dlm: interrupted\n"


def test_flags_of_gin_keep_their_order():
    parsed = flags.parse(
        "train", "", flags.add_gin, ["--gin.a/F.x=1", "--gin_bindings=y = 2", "--gin.Z='p=q'"]
    )
    assert parsed.gin_bindings == ["a/F.x=1", "y = 2", "Z='p=q'"]
