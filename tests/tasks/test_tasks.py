"""The shipped task modules: what they yield, how they split, what they say without their data."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dlm_jax.tasks.prose import passages, register_prose

from dlm_jax.data.tasks import Mixture, TextTask, get_task, import_task_modules, list_tasks
from dlm_jax.errors import UserError

needs_data = pytest.mark.skipif("DLM_DATA_DIR" not in os.environ, reason="DLM_DATA_DIR is not set")


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    import_task_modules(["prose", "reasoning_gym", "multi30k", "gsm8k"])


def task(name: str) -> TextTask:
    found = get_task(name)
    assert isinstance(found, TextTask)
    return found


def test_every_shipped_task_says_what_it_is() -> None:
    # In a process of its own, which knows the tasks of no test.
    program = """if True:
        from dlm_jax.data import tasks

        tasks.import_task_modules(tasks.shipped_modules())
        found = [tasks.get_task(name) for name in tasks.list_tasks()]
        ours = [task for task in found if isinstance(task, tasks.TextTask)]
        mute = [t for t in ours if not t.description or not (t.metrics or t.plain_text)]
        print(len(ours), [task.name for task in mute])
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, _, mute = done.stdout.strip().partition(" ")
    assert (mute, int(count) > 300) == ("[]", True), done.stdout


REASONING = [
    "gcd", "syllogism", "word_reversal", "spell_backward", "letter_counting", "addition",
    "family_relationships", "needle_haystack",
]  # fmt: skip


@pytest.mark.parametrize("name", ["spell_backward", "addition"])
def test_reasoning_splits_share_no_question(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    splits = {
        split: [example.inputs for example in task(f"reasoning_gym_v1.{name}").examples(split)]
        for split in ("train", "validation", "test")
    }
    assert len(splits["train"]) > 10_000
    assert len(set(splits["test"])) == len(splits["test"]) == 500
    assert len(set(splits["validation"])) == len(splits["validation"]) == 500
    train, validation, test = (set(splits[key]) for key in ("train", "validation", "test"))
    assert not train & test and not train & validation and not test & validation


def test_reasoning_answers_are_right() -> None:
    """Solves three of the tasks from their questions."""
    import math
    import re

    pytest.importorskip("reasoning_gym")
    for question, answer in task("reasoning_gym_v1.gcd").examples("test"):
        first, second = map(int, re.findall(r"\d+", question))
        assert answer == str(math.gcd(first, second))
    for question, answer in task("reasoning_gym_v1.addition").examples("test"):
        assert answer == str(sum(map(int, re.findall(r"\d+", question))))
    for question, answer in task("reasoning_gym_v1.spell_backward").examples("test"):
        assert answer == question.rpartition(" ")[2][::-1]


def test_reasoning_is_deterministic_lower_case_and_mixed_evenly() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    from dlm_jax.tasks import reasoning_gym as family

    assert reasoning_gym is not family
    arguments = ("gcd", (), 50, 10)
    once = family._train(*arguments)
    family._train.cache_clear()
    assert family._train(*arguments) == once and len(once) == 50
    for name in REASONING:
        for question, answer in task(f"reasoning_gym_v1.{name}").examples("validation"):
            assert (question, answer) == (question.lower(), answer.lower())
    mixture = get_task("reasoning_gym_v1.mixture")
    assert isinstance(mixture, Mixture)
    assert mixture.proportions == {f"reasoning_gym_v1.{n}": 1 / 8 for n in REASONING}


def test_reasoning_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from dlm_jax.tasks import reasoning_gym as family

    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match="need the package reasoning-gym: pip install"):
        list(family._generate("gcd", {}, 0, 1))


def test_passages_keep_every_word_and_end_with_sentences() -> None:
    text = "One two. Three four five!\n\nSix?  Seven eight\nnine ten. Eleven"
    runs = list(passages(text, 4))
    assert runs == ["One two. Three four five!", "Six? Seven eight nine ten.", "Eleven"]
    for words in (1, 3, 100):
        assert " ".join(passages(text, words)).split() == text.split()
    assert list(passages(" \n ", 4)) == []


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from dlm_jax.data import tasks

    monkeypatch.setattr(tasks, "_REGISTRY", dict(tasks._REGISTRY))
    yield


