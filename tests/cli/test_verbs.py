"""The thin verbs, on a model of a few thousand parameters."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import dlm_jax
from dlm_jax import cli
from dlm_jax.checkpoints.huggingface import export_folder
from dlm_jax.data.vocabularies import CharacterVocabulary
from dlm_jax.models import encoder
from dlm_jax.models.config import SIZES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder with a character vocabulary."""
    vocabulary = CharacterVocabulary("abcdefghijklmnopqrstuvwxyz ")
    config = dataclasses.replace(
        SIZES["test"], vocab_size=vocabulary.size, pad_id=vocabulary.pad_id
    )
    parameters = encoder.parameters(encoder.Encoder(config, rngs=nnx.Rngs(0)))
    return export_folder(config, parameters, vocabulary, tmp_path_factory.mktemp("hf") / "model")


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_import_inspect_export_bring_the_same_weights_back(folder, tmp_path, capsys):
    imported, exported = tmp_path / "run", tmp_path / "exported"
    code, out, err = run(capsys, "import", folder, f"--run_dir={imported}")
    assert (code, out.split()[1]) == (0, "parameters"), err
    code, out, _ = run(capsys, "inspect", imported)
    assert code == 0
    assert "checkpoints  0\n" in out
    assert "embed_dim               32" in out
    code, from_folder, _ = run(capsys, "inspect", folder)
    assert code == 0
    assert from_folder.split("\nconfig\n")[1] == out.split("\nconfig\n")[1]
    rows = from_folder.split("\nparameters\n")[1].splitlines()
    assert "  layers/mlp/up/kernel             float32[2, 32, 64]" in rows
    code, out, err = run(capsys, "export", f"--run_dir={imported}", f"--output={exported}")
    assert code == 0, err
    for name in ("model.safetensors", "config.json", "vocabulary.json"):
        assert (exported / name).read_bytes() == (folder / name).read_bytes()
    code, _, err = run(capsys, "import", folder, f"--run_dir={imported}")
    assert (code, err) == (
        2,
        f"dlm: error: --run_dir={imported} already holds a run: name a new folder\n",
    )


def test_a_pruned_model_gives_the_pieces_that_stay_their_old_logits(folder, tmp_path, capsys):
    text = tmp_path / "corpus.txt"
    text.write_text("a cab\nbad ace\n", encoding="utf-8")
    command = ["prune", folder, f"--run_dir={tmp_path / 'small'}", f"--text={text}"]
    code, out, err = run(capsys, *command)
    assert code == 0, err
    assert out.startswith("11 of 32 token rows, ")
    big, small = dlm_jax.load(folder), dlm_jax.load(tmp_path / "small")
    assert small.vocabulary.alphabet == "abcde "
    assert small.denoiser.config.vocab_size == small.vocabulary.size == 11

    def logits(model):
        ids = [model.vocabulary.bos_id, *model.vocabulary.encode("bad c"), model.vocabulary.mask_id]
        return np.asarray(model.logits([ids]))[0]

    kept = [0, 1, 2, 3, *big.vocabulary.encode("abcde "), big.vocabulary.mask_id]
    np.testing.assert_allclose(logits(small), logits(big)[:, kept], atol=1e-5)
    code, _, err = run(capsys, *command)
    assert (code, err.count("already holds a run")) == (2, 1)
    code, _, err = run(capsys, "prune", folder, f"--run_dir={tmp_path / 'other'}")
    assert (code, err.count("needs a corpus, --task=NAME or --text=FILE, or a depth")) == (2, 1)
    missing = ["prune", folder, f"--run_dir={tmp_path / 'other'}", f"--text={tmp_path / 'none'}"]
    code, _, err = run(capsys, *missing)
    assert (code, err.strip().endswith("cannot be read: No such file or directory")) == (2, True)
    assert not (tmp_path / "other").exists()


