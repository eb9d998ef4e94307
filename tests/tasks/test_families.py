"""Every shipped family: prompts as they must read, splits without leaks, sentences without data."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlm_jax.data.few_shot import DEMONSTRATIONS
from dlm_jax.data.loader import Loader
from dlm_jax.data.preview import preview
from dlm_jax.data.tasks import Mixture, TextTask, get_task, import_task_modules, list_tasks
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.errors import UserError

MODULES = (
    "arithmetic", "bbh", "flan", "gsm8k", "mmlu", "multi30k", "natural_instructions",
    "summarization", "translation", "tydiqa",
)  # fmt: skip

VOCABULARY = ByteVocabulary()
FROM_TFDS = ("wmt14_v1.", "gigaword_v1.", "xsum_v1.", "tydiqa_v1.")
PREFIXES = (
    *FROM_TFDS, "iwslt14_v1.", "multi30k_v1.", "gigaword_10k_v1.", "flan2021_v1.", "flan2022_v1.",
    "natural_instructions_v2.", "mmlu_v1.", "bbh_v1.", "gsm8k_v1.", "mgsm_v1.", "arithmetic_v1.",
)  # fmt: skip
import_task_modules(MODULES)
NAMES = [name for name in list_tasks() if name.startswith(PREFIXES)]
TASKS = [name for name in NAMES if isinstance(get_task(name), TextTask)]
# The English demonstrations of MGSM are the same for all eleven languages.
K_SHOT = [
    name
    for name in TASKS
    if "_shot" in name
    and "_0_shot" not in name
    and ("_english_" not in name or name.startswith("mgsm_v1.de"))
]
real = pytest.mark.skipif("DLM_DATA_DIR" not in os.environ, reason="DLM_DATA_DIR is not set")


@pytest.fixture(autouse=True)
def data(toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLM_DATA_DIR", str(toy_data))
    return toy_data


@pytest.fixture(scope="module")
def tfds_mock() -> Iterator[None]:
    """TFDS with invented records; those of TyDi QA have ids that name a language."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from dlm_jax.tasks import tydiqa

    read = tydiqa.tfds_records

    def with_languages(dataset: str, split: str) -> Iterator[dict[str, Any]]:
        for number, record in enumerate(read(dataset, split)):
            question = f"{split} {record['question']} {number}"
            language = tydiqa.LANGUAGES[number % len(tydiqa.LANGUAGES)]
            yield {**record, "id": f"{language}-{number}", "question": question}

    patch = pytest.MonkeyPatch()
    patch.setattr(tydiqa, "tfds_records", with_languages)
    with tfds.testing.mock_data(num_examples=45):
        yield
    patch.undo()


def task(name: str) -> TextTask:
    found = get_task(name)
    assert isinstance(found, TextTask)
    return found


def first(name: str, split: str, count: int = 1) -> list[tuple[str, str]]:
    return [tuple(example) for example in itertools.islice(task(name).examples(split), count)]


def readable(name: str, data: Path) -> bool:
    """Whether the toy folder has what a task reads; real files come from DLM_DATA_DIR."""
    dataset, what = name.split("_v")[0], name.partition(".")[2]
    if "_english_" in what:
        return (data / "gsm8k").is_dir()
    if dataset == "bbh":
        return (data / "bbh/snarks.json.gz").exists()
    return dataset not in ("multi30k", "gsm8k") or (data / dataset).is_dir()


def test_the_families_are_complete() -> None:
    assert set(NAMES) - set(TASKS) == {"arithmetic_v1.mixture", "flan2022_v1.mixture"}
    for prefix in PREFIXES:
        assert any(name.startswith(prefix) for name in TASKS), prefix
    from dlm_jax.tasks.bbh import NLP_TASKS
    from dlm_jax.tasks.bbh import TASKS as BBH

    assert len(BBH) == len(set(BBH)) == 27 and len(NLP_TASKS) == 12 and set(NLP_TASKS) < set(BBH)
    for name in BBH:
        assert f"bbh_v1.{name}" in TASKS and f"bbh_v1.{name}_3_shot" in TASKS


@pytest.mark.parametrize("prefix", PREFIXES)
def test_five_examples_of_every_task_decode(
    prefix: str, data: Path, request: pytest.FixtureRequest
) -> None:
    if prefix in FROM_TFDS:
        request.getfixturevalue("tfds_mock")
    names = [name for name in TASKS if name.startswith(prefix) and readable(name, data)]
    if not names:
        pytest.skip("DLM_DATA_DIR has no such files")
    for name in names:
        found = task(name)
        shown = preview(name, VOCABULARY, 5, length=100_000, limit=5)
        decoded = [(one.prompt, one.response) for one in shown.examples]
        counts = shown.counts[name]
        assert len(decoded) == counts.records == 5, name
        assert all((prompt or found.plain_text) and text for prompt, text in decoded), name
        assert counts.tokens_cut == counts.dropped == 0
    assert decoded == first(name, found.split_names[0], 5)
    cut = preview(name, VOCABULARY, 1, length=12, limit=5).counts[name]
    assert cut.records == cut.prompts_cut == len(decoded) and cut.tokens_cut > 0


