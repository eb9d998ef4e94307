"""Grade-school mathematics: GSM8K (Cobbe et al. 2021, arXiv 2110.14168) and, for evaluation only,
MGSM (Shi et al. 2022, arXiv 2210.03057).

Read from the folders `gsm8k` (`train.jsonl`, `test.jsonl`) and `mgsm` (`mgsm_en.tsv`, …) under
DLM_DATA_DIR, each file gzipped or not. The worked demonstrations of MGSM's authors, in the language
of the question, are in their file `exemplars.py`, put beside the others. `…_english_<k>_shot` needs
no such file: its demonstrations are of GSM8K's train set, of which MGSM holds nothing.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dlm_jax.data.few_shot import Records, few_shot_prompt, with_demonstrations
from dlm_jax.data.files import data_folder, find_file, read_json_lines, read_lines, read_text
from dlm_jax.data.tasks import Record, register_task
from dlm_jax.errors import UserError
from dlm_jax.evaluation.metrics import exact_match, numeric_answer

# How each language opens a question and a worked answer, in the authors' exemplars.
MGSM_PHRASES = {
    "bn": ("প্রশ্ন:", "ধাপে ধাপে উত্তর:"),
    "de": ("Frage:", "Schritt-für-Schritt-Antwort:"),
    "en": ("Question:", "Step-by-Step Answer:"),
    "es": ("Pregunta:", "Respuesta paso a paso:"),
    "fr": ("Question :", "Réponse étape par étape :"),
    "ja": ("問題：", "ステップごとの答え："),
    "ru": ("Задача:", "Пошаговое решение:"),
    "sw": ("Swali:", "Jibu la Hatua kwa Hatua:"),
    "te": ("ప్రశ్న:", "దశలవారీగా సమాధానం:"),
    "th": ("โจทย์:", "คำตอบทีละขั้นตอน:"),
    "zh": ("问题：", "逐步解答："),
}
SHOTS = (0, 1, 3, 8)
PROMPT = "Question: {question} Step-by-Step Answer:"

# Calculator annotations such as <<48/2=24>> are for a tool, not for a reader.
_CALCULATION = re.compile(r"<<[^<>]*>>")


def _records(file: str) -> Iterator[dict[str, Any]]:
    folder = data_folder("gsm8k", "train.jsonl and test.jsonl of openai/grade-school-math")
    return read_json_lines(find_file(folder, file))


def _mgsm_records(language: str) -> Iterator[dict[str, str]]:
    folder = data_folder("mgsm", "mgsm_<language>.tsv of google-research/url-nlp")
    file = find_file(folder, f"mgsm_{language}.tsv")
    for number, line in enumerate(read_lines(file), start=1):
        question, tab, answer = line.partition("\t")
        if not tab:
            raise UserError(f"{file} line {number} has no tab between question and answer.")
        yield {"question": question, "answer": answer}


def _mgsm_exemplars(language: str) -> Iterator[dict[str, str]]:
    """Yields the authors' eight demonstrations; their file is read as data and never executed."""
    folder = data_folder("mgsm", "exemplars.py and mgsm_<language>.tsv of google-research/url-nlp")
    file = find_file(folder, "exemplars.py")
    try:
        values = {
            target.id: statement.value
            for statement in ast.parse(read_text(file)).body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        exemplars = ast.literal_eval(values["MGSM_EXEMPLARS"])[language]
        for number in sorted(exemplars, key=int):
            question, answer = (exemplars[number][key].strip() for key in ("q", "a"))
            yield {
                "question": question.removeprefix(MGSM_PHRASES[language][0]).strip(),
                "worked": answer.removeprefix(MGSM_PHRASES[language][1]).strip(),
            }
    except (SyntaxError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} has no MGSM_EXEMPLARS of {language!r} ({error!r}).") from error


def worked_answer(record: Mapping[str, Any]) -> str:
    """Returns the steps on one line, then `The answer is N.`"""
    steps, _, answer = _CALCULATION.sub("", record["answer"]).rpartition("####")
    return f"{' '.join(steps.split())} The answer is {final_answer({'answer': answer})}."


def final_answer(record: Mapping[str, Any]) -> str:
    """Returns the number after `####` (or the whole answer), without commas."""
    return str(record["answer"].rpartition("####")[2]).strip().replace(",", "")


def _english_demonstrations() -> Iterator[dict[str, str]]:
    for record in _records("train.jsonl"):
        yield {"question": record["question"], "worked": worked_answer(record)}


def _register_mgsm(language: str) -> None:
    splits = {"test": functools.partial(_mgsm_records, language)}
    pools: dict[str, Records] = {
        "": functools.partial(_mgsm_exemplars, language),
        "_english": _english_demonstrations,
    }
    opening, answer = MGSM_PHRASES[language]
    asked = f"{opening} {{question}} {answer}"
    for shots in SHOTS:
        for suffix, pool in pools.items():
            plain = not (shots or suffix)
            register_task(
                f"mgsm_v1.{language}{suffix}" + ("" if plain else f"_{shots}_shot"),
                splits=with_demonstrations(
                    splits, pool, shots, identity="{question}", in_order=not suffix
                ),
                inputs=few_shot_prompt(
                    functools.partial(_asked, asked, PROMPT if suffix else asked), " {worked}"
                ),
                targets=final_answer,
                metrics=(numeric_answer,),
                evaluation_only=True,
                description=f"250 GSM8K problems in {language}, {shots} demonstrations"
                f"{' in English' if suffix else ''}, for evaluation only.",
            )


def _asked(example: str, demonstration: str, record: Record) -> str:
    """Writes a demonstration, which alone is worked, in its own language."""
    return (demonstration if "worked" in record else example).format_map(record)


_SPLITS = {
    "train": functools.partial(_records, "train.jsonl"),
    "test": functools.partial(_records, "test.jsonl"),
}


def _after_space(record: Record) -> str:
    return f" {worked_answer(record)}"


for _shots in SHOTS:
    register_task(
        "gsm8k_v1.worked" + (f"_{_shots}_shot" if _shots else ""),
        splits=with_demonstrations(_SPLITS, _SPLITS["train"], _shots, identity="{question}"),
        inputs=few_shot_prompt(PROMPT, _after_space),
        targets=worked_answer,
        metrics=(numeric_answer,),
        description="GSM8K with its worked answer, scored by the last number"
        + (f", {_shots} demonstrations." if _shots else "."),
    )
register_task(
    "gsm8k_v1.answer",
    splits=_SPLITS,
    inputs="Question: {question} Answer:",
    targets=final_answer,
    metrics=(exact_match,),
    description="GSM8K with its final number only.",
)
for _language in MGSM_PHRASES:
    _register_mgsm(_language)
