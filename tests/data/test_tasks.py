"""The registry, templates, and every way in which a task can be wrong."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dlm_jax.data import tasks
from dlm_jax.data.loader import Loader
from dlm_jax.data.preview import preview
from dlm_jax.data.table import Truncation, build_table
from dlm_jax.data.tasks import (
    Mixture,
    TextTask,
    get_task,
    import_task_modules,
    list_tasks,
    members,
    register_mixture,
    register_task,
)
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.errors import UserError

VOCABULARY = ByteVocabulary()
RECORDS = [{"src": "ab", "tgt": "xyz"}, {"src": "c", "tgt": "w"}]


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_REGISTRY", {})
    monkeypatch.delitem(sys.modules, "seqio", raising=False)


def pairs(name: str = "pairs_v1.all", **changes: object) -> TextTask:
    settings: dict = {
        "splits": {"train": lambda: RECORDS, "validation": lambda: RECORDS[:1]},
        "inputs": "{src}>",
        "targets": lambda record: record["tgt"].upper(),
    }
    return TextTask(name, **{**settings, **changes})


def test_templates_and_functions_read_records() -> None:
    task = pairs()
    assert list(task.examples("train")) == [("ab>", "XYZ"), ("c>", "W")]
    assert list(task.examples("validation")) == [("ab>", "XYZ")]
    encode = VOCABULARY.encode
    assert list(task.tokenized("train", VOCABULARY)) == [
        (encode("ab>"), encode("XYZ")),
        (encode("c>"), encode("W")),
    ]
    assert not task.plain_text and pairs(inputs=None).plain_text
    assert list(pairs(inputs=None).examples("validation")) == [("", "XYZ")]


def test_tokenizing_in_groups_keeps_every_example_in_order() -> None:
    words = [str(n) for n in range(tasks._ENCODING_BATCH * 2 + 5)]
    task = TextTask("n_v1.n", {"train": lambda: ({"n": word} for word in words)}, "{n}")
    decoded = [VOCABULARY.decode(targets) for _, targets in task.tokenized("train", VOCABULARY)]
    assert decoded == words


def test_registry_finds_lists_and_suggests() -> None:
    register_task("b_v1.x", splits={"train": lambda: RECORDS}, targets="{tgt}")
    register_task("a_v1.translate", splits={"train": lambda: RECORDS}, targets="{tgt}")
    register_mixture("mix_v1.all", {"a_v1.translate": 3, "b_v1.x": 1})
    assert list_tasks() == ["a_v1.translate", "b_v1.x", "mix_v1.all"]
    assert get_task("b_v1.x").name == "b_v1.x"
    with pytest.raises(UserError, match=r"did you mean a_v1\.translate\?"):
        get_task("a_v1.transalte")
    name, parts = members("mix_v1.all")
    assert name == "mix_v1.all"
    assert [(task.name, share) for task, share in parts] == [
        ("a_v1.translate", 0.75),
        ("b_v1.x", 0.25),
    ]
    register_mixture("outer_v1.all", {"mix_v1.all": 1, "b_v1.x": 1})
    outer = get_task("outer_v1.all")
    assert isinstance(outer, Mixture)
    assert outer.proportions == {"a_v1.translate": 0.375, "b_v1.x": 0.625}


def test_registry_refuses() -> None:
    register_task("a_v1.x", splits={"train": lambda: RECORDS}, targets="{tgt}")
    with pytest.raises(UserError, match="'a_v1.x' is registered twice"):
        register_task("a_v1.x", splits={"train": lambda: RECORDS}, targets="{tgt}")
    with pytest.raises(UserError, match="registered twice"):
        register_mixture("a_v1.x", {"a_v1.x": 1})
    with pytest.raises(UserError, match=r"did you mean a_v1\.x"):
        register_mixture("mix", {"a_v1.y": 1})
    for rates in ({"a_v1.x": 0}, {"a_v1.x": -1}, {"a_v1.x": float("nan")}, {"a_v1.x": "1"}):
        with pytest.raises(UserError, match="not positive"):
            register_mixture("mix", rates)
    with pytest.raises(UserError, match="has no tasks"):
        register_mixture("mix", {})
    with pytest.raises(UserError, match="not a name for a task"):
        register_task("a b", splits={"train": lambda: RECORDS}, targets="{tgt}")
    with pytest.raises(UserError, match="has no splits"):
        register_task("c", splits={}, targets="{tgt}")
    assert list_tasks() == ["a_v1.x"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": "{sorce}"}, r"record 0 lacks the key 'sorce' that inputs uses"),
        ({"targets": lambda record: record["tgd"]}, r"'tgd' that targets uses \(did you mean tgt"),
        ({"targets": lambda record: 7}, "targets is int, not text"),
        ({"targets": "  "}, "record 0: targets is empty"),
        ({"targets": lambda record: "\ud800"}, "not valid UTF-8"),
        ({"splits": {"train": list}}, r"no examples in its split 'train': it is empty"),
        ({"splits": {"trian": lambda: RECORDS}}, r"no split 'train' \(did you mean trian\?\)"),
    ],
)
def test_broken_tasks_name_themselves(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_table(pairs(**changes), "train", VOCABULARY, 32)
    assert "pairs_v1.all" in str(caught.value) and "\n" not in str(caught.value)


def test_evaluation_only_tasks_are_not_trained_on_unless_forced() -> None:
    task = pairs(evaluation_only=True)
    with pytest.raises(UserError, match="evaluation only"):
        Loader(task, VOCABULARY, batch_size=1, length=16)
    loader = Loader(
        task, VOCABULARY, batch_size=1, length=16, allow_evaluation_only=True, prefetch=0
    )
    assert next(loader)["tokens"].shape == (1, 16)
    assert len(build_table(task, "validation", VOCABULARY, 16)) == 1


def test_preview_marks_the_maskable_part_and_counts_cuts() -> None:
    register_task("p_v1.a", splits={"train": lambda: RECORDS}, inputs="{src}>", targets="{tgt}")
    register_task("p_v1.b", splits={"train": lambda: RECORDS}, targets="{tgt}")
    register_mixture("p_v1.mix", {"p_v1.a": 1, "p_v1.b": 1})
    shown = preview("p_v1.mix", VOCABULARY, 1, length=7)
    assert [example.text for example in shown.examples] == ["b> ⟦xyz </s>⟧", "⟦xyz </s>⟧"]
    first = shown.examples[0]
    assert first.pieces == ("<s>", "b", ">", "x", "y", "z", "</s>")
    assert first.maskable == (False,) * 3 + (True,) * 4
    assert (first.task, first.record, first.prompt, first.response) == ("p_v1.a", 0, "b>", "xyz")
    assert shown.sizes == {"p_v1.a": 2, "p_v1.b": 2}
    assert shown.counts["p_v1.a"].prompts_cut == 1 and shown.counts["p_v1.a"].tokens_cut == 1
    assert shown.mean_lengths["p_v1.b"] == (1.0, 3.0)
    assert len(preview("p_v1.a", VOCABULARY, 9).examples) == 2
    assert preview("p_v1.a", VOCABULARY, 9, limit=1).sizes == {"p_v1.a": 1}


def test_truncation_settings_are_checked() -> None:
    for settings in ({"side": "middle"}, {"overlong": "keep"}, {"max_response": 0}):
        with pytest.raises(UserError, match=f"Truncation.{next(iter(settings))}="):
            Truncation(**settings)  # type: ignore[arg-type]


MODULE = """
from dlm_jax.data.tasks import register_task
register_task("mine_v1.x", splits={"train": lambda: [{"t": "hello"}]}, targets="{t}")
"""


def test_task_modules_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    import_task_modules(["module_of_mine"])
    assert sys.path == before
    assert list(get_task("mine_v1.x").examples("train")) == [("", "hello")]  # type: ignore[union-attr]
    (tmp_path / "other.py").write_text(MODULE.replace("mine_v1", "other_v1"))
    import_task_modules(["./other.py"])
    import_task_modules(["other.py"])  # A second time is not a second registration.
    assert list_tasks() == ["mine_v1.x", "other_v1.x"]


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("multi31k", None, r"'multi31k' is not found \(did you mean multi30k\?\)"),
        ("no_such.module", None, "is not found"),
        ("absent.py", None, "is not a file"),
        ("broken_syntax.py", "def", "fails while it is imported .SyntaxError"),
        ("broken_import.py", "import no_such_package", "No module named 'no_such_package'"),
        ("broken_nested", "import no_such_package", "No module named 'no_such_package'"),
        ("broken_code.py", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_broken_task_modules(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    source: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if source is not None:
        (tmp_path / f"{name.removesuffix('.py')}.py").write_text(source)
    with pytest.raises(UserError, match=message):
        import_task_modules([name])


def test_vocabularies_and_tasks_import_neither_jax_nor_tensorflow() -> None:
    program = textwrap.dedent(
        """
        import sys
        import dlm_jax.data.vocabularies, dlm_jax.data.tasks, dlm_jax.data.loader
        import dlm_jax.data.preview
        dlm_jax.data.tasks.import_task_modules(["prose", "reasoning_gym", "multi30k", "gsm8k"])
        assert dlm_jax.data.tasks.list_tasks()
        heavy = {"jax", "tensorflow", "seqio", "torch", "reasoning_gym", "transformers"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": "What { is {src}?"}, "record 0: inputs cannot be made of it .ValueError"),
        ({"inputs": "{}"}, "record 0: inputs cannot be made of it"),
        ({"inputs": "{src.name}"}, "cannot be made of it .AttributeError"),
        ({"splits": {"train": lambda: ["a", "b"]}}, "record 0: inputs cannot be made of it"),
        ({"inputs": lambda record: 1 / 0}, "cannot be made of it .ZeroDivisionError"),
        ({"splits": {"train": lambda: map(int, "a")}}, "train cannot be read: ValueError: invalid"),
        ({"splits": {"train": lambda: None}}, "its function gives NoneType, no records"),
        (
            {"splits": {"train": lambda: iter(Path("/none/there").read_text())}},
            "train cannot be read: .*No such",
        ),
    ],
)
def test_a_mistake_in_a_task_file_is_one_sentence(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(pairs(**changes).examples("train"))


def test_a_split_is_a_function() -> None:
    with pytest.raises(UserError, match="split train: list is no function that yields records"):
        pairs(splits={"train": RECORDS})
