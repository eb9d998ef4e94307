"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300): 57 subjects of multiple choice, evaluation only.

Read from the folder `mmlu` under DLM_DATA_DIR, which holds the folders `dev`, `val` and `test` of
the authors' `data.tar` with files such as `val/anatomy_val.csv`. Prompts follow arXiv 2308.12219,
whose figures are on validation; demonstrations come from `dev`, of the same subject.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterator

from dlm_jax.data.few_shot import few_shot_prompt, with_demonstrations
from dlm_jax.data.files import data_folder, read_text
from dlm_jax.data.tasks import Record, register_task
from dlm_jax.errors import UserError
from dlm_jax.evaluation.answers import Answer
from dlm_jax.evaluation.metrics import option_accuracy

SHOTS = (0, 1, 2, 3, 5)
LETTERS = "ABCD"
PREAMBLE = "The following are multiple choice questions (with answers) about {subject}. "
QUESTION = "Q: {question} (A) {A} (B) {B} (C) {C} (D) {D} A:"

_CONTENTS = "the folders dev, val and test of the authors' data.tar"


def _records(split: str) -> Iterator[dict[str, str]]:
    folder = data_folder("mmlu", _CONTENTS) / split
    files = sorted(folder.glob(f"*_{split}.csv"))
    if not files:
        raise UserError(f"{folder} holds no *_{split}.csv: put {_CONTENTS} into mmlu/.")
    for file in files:
        subject = file.name.removesuffix(f"_{split}.csv").replace("_", " ")
        for number, row in enumerate(csv.reader(io.StringIO(read_text(file))), start=1):
            if len(row) != 6 or row[5] not in LETTERS:
                raise UserError(
                    f"{file} row {number} is not a question, four options and one of {LETTERS}."
                )
            options = dict(zip(LETTERS, row[1:5]))
            yield {"subject": subject, "question": row[0], **options, "answer": row[5]}


def _target(record: Record) -> str:
    return Answer(record["answer"], group=record["subject"])


_SPLITS = {
    "validation": functools.partial(_records, "val"),
    "test": functools.partial(_records, "test"),
}
for _shots in SHOTS:
    register_task(
        "mmlu_v1.all" + (f"_{_shots}_shot" if _shots else ""),
        splits=with_demonstrations(
            _SPLITS,
            functools.partial(_records, "dev"),
            _shots,
            identity=QUESTION,
            group="{subject}",
        ),
        inputs=few_shot_prompt(QUESTION, " {answer}", preamble=PREAMBLE, separator=" | "),
        targets=_target,
        metrics=(option_accuracy,),
        evaluation_only=True,
        description=f"MMLU, all 57 subjects, {_shots} demonstrations, for evaluation only.",
    )
