"""Grade-school mathematics: GSM8K (Cobbe et al. 2021, arXiv 2110.14168) and, for evaluation only,
MGSM (Shi et al. 2022, arXiv 2210.03057).

Read from the folders `gsm8k` (`train.jsonl`, `test.jsonl`) and `mgsm` (`mgsm_en.tsv`, …) under
DLM_DATA_DIR, each file gzipped or not.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dlm_jax.data.files import data_folder, find_file, read_json_lines, read_lines
from dlm_jax.data.tasks import register_task
from dlm_jax.errors import UserError
from dlm_jax.evaluation.metrics import exact_match, numeric_answer

MGSM_LANGUAGES = ("en", "de", "fr", "zh")
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


def worked_answer(record: Mapping[str, Any]) -> str:
    """Returns the steps on one line, then `The answer is N.`"""
    steps, _, answer = _CALCULATION.sub("", record["answer"]).rpartition("####")
    return f"{' '.join(steps.split())} The answer is {final_answer({'answer': answer})}."


def final_answer(record: Mapping[str, Any]) -> str:
    """Returns the number after `####` (or the whole answer), without commas."""
    return str(record["answer"].rpartition("####")[2]).strip().replace(",", "")


_SPLITS = {
    "train": functools.partial(_records, "train.jsonl"),
    "test": functools.partial(_records, "test.jsonl"),
}
register_task(
    "gsm8k_v1.worked",
    splits=_SPLITS,
    inputs=PROMPT,
    targets=worked_answer,
    metrics=(numeric_answer,),
    description="GSM8K with its worked answer, scored by the last number.",
)
register_task(
    "gsm8k_v1.answer",
    splits=_SPLITS,
    inputs="Question: {question} Answer:",
    targets=final_answer,
    metrics=(exact_match,),
    description="GSM8K with its final number only.",
)
for _language in MGSM_LANGUAGES:
    register_task(
        f"mgsm_v1.{_language}",
        splits={"test": functools.partial(_mgsm_records, _language)},
        inputs=PROMPT,
        targets=final_answer,
        metrics=(numeric_answer,),
        evaluation_only=True,
        description=f"250 GSM8K problems in {_language}, for evaluation only.",
    )