@pytest.mark.parametrize("name", K_SHOT)
def test_no_example_demonstrates_itself(
    name: str, data: Path, request: pytest.FixtureRequest
) -> None:
    """Over many examples, by the question and by the whole record."""
    if name.startswith(FROM_TFDS):
        request.getfixturevalue("tfds_mock")
    if not readable(name, data):
        pytest.skip("DLM_DATA_DIR has no such files")
    found, seen = task(name), 0
    shots = int(name.partition("_shot")[0].rpartition("_")[2])
    for split in found.split_names[-2:]:
        for record in itertools.islice(found.splits[split](), 100):
            question = record.get("question", record.get("input", record.get("de")))
            shown = record[DEMONSTRATIONS]
            assert len(shown) == shots
            for one in shown:
                assert one.get("question", one.get("input", one.get("de"))) != question
                assert {**one, DEMONSTRATIONS: 0} != {**record, DEMONSTRATIONS: 0}
            seen += 1
    assert seen >= 1


def test_names_of_demonstrations_end_alike() -> None:
    assert [name for name in NAMES if "shot" in name and not re.search(r"_\d+_shot$", name)] == []


@real
def test_no_question_of_a_test_is_trained_on_or_demonstrates_another() -> None:
    """MGSM holds questions of GSM8K's test set; demonstrations of both are of its train set."""

    def questions(name: str, split: str) -> set[str]:
        return {" ".join(record["question"].split()) for record in task(name).splits[split]()}

    trained = questions("gsm8k_v1.answer", "train")
    tested = questions("gsm8k_v1.answer", "test")
    assert len(trained) == 7473 and len(tested) == 1319 and not trained & tested
    english = questions("mgsm_v1.en", "test")
    assert len(english) == 250 and english < tested
    for name in ("gsm8k_v1.worked_3_shot", "mgsm_v1.de_english_3_shot"):
        for record in itertools.islice(task(name).splits["test"](), 100):
            shown = {" ".join(one["question"].split()) for one in record[DEMONSTRATIONS]}
            assert len(shown) == 3 and shown <= trained


EVALUATION_ONLY = [name for name in TASKS if name.startswith(("bbh_v1", "mgsm_v1", "mmlu_v1"))]


def test_evaluation_only_sets_refuse_training(data: Path) -> None:
    assert len(EVALUATION_ONLY) > 200
    for name in TASKS:
        assert task(name).evaluation_only == (name in EVALUATION_ONLY), name
    for name in EVALUATION_ONLY:
        with pytest.raises(UserError, match=f"Task {name} is for evaluation only"):
            Loader(name, VOCABULARY, batch_size=1, length=64, split=task(name).split_names[0])
    loader = Loader(
        "mmlu_v1.all", VOCABULARY, batch_size=1, length=400, split="test", prefetch=0,
        allow_evaluation_only=True,
    )  # fmt: skip
    assert next(loader)["tokens"].shape == (1, 400)


def test_flan_2022_is_mixed_as_in_the_paper() -> None:
    mixture = get_task("flan2022_v1.mixture")
    assert isinstance(mixture, Mixture)
    shares = {name.removeprefix("flan2022_v1."): p for name, p in mixture.proportions.items()}
    assert len(shares) == 13 and sum(shares.values()) == pytest.approx(1.0)
    collections = {
        key: sum(share for name, share in shares.items() if name.startswith(f"{key}_"))
        for key in ("flan", "t0", "niv2", "cot", "dialog")
    }
    expected = {"flan": 0.40, "t0": 0.32, "niv2": 0.20, "cot": 0.05, "dialog": 0.03}
    assert collections == pytest.approx(expected)
    assert shares["t0_fs_noopt"] == pytest.approx(0.106)
    loader = Loader("flan2022_v1.mixture", VOCABULARY, batch_size=8, length=64, prefetch=0)
    assert next(loader)["tokens"].shape == (8, 64)


def test_flan_2021_without_german() -> None:
    asked = [inputs for inputs, _ in first("flan2021_v1.no_german", "train", 9)]
    assert asked == [f"Is this English? {n} dogs run." for n in range(5)]
    assert len(first("flan2021_v1.all", "train", 9)) == 7


