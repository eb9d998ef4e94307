"""Instruction collections: Flan 2021 (Wei et al. 2022) and Flan 2022 (Longpre et al. 2023).

Flan 2022 is read from the folder `flan_2022` under DLM_DATA_DIR, thirteen files of JSON lines of
the Hugging Face data set SirNeural/flan_v2 (`flan_fs_opt_train.jsonl` is the concatenation of its
parts), mixed at the rates of arXiv 2308.12219. Flan 2021 is read from `flan_2021/train`,
`flan_2021/validation` and `flan_2021/test`, files of JSON lines of Muennighoff/flan. All gzipped or
not; their own `inputs` and `targets` are the prompts and answers, without another wrapper.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from dlm_jax.data.files import data_folder, read_json_lines
from dlm_jax.data.json_lines import register_json_lines
from dlm_jax.data.tasks import register_mixture, register_task
from dlm_jax.errors import UserError
from dlm_jax.evaluation.metrics import exact_match, rouge

# Rate of each file, by its name without `_train.jsonl` (scripts/flan_2022_ratio.json of the
# official code); .40 Flan 2021, .32 T0, .20 Natural Instructions, .05 reasoning, .03 dialogue.
FLAN_2022_RATES = {
    "flan_fs_noopt": 0.1,
    "flan_fs_opt": 0.1,
    "flan_zs_noopt": 0.1,
    "flan_zs_opt": 0.1,
    "t0_fs_noopt": 0.106,
    "t0_zs_noopt": 0.107,
    "t0_zs_opt": 0.107,
    "niv2_fs_opt": 0.1,
    "niv2_zs_opt": 0.1,
    "cot_fs_opt": 0.025,
    "cot_zs_opt": 0.025,
    "dialog_fs_opt": 0.015,
    "dialog_zs_opt": 0.015,
}
_CONTENTS_2022 = "the *_train.jsonl files of the Hugging Face data set SirNeural/flan_v2"
_CONTENTS_2021 = "the folders train, validation and test of the Hugging Face set Muennighoff/flan"

_GERMAN = re.compile(r"_(?:deen|ende|de_en|en_de)(?:_|\b)|german", re.IGNORECASE)
_GERMAN_WORD = re.compile(r"\bGerman\b|\bDeutsch\b")


def _flan_2021(split: str, german: bool) -> Iterator[dict[str, Any]]:
    folder = data_folder("flan_2021", _CONTENTS_2021) / split
    files = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])
    if not files:
        raise UserError(f"{folder} holds no .jsonl files: put {_CONTENTS_2021} there.")
    for file in files:
        if not german and _GERMAN.search(file.name):
            continue
        for record in read_json_lines(file):
            if german or not _is_german(record):
                yield record


def _is_german(record: dict[str, Any]) -> bool:
    """Whether an example names the German language, as every translation prompt of Flan does."""
    return any(_GERMAN_WORD.search(str(record.get(key, ""))) for key in ("inputs", "targets"))


for _file in FLAN_2022_RATES:
    register_json_lines(
        f"flan2022_v1.{_file}",
        {"train": f"{_file}_train.jsonl"},
        functools.partial(data_folder, "flan_2022", _CONTENTS_2022),
        metrics=(exact_match, rouge),
        description=f"Flan 2022, file {_file}.",
    )
register_mixture(
    "flan2022_v1.mixture",
    {f"flan2022_v1.{_file}": rate for _file, rate in FLAN_2022_RATES.items()},
)
for _name, _with_german, _description in (
    ("flan2021_v1.all", True, "Flan 2021, all of its tasks in proportion to their size."),
    ("flan2021_v1.no_german", False, "Flan 2021 without examples that translate or name German."),
):
    register_task(
        _name,
        splits={
            split: functools.partial(_flan_2021, split, _with_german)
            for split in ("train", "validation", "test")
        },
        inputs="{inputs}",
        targets="{targets}",
        metrics=(exact_match, rouge),
        description=_description,
    )