def test_a_model_cut_in_depth_is_the_one_whose_file_lacks_the_top_layers(folder, tmp_path, capsys):
    shorter = tmp_path / "shorter"
    shutil.copytree(folder, shorter)
    settings = json.loads((folder / "config.json").read_text())
    settings["num_hidden_layers"] = 1
    (shorter / "config.json").write_text(json.dumps(settings))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: array for name, array in tensors.items() if ".layer.1." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, shorter / "model.safetensors")
    code, out, err = run(capsys, "prune", folder, f"--run_dir={tmp_path / 'small'}", "--layers=1")
    assert code == 0, err
    assert "1 of 2 layers" in out
    small, same = dlm_jax.load(tmp_path / "small"), dlm_jax.load(shorter)
    ids = [[small.vocabulary.bos_id, *small.vocabulary.encode("bad cab")]]
    np.testing.assert_array_equal(small.logits(ids), same.logits(ids))
    code, _, err = run(capsys, "prune", folder, f"--run_dir={tmp_path / 'no'}", "--layers=3")
    assert (code, err) == (2, "dlm: error: 3 layers cannot stay of a model that has 2\n")
    assert not (tmp_path / "no").exists()


def test_a_shipped_task_that_was_not_imported_says_where_it_is():
    code = """
import sys
from dlm_jax.data import tasks
from dlm_jax.errors import UserError

for name in ("bbh_v1.snarks", "sotu_v1.prose", "bbh_v1.no_such"):
    try:
        tasks.get_task(name)
    except UserError as error:
        print(error)
    assert not tasks.list_tasks()
assert not [name for name in sys.modules if name.startswith("dlm_jax.tasks.")]
tasks.import_task_modules(["bbh"])
print(tasks.get_task("bbh_v1.snarks").name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "Unknown task 'bbh_v1.snarks'; it is in bbh: add --import=bbh.",
        "Unknown task 'sotu_v1.prose'; it is in prose: add --import=prose.",
        "Unknown task 'bbh_v1.no_such'; modules of tasks are imported with --import.",
        "bbh_v1.snarks",
    ], done.stderr


@pytest.mark.parametrize("verb", ["import", "inspect"])
def test_source_that_is_not_there(verb, tmp_path, capsys):
    flags = [f"--run_dir={tmp_path / 'run'}"] if verb == "import" else []
    code, out, err = run(capsys, verb, tmp_path / "none", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "run").exists()


TASKS = """
from dlm_jax.data.tasks import register_task

