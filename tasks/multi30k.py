"""Multi30k image captions (Elliott et al. 2016, arXiv 1605.00459), translated six ways.

Read from the folder `multi30k` under DLM_DATA_DIR: `train.de`, `val.de`, `test_2016_flickr.de`,
`test_2017_flickr.de` and the same for `en` and `fr`, each gzipped or not. Prompts follow
arXiv 2308.12219, section 3.2.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from dlm_jax.data.files import data_folder, find_file, read_parallel
from dlm_jax.data.tasks import register_task
from dlm_jax.evaluation.metrics import bleu

LANGUAGES = {"en": "English", "de": "German", "fr": "French"}
SPLITS = {
    "train": "train",
    "validation": "val",
    "test": "test_2016_flickr",
    "test_2017": "test_2017_flickr",
}


def _pairs(stem: str, source: str, target: str) -> Iterator[dict[str, str]]:
    folder = data_folder("multi30k", "the task1/raw files of github.com/multi30k/dataset")
    files = [find_file(folder, f"{stem}.{language}") for language in (source, target)]
    for one, other in read_parallel(files):
        yield {"source": one, "target": other}


for _source, _target in itertools.permutations(LANGUAGES, 2):
    _from, _to = LANGUAGES[_source], LANGUAGES[_target]
    register_task(
        f"multi30k_v1.{_source}_{_target}",
        splits={
            split: functools.partial(_pairs, stem, _source, _target)
            for split, stem in SPLITS.items()
        },
        inputs=f"Translate the {_from} sentence to {_to}. {_from}: {{source}} {_to}:",
        targets="{target}",
        metrics=(bleu,),
        description=f"Multi30k image captions, {_from} to {_to}.",
    )

register_task(
    "multi30k_v1.en_de_text",
    splits={split: functools.partial(_pairs, stem, "en", "de") for split, stem in SPLITS.items()},
    targets="{source} {target}",
    description=(
        "Multi30k, an English caption and its German translation as one plain text: translation "
        "language modelling (Lample & Conneau 2019, arXiv 1901.07291)."
    ),
)
