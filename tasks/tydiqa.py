"""TyDi QA, gold passage (Clark et al. 2020, arXiv 2003.05002): reading in nine languages.

Data of TensorFlow Datasets. Prompts and the eight languages of `flan2022` (all but English) follow
arXiv 2308.12219; demonstrations are training examples of the same language.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from dlm_jax.data.few_shot import few_shot_prompt, with_demonstrations
from dlm_jax.data.tasks import Record, register_task
from dlm_jax.data.tfds_records import tfds_records
from dlm_jax.evaluation.answers import Answer
from dlm_jax.evaluation.metrics import exact_match, token_f1

DATASET = "tydi_qa/goldp:3.0.0"
LANGUAGES = (
    "arabic",
    "bengali",
    "english",
    "finnish",
    "indonesian",
    "korean",
    "russian",
    "swahili",
    "telugu",
)
FLAN_2022_LANGUAGES = tuple(language for language in LANGUAGES if language != "english")
SHOTS = (0, 1)
PREAMBLE = "Please answer each of the question according to the given context in {language}. "
QUESTION = "context: {context} Q: {question} A:"


def _records(split: str, languages: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for record in tfds_records(DATASET, split):
        # An id is `finnish-7633091408814529542-0`; that of the language comes first.
        language = record["id"].partition("-")[0]
        answers = list(record["answers"]["text"])
        if language in languages and answers:
            yield {**record, "language": language, "answer": answers[0], "references": answers}


def _target(record: Record) -> str:
    return Answer(record["answer"], group=record["language"], references=record["references"])


for _what, _languages in (
    ("goldp", LANGUAGES),
    ("goldp_flan2022", FLAN_2022_LANGUAGES),
    *((f"goldp_{language}", (language,)) for language in LANGUAGES),
):
    _splits = {
        split: functools.partial(_records, split, _languages) for split in ("train", "validation")
    }
    for _shots in SHOTS:
        register_task(
            f"tydiqa_v1.{_what}" + (f"_{_shots}_shot" if _shots else ""),
            splits=with_demonstrations(
                _splits,
                _splits["train"],
                _shots,
                identity="{question} {context}",
                group="{language}",
            ),
            inputs=few_shot_prompt(QUESTION, " {answer}", preamble=PREAMBLE, separator=" | "),
            targets=_target,
            metrics=(exact_match, token_f1),
            description=f"TyDi QA GoldP in {', '.join(_languages)}; {_shots} demonstrations.",
        )