register_task(
    "letters_cli_test.next",
    splits={"train": lambda: [{"a": "abc", "b": "d"}, {"a": "xyz", "b": "end"}]},
    inputs="{a}",
    targets="{b}",
    description="The next letter.",
)
"""


def test_tasks_are_listed_and_shown(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "letter_tasks.py").write_text(TASKS)
    module = f"--import={tmp_path / 'letter_tasks.py'}"
    code, out, err = run(capsys, "tasks", "list", module)
    assert code == 0, err
    row = next(line for line in out.splitlines() if line.startswith("letters_cli_test.next"))
    assert row.endswith("The next letter. [train]")
    vocabulary = f"--vocabulary={folder}"
    code, out, err = run(
        capsys, "tasks", "show", "letters_cli_test.next", vocabulary, module, "-n1"
    )
    assert code == 0, err
    out_of_folder = out
    assert "[0] abc ⟦d " in out
    assert "[1]" not in out
    code, _, err = run(capsys, "tasks", "show", "letters_cli_test.nxt", vocabulary, module)
    assert code == 2
    assert "did you mean letters_cli_test.next?" in err
    show = ["tasks", "show", "letters_cli_test.next", module]
    code, _, err = run(capsys, *show, vocabulary, "-n=0")
    assert (code, err) == (2, "dlm: error: -n is 0, and must be 1 example or more\n")
    assert run(capsys, "import", folder, f"--run_dir={tmp_path / 'run'}")[0] == 0
    assert run(capsys, *show, "-n=1", f"--vocabulary={tmp_path / 'run'}")[:2] == (0, out_of_folder)


def test_tasks_imports_no_tensorflow():
    code = (
        "import sys; from dlm_jax import cli; code = cli.main(['tasks', 'list']); "
        "assert not {'tensorflow', 'jax', 'seqio'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_report_prints_its_path(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    code, out, _ = run(capsys, "report", f"--run_dir={tmp_path / 'run'}")
    assert (code, out) == (0, f"{tmp_path / 'run/report.html'}\n")
    assert (tmp_path / "run/report.html").is_file()
    assert run(capsys, "report", f"--run_dir={tmp_path / 'none'}")[0] == 2


def test_sample_answers_and_fills(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\nx y\n"))
    trace = tmp_path / "trace.html"
    common = [f"--run_dir={folder}", "--steps=2", "--no_special_tokens", f"--trace={trace}"]
    code, out, err = run(capsys, "sample", *common, "--prompt", "-", "--length=3")
    assert (code, err) == (0, f"trace: {trace}\n")
    assert len(out.splitlines()) == 2
    page = trace.read_text()
    assert '"title":"abc"' in page and '"title":"x y"' in page
    # Rows and steps as before, so that nothing is compiled again.
    gaps = ["--infill=ab<mask>d", "--infill=<mask>*2 z"]
    code, filled, err = run(capsys, "sample", *common, *gaps)
    assert code == 0, err
    first, second = filled.splitlines()
    assert first.startswith("ab") and second.endswith(" z")
    assert '"title":"ab' in trace.read_text()


def test_an_empty_answer_says_why_and_how_to_forbid_it(tmp_path, capsys):
    vocabulary = CharacterVocabulary("ab")
    config = dataclasses.replace(
        SIZES["test"], vocab_size=vocabulary.size, pad_id=vocabulary.pad_id
    )
    parameters = encoder.parameters(encoder.Encoder(config, rngs=nnx.Rngs(0)))
    bias = parameters["head"]["bias"]
    parameters["head"]["bias"] = bias.at[vocabulary.eos_id].add(1e3)
    folder = export_folder(config, parameters, vocabulary, tmp_path / "model")
    common = ["sample", f"--run_dir={folder}", "--steps=2", "--length=3", "--prompt=ab"]
    code, out, err = run(capsys, *common)
    assert (code, out) == (0, "\n")
    assert err == (
        "The answer to 'ab' is empty: the model wrote only special tokens such as </s>, which "
        "--no_special_tokens forbids.\n"
    )
    code, out, err = run(capsys, *common, "--no_special_tokens")
    assert (code, err) == (0, "")
    assert len(out) == 4 and set(out[:3]) <= set("ab")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt=a\udc80"], "'a\\udc80' is not UTF-8 text"),
        (["--prompt=a", f"--seed={10**20}"], f"'{10**20}' is no whole number from 0 to 4294967295"),
        (["--infill=a<mask>*99999999999"], "has a gap of 99999999999 tokens, and 1 to 64"),
    ],
)
def test_sample_refuses_odd_input(folder, capsys, flags, message):
    code, _, err = run(capsys, "sample", f"--run_dir={folder}", *flags)
    assert code == 2 and message in err and err.count("\n") == 1


def test_verbs_leave_what_is_no_run_as_it_was(folder, tmp_path, capsys):
    before = sorted(path.name for path in folder.iterdir())
    code, _, err = run(capsys, "eval", f"--run_dir={folder}")
    assert (code, err.count("is not a run folder")) == (2, 1)
    assert sorted(path.name for path in folder.iterdir()) == before
    code, _, err = run(capsys, "import", folder, "--run_dir=/dev/null/x")
    assert (code, err) == (
        2,
        "dlm: error: --run_dir=/dev/null/x cannot be written: Not a directory\n",
    )
    code, _, err = run(capsys, "prune", folder, "--run_dir=/dev/null/x", "--layers=1")
    assert (code, err) == (
        2,
        "dlm: error: --run_dir=/dev/null/x cannot be written: Not a directory\n",
    )
    code, _, err = run(capsys, "inspect", tmp_path / "checkpoints" / "77")
    assert (code, err.count("does not exist")) == (2, 1)


def test_a_task_file_may_not_have_the_name_of_a_shipped_module(tmp_path, capsys):
    file = tmp_path / "prose.py"
    file.write_text("", encoding="utf-8")
    code, _, err = run(capsys, "tasks", "list", f"--import={file}")
    assert (code, err.count("so rename the file")) == (2, 1)


def test_sample_refuses_before_it_loads(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dlm_jax.api.load", None)
    trace = tmp_path / "none" / "trace.html"
    code, _, err = run(capsys, "sample", f"--run_dir={folder}", "--prompt=a", f"--trace={trace}")
    assert (code, err) == (
        2,
        f"dlm: error: --trace={trace} cannot be written: its folder does not exist\n",
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, _, err = run(capsys, "sample", f"--run_dir={folder}", "--prompt=-")
    assert (code, err) == (2, "dlm: error: --prompt=-: the standard input is empty\n")
    flags = [f"--run_dir={folder}", "--infill=a<mask>", "--length=3"]
    code, _, err = run(capsys, "sample", *flags)
    assert code == 2
    assert err == (
        "dlm: error: --length goes with --prompt: the gaps of --infill have their own lengths\n"
    )
