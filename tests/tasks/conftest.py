from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _parallel(folder: Path, stems: tuple[str, ...], first: str, second: str) -> None:
    for stem in stems:
        for side in (first, second):
            lines = (f"{stem} {side} sentence {number} .\n" for number in range(12))
            _write(folder / f"{stem}.{side}", "".join(lines))


def _mmlu(folder: Path) -> None:
    for split, rows in (("dev", 6), ("val", 4), ("test", 7)):
        for subject in ("anatomy", "high_school_physics"):
            options = 'one,"two, or {2}",three,four'
            lines = (
                f'"{split} {subject}, {row}?\nSay.",{options},{"ABCD"[row % 4]}\n'
                for row in range(rows)
            )
            _write(folder / split / f"{subject}_{split}.csv", "".join(lines))


def _natural_instructions(folder: Path) -> None:
    names = [f"task{number:03d}_toy" for number in range(20)]
    for name in names:
        examples = [
            {"input": f"{name} shown {n}", "output": f"yes {n}", "explanation": f"since {n}"}
            for n in range(3)
        ]
        # The first instance is also the first positive example, as happens in the collection.
        instances = [{"input": f"{name} shown 0", "output": ["yes 0", "aye 0"]}]
        instances += [{"input": f"{name} in {n}", "output": [f"out {n}"]} for n in range(150)]
        content = {
            "Definition": [f"Do {name}."],
            "Positive Examples": examples,
            "Negative Examples": [{"input": f"{name} bad", "output": "no", "explanation": "x"}],
            "Instances": instances,
        }
        _write(folder / "tasks" / f"{name}.json", json.dumps(content))
    _write(folder / "splits/default/train_tasks.txt", "\n".join(names[:14]) + "\n")
    _write(folder / "splits/default/test_tasks.txt", "\n".join(names[14:]) + "\n")


def _flan(root: Path, files: list[str]) -> None:
    for name in files:
        rows = [{"inputs": f"{name} ask {n}", "targets": f"tell {n}"} for n in range(8)]
        _write(
            root / "flan_2022" / f"{name}_train.jsonl", "".join(json.dumps(r) + "\n" for r in rows)
        )
    rows = {
        "cola_10templates": [
            *(f"Is this English? {n} dogs run." for n in range(5)),
            "Is this German? Ein Hund.",
        ],
        "wmt16_translate_deen_10templates": ["Translate: Hallo"],
    }
    for split in ("train", "validation", "test"):
        for name, asked in rows.items():
            text = "".join(json.dumps({"inputs": a, "targets": "no"}) + "\n" for a in asked)
            _write(root / "flan_2021" / split / f"{name}_{split}.jsonl", text)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in the layouts that the tasks expect, with the real files where they are."""
    from dlm_jax.tasks.bbh import TASKS
    from dlm_jax.tasks.flan import FLAN_2022_RATES
    from dlm_jax.tasks.gsm8k import MGSM_PHRASES

    root = tmp_path_factory.mktemp("data")
    real = Path(os.environ.get("DLM_DATA_DIR", "/nowhere"))
    for name in ("gsm8k", "mgsm", "bbh", "multi30k"):
        if (real / name).is_dir():
            shutil.copytree(real / name, root / name)
    _parallel(root / "iwslt14", ("train", "valid", "test"), "de", "en")
    _parallel(root / "gigaword_10k", ("train", "dev", "test"), "src", "tgt")
    _mmlu(root / "mmlu")
    _natural_instructions(root / "natural_instructions")
    _flan(root, list(FLAN_2022_RATES))
    exemplars = {
        language: {
            str(n): {"q": f"{asked} {n} + 1?", "a": f"{answer} {n} + 1 = {n + 1}. = {n + 1}."}
            for n in range(1, 9)
        }
        for language, (asked, answer) in MGSM_PHRASES.items()
    }
    _write(
        root / "mgsm/exemplars.py", f'"""Prompts."""\nX = len([])\nMGSM_EXEMPLARS = {exemplars}\n'
    )
    for language in MGSM_PHRASES:
        if not (root / f"mgsm/mgsm_{language}.tsv.gz").exists():
            lines = (f"{n} + 10?\t{n + 10}\n" for n in range(9))
            _write(root / f"mgsm/mgsm_{language}.tsv", "".join(lines))
    for task in TASKS:
        _write(
            root / f"bbh/cot-prompts/{task}.txt",
            f"canary\n-----\nDo {task}.\n\nQ: w\nA: Let's think step by step.\nThe answer is x.\n",
        )
    return root