GOLDEN = {
    ("iwslt14_v1.de_en", "test"): (
        "Translate the German sentence to English. German: test de sentence 0 . English:",
        "test en sentence 0 .",
    ),
    ("iwslt14_v1.de_en_0_shot", "test"): (
        "Translate the sentences into English. German: test de sentence 0 . English:",
        "test en sentence 0 .",
    ),
    ("gigaword_10k_v1.headline", "validation"): (
        "Summarize the following sentence. Sentence: dev src sentence 0 . Summary:",
        "dev tgt sentence 0 .",
    ),
    ("flan2022_v1.cot_zs_opt", "train"): ("cot_zs_opt ask 0", "tell 0"),
    ("mmlu_v1.all", "test"): (
        "The following are multiple choice questions (with answers) about anatomy. "
        "Q: test anatomy, 0?\nSay. (A) one (B) two, or {2} (C) three (D) four A:",
        "A",
    ),
    ("mgsm_v1.es", "test"): ("Pregunta: 0 + 10? Respuesta paso a paso:", "10"),
    ("mgsm_v1.ja_1_shot", "test"): (
        "問題： 1 + 1? ステップごとの答え： 1 + 1 = 2. = 2.\n\n問題： 0 + 10? ステップごとの答え：",
        "10",
    ),
}


@pytest.mark.parametrize(("name", "split"), GOLDEN)
def test_golden_prompts(name: str, split: str) -> None:
    assert first(name, split) == [GOLDEN[name, split]]


def test_few_shot_prompts_read_as_the_papers() -> None:
    ((inputs, _),) = first("mmlu_v1.all_2_shot", "validation")
    preamble, one, two, asked = inputs.replace(". Q: ", ". | Q: ", 1).split(" | ")
    assert preamble.endswith("about anatomy.") and asked.endswith("(D) four A:")
    for shown in (one, two):
        assert shown.startswith("Q: dev anatomy, ") and shown[-5:-1] == " A: "
    ((inputs, _),) = first("iwslt14_v1.de_en_2_shot", "test")
    assert inputs.count("German: train de sentence") == 2
    assert inputs.count("English: train en sentence") == 2 and inputs.endswith("0 . English:")


def test_tydiqa_keeps_the_language(tfds_mock: None) -> None:
    for inputs, answer in first("tydiqa_v1.goldp_flan2022_1_shot", "validation", 50):
        assert inputs.startswith("Please answer each of the question according to the given")
        assert "in english." not in inputs and inputs.count(" | context: ") == 1
        assert answer.group in inputs.split(". ")[0] and answer in answer.references  # type: ignore
    assert len(first("tydiqa_v1.goldp_finnish", "train", 100)) == 5


def test_natural_instructions_hold_out_tasks(data: Path, tmp_path: Path) -> None:
    name = "natural_instructions_v2.definition_2_positive_2_negative"
    train = list(task(name).splits["train"]())
    test = list(task(name).splits["test"]())
    assert {r["task"] for r in train}.isdisjoint({r["task"] for r in test})
    assert len({r["task"] for r in train}) == 14 and len({r["task"] for r in test}) == 6
    assert len(train) == 14 * 100
    eight = {
        r["task"] for r in task("natural_instructions_v2.definition_8_tasks").splits["train"]()
    }
    assert len(eight) == 8 and eight < {r["task"] for r in train}
    (inputs, answer), (second, _) = first(name, "train", 2)
    assert answer.references == ("yes 0", "aye 0")  # type: ignore[attr-defined]
    toy = train[0]["task"]
    assert inputs == (
        f"Definition: Do {toy}.\n\nPositive example 1: Input: {toy} shown 1 Output: yes 1\n\n"
        f"Positive example 2: Input: {toy} shown 2 Output: yes 2\n\n"
        f"Negative example 1: Input: {toy} bad Output: no\n\nInput: {toy} shown 0 Output:"
    )
    assert "Positive example 1: Input: " + f"{toy} shown 0" in second
    ((explained, _),) = first("natural_instructions_v2.definition_2_explained", "train")
    assert "Output: yes 1 Explanation: since 1" in explained


def test_natural_instructions_without_lists_are_divided_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlm_jax.tasks.natural_instructions import task_names

    monkeypatch.setenv("DLM_DATA_DIR", str(tmp_path))
    folder = tmp_path / "mine/tasks"
    folder.mkdir(parents=True)
    for number in range(300):
        (folder / f"task{number}.json").write_text("{}")
    train, test = (set(task_names("mine", split)) for split in ("train", "test"))
    assert len(train | test) == 300 and not train & test and 10 < len(test) < 60
    (folder / "task300.json").write_text("{}")
    assert test <= set(task_names("mine", "test"))
    lists = tmp_path / "mine/splits/default"
    lists.mkdir(parents=True)
    for part in ("train", "test"):
        (lists / f"{part}_tasks.txt").write_text("task1\n")
    with pytest.raises(UserError, match="lists task1 both for train and for test"):
        task_names("mine", "train")


