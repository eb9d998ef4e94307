"""BIG-Bench Hard (Suzgun et al. 2022, arXiv 2210.09261): 27 tasks, evaluation only.

Read from the folder `bbh` under DLM_DATA_DIR: `navigate.json` and so on of the authors' repository,
gzipped or not; the worked demonstrations of `…_cot` are its files `cot-prompts/navigate.txt`.

There are no training examples: demonstrations of `…_<k>_shot` are other questions of the same
task, drawn for each question anew and never itself; `…_cot` leaves out a question that its prompt
answers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from dlm_jax.data.few_shot import few_shot_prompt, with_demonstrations
from dlm_jax.data.files import data_folder, find_file, read_json, read_text
from dlm_jax.data.tasks import Record, register_task
from dlm_jax.errors import UserError
from dlm_jax.evaluation.answers import Answer
from dlm_jax.evaluation.metrics import exact_match, final_answer

TASKS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)
# The tasks about language, which arXiv 2308.12219 evaluates.
NLP_TASKS = (
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "formal_fallacies",
    "hyperbaton",
    "movie_recommendation",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
)
SHOTS = (0, 1, 2, 3)
QUESTION = "Q: {input}\nA:"

_CONTENTS = "the .json files of the folder bbh of suzgunmirac/BIG-Bench-Hard"
_RULE = "-----"


def _records(tasks: Iterable[str]) -> Iterator[dict[str, str]]:
    folder = data_folder("bbh", _CONTENTS)
    for task in tasks:
        file = find_file(folder, f"{task}.json")
        examples = read_json(file).get("examples")
        if not isinstance(examples, list):
            raise UserError(f"{file} has no list of examples.")
        for example in examples:
            yield {**example, "task": task}


def _worked_records(tasks: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yields the records with the authors' worked demonstrations, as text under `worked`."""
    for task in tasks:
        folder = data_folder("bbh", _CONTENTS) / "cot-prompts"
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: put cot-prompts of BIG-Bench-Hard into bbh/.")
        # A canary that is no part of the prompt stands above the rule.
        prompt = read_text(find_file(folder, f"{task}.txt")).rpartition(f"{_RULE}\n")[2].strip()
        for record in _records([task]):
            if record["input"].strip() in prompt:
                continue
            yield {**record, "worked": prompt}


def _target(record: Record) -> str:
    return Answer(record["target"], group=record["task"])


def register_bbh(what: str, tasks: tuple[str, ...], description: str) -> None:
    """Registers `bbh_v1.<what>` over some of the 27 tasks, with its k-shot and worked prompts.

    Args:
      what: end of the name.
      tasks: names of the data set; figures are given for each, and as their mean.
      description: one sentence for `dlm tasks`.
    """
    splits = {"test": functools.partial(_records, tasks)}
    for shots in SHOTS:
        register_task(
            f"bbh_v1.{what}" + (f"_{shots}_shot" if shots else ""),
            splits=with_demonstrations(
                splits, splits["test"], shots, identity="{input}", group="{task}"
            ),
            inputs=few_shot_prompt(QUESTION, " {target}"),
            targets=_target,
            metrics=(exact_match,),
            evaluation_only=True,
            description=f"{description}, {shots} demonstrations, for evaluation only.",
        )
    register_task(
        f"bbh_v1.{what}_cot",
        splits={"test": functools.partial(_worked_records, tasks)},
        inputs="{worked}\n\n" + QUESTION + " Let's think step by step.",
        targets=_target,
        metrics=(final_answer,),
        evaluation_only=True,
        description=f"{description}, worked demonstrations of its authors, for evaluation only.",
    )


for _task in TASKS:
    register_bbh(_task, (_task,), f"BIG-Bench Hard, {_task.replace('_', ' ')}")
register_bbh("all", TASKS, "BIG-Bench Hard, all 27 tasks")
register_bbh("nlp", NLP_TASKS, "BIG-Bench Hard, its 12 tasks about language")