def test_prose_splits_by_file(registry: None, tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text(f"File {number} begins. It ends.")
    prose = register_prose("mine_v1.prose", str(tmp_path), block_words=3, validation_every=5)
    validation = [example.targets for example in prose.examples("validation")]
    train = [example.targets for example in prose.examples("train")]
    assert validation == ["File 4 begins.", "It ends.", "File 9 begins.", "It ends."]
    assert len(train) == 16 and not {"File 4 begins.", "File 9 begins."} & set(train)
    assert prose.plain_text


def test_prose_source_is_a_setting(
    registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("Fellow citizens. " * 40)
    monkeypatch.setenv("DLM_SOTU_SOURCE", str(tmp_path))
    found = [example.targets for example in task("sotu_v1.prose").examples("train")]
    assert " ".join(found).split() == ("Fellow citizens. " * 40).split()
    with pytest.raises(UserError, match="validation'?: it is empty|no examples"):
        from dlm_jax.data.table import build_table
        from dlm_jax.data.vocabularies import ByteVocabulary

        build_table(task("sotu_v1.prose"), "validation", ByteVocabulary(), 64)


def test_prose_errors(registry: None, tmp_path: Path) -> None:
    empty = register_prose("empty_v1.prose", str(tmp_path))
    with pytest.raises(UserError, match=r"holds no \.txt files"):
        list(empty.examples("train"))
    (tmp_path / "a.txt").write_bytes(b"good line\nbad \xff line\n")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 text: line 2"):
        list(empty.examples("train"))
    sourceless = register_prose("none_v1.prose", source_variable="DLM_NO_SUCH_VARIABLE")
    with pytest.raises(UserError, match="set DLM_NO_SUCH_VARIABLE to a folder"):
        list(sourceless.examples("train"))
    with pytest.raises(UserError, match="validation_every=1"):
        register_prose("bad_v1.prose", str(tmp_path), validation_every=1)


@needs_data
def test_multi30k_is_parallel_and_prompted_as_in_the_paper() -> None:
    forth, back = task("multi30k_v1.en_de"), task("multi30k_v1.de_en")
    for split, count in (
        ("train", 29000),
        ("validation", 1014),
        ("test", 1000),
        ("test_2017", 1000),
    ):
        there, here = list(forth.examples(split)), list(back.examples(split))
        assert len(there) == len(here) == count
        english = there[0].inputs.removeprefix(
            "Translate the English sentence to German. English: "
        )
        assert there[0].inputs.endswith(" German:")
        assert english.removesuffix(" German:") == here[0].targets
    captions = (next(one.examples("test")).targets for one in (back, forth))
    assert next(task("multi30k_v1.en_de_text").examples("test")).targets == " ".join(captions)
    pairs = ("de_en", "de_fr", "en_de", "en_de_text", "en_fr", "fr_de", "fr_en")
    assert [name for name in list_tasks() if name.startswith("multi30k")] == [
        f"multi30k_v1.{pair}" for pair in pairs
    ]


@needs_data
def test_gsm8k_answers() -> None:
    worked = list(task("gsm8k_v1.worked").examples("train"))
    final = list(task("gsm8k_v1.answer").examples("train"))
    assert len(worked) == len(final) == 7473
    assert len(list(task("gsm8k_v1.worked").examples("test"))) == 1319
    assert worked[0].targets.endswith("72 clips altogether in April and May. The answer is 72.")
    assert final[0].targets == "72"
    (metric,) = task("gsm8k_v1.worked").metrics
    figures = metric([e.targets for e in final], [e.targets for e in worked])
    assert figures == {"numeric_answer": 1.0}
    assert not any("<<" in example.targets or "\n" in example.targets for example in worked)
    german = task("mgsm_v1.de")
    assert german.evaluation_only and len(list(german.examples("test"))) == 250


DATA_TASKS = ["multi30k_v1.en_de", "gsm8k_v1.worked", "mgsm_v1.de"]


@pytest.mark.parametrize("name", DATA_TASKS)
def test_missing_data_says_what_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = name.partition("_")[0]
    split = task(name).split_names[0]
    monkeypatch.delenv("DLM_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=f"Set DLM_DATA_DIR .* sub-folder {dataset}/"):
        list(task(name).examples(split))
    monkeypatch.setenv("DLM_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"has no folder {dataset}/: put"):
        list(task(name).examples(split))
    (tmp_path / dataset).mkdir()
    with pytest.raises(UserError, match=r"holds neither .* nor .*\.gz"):
        list(task(name).examples(split))


def test_malformed_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLM_DATA_DIR", str(tmp_path))
    folders = {name: tmp_path / name for name in ("multi30k", "gsm8k", "mgsm")}
    for folder in folders.values():
        folder.mkdir()
    (folders["multi30k"] / "train.en").write_text("one\ntwo\n")
    (folders["multi30k"] / "train.de").write_text("eins\n")
    with pytest.raises(UserError, match="has 2 lines and .* has 1"):
        list(task("multi30k_v1.en_de").examples("train"))
    for content, message in (
        (b'{"question": "q", "answer": "#### 1"}\n{"questi', "line 2 is not valid JSON"),
        (b"[]\n", "line 1 is not a JSON object"),
        (b'{"answer": "#### 1"}\n', "record 0 lacks the key 'question'"),
        (b'{"question": "q"}\n', "record 0 lacks the key 'answer' that targets uses"),
    ):
        (folders["gsm8k"] / "train.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=message):
            list(task("gsm8k_v1.worked").examples("train"))
    (folders["mgsm"] / "mgsm_de.tsv").write_text("no tab here\n")
    with pytest.raises(UserError, match="line 1 has no tab"):
        list(task("mgsm_v1.de").examples("test"))
    (folders["gsm8k"] / "test.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-6])
    with pytest.raises(UserError, match="cannot be read"):
        list(task("gsm8k_v1.worked").examples("test"))