@real
def test_big_bench_hard_is_whole(data: Path) -> None:
    examples = list(task("bbh_v1.all").examples("test"))
    # 24 tasks have 250 questions; causal judgement, penguins and snarks 187, 146 and 178.
    assert len(examples) == 24 * 250 + 187 + 146 + 178 == 6511
    assert len({example.targets.group for example in examples}) == 27  # type: ignore
    ((inputs, target),) = first("bbh_v1.boolean_expressions", "test")
    assert (inputs, target) == ("Q: not ( True ) and ( True ) is\nA:", "False")
    ((inputs, _),) = first("bbh_v1.boolean_expressions_cot", "test")
    assert inputs.startswith("Do boolean_expressions.\n\nQ: w\nA: Let's think")
    assert inputs.endswith("( True ) is\nA: Let's think step by step.") and "canary" not in inputs


@real
def test_gsm8k_demonstrations_are_worked(data: Path) -> None:
    ((inputs, target),) = first("gsm8k_v1.worked_3_shot", "test")
    assert inputs.count("Step-by-Step Answer:") == 4 and inputs.count("The answer is ") == 3
    assert inputs.endswith("Step-by-Step Answer:") and target.endswith("The answer is 18.")
    ((inputs, target),) = first("mgsm_v1.fr_english_1_shot", "test")
    assert inputs.startswith("Question: ") and "\n\nQuestion : Les canes de Janet" in inputs
    assert inputs.endswith("Réponse étape par étape :") and target == "18"


MISSING = {
    "iwslt14_v1.de_en": "iwslt14", "gigaword_10k_v1.headline": "gigaword_10k",
    "flan2022_v1.cot_zs_opt": "flan_2022", "flan2021_v1.all": "flan_2021",
    "natural_instructions_v2.definition": "natural_instructions", "mmlu_v1.all": "mmlu",
    "bbh_v1.navigate": "bbh", "mgsm_v1.bn": "mgsm",
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_missing_files_say_what_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, split = MISSING[name], task(name).split_names[0]
    monkeypatch.setenv("DLM_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"has no folder {folder}/: put .* into its sub-folder"):
        list(task(name).examples(split))
    (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match="holds n(either|o) ") as caught:
        list(task(name).examples(split))
    assert "\n" not in str(caught.value)


def test_missing_parts(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLM_DATA_DIR", str(tmp_path))
    (tmp_path / "mgsm").mkdir()
    with pytest.raises(UserError, match=r"holds neither exemplars\.py"):
        list(task("mgsm_v1.de_3_shot").examples("test"))
    (tmp_path / "mgsm/exemplars.py").write_text("MGSM_EXEMPLARS = make()\n")
    with pytest.raises(UserError, match="has no MGSM_EXEMPLARS of 'de'"):
        list(task("mgsm_v1.de_3_shot").examples("test"))
    (tmp_path / "bbh").mkdir()
    with pytest.raises(UserError, match="put cot-prompts of BIG-Bench-Hard into bbh/"):
        list(task("bbh_v1.snarks_cot").examples("test"))
    (tmp_path / "mmlu/val").mkdir(parents=True)
    (tmp_path / "mmlu/val/anatomy_val.csv").write_text("q,1,2,3,4,E\n")
    with pytest.raises(UserError, match=r"anatomy_val\.csv row 1 is not a question"):
        list(task("mmlu_v1.all").examples("validation"))


def test_json_lines_are_tasks_by_their_path(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    # With the mark that Windows puts before UTF-8, an empty line, and two ways to end one.
    file.write_text(
        '\ufeff{"inputs": "a", "targets": "b"}\n\n{"inputs": "ä", "targets": "ß"}\r\n', "utf-8"
    )
    for name in (f"jsonl:{file}", f"jsonl:{tmp_path}"):
        found = task(name)
        assert found.split_names == ("train",)
        assert first(name, "train", 9) == [("a", "b"), ("ä", "ß")]
        loader = Loader(name, VOCABULARY, batch_size=1, length=16, prefetch=0)
        assert next(loader)["tokens"].shape == (1, 16)
    file.write_text('{"inputs": "a", "targets": "b"}\n{"inputs": "a", "target": "b"}\n')
    with pytest.raises(UserError, match="record 1 lacks the key 'targets'"):
        list(task(f"jsonl:{file}").examples("train"))
    with pytest.raises(UserError, match="is neither a file of JSON lines nor a folder"):
        get_task(f"jsonl:{tmp_path}/nothing")


def test_no_family_imports_tensorflow() -> None:
    script = (
        f"import sys, importlib\nfor name in {MODULES!r}: importlib.import_module("
        "'dlm_jax.tasks.' + name)\n"
        "heavy = ('tensorflow', 'seqio', 'tensorflow_datasets', 'jax')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
