"""Translation: IWSLT14 German-English from prepared files and WMT14 German-English from TFDS.

IWSLT14 (Cettolo et al. 2014) is read from the folder `iwslt14` under DLM_DATA_DIR: `train.de`,
`valid.de`, `test.de` and the same for `en`, gzipped or not, one sentence a line, as fairseq's
`prepare-iwslt14.sh` writes them before BPE (160k, 7,283 and 6,750 pairs, lower-cased); detokenise
them first where BLEU shall be comparable with that of plain text.

Prompts follow arXiv 2308.12219: that of section 3.2 for models trained on the task, and for
`…_<k>_shot` that of its evaluation of instruction-tuned models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

from dlm_jax.data.few_shot import few_shot_prompt, with_demonstrations
from dlm_jax.data.files import data_folder, find_file, read_parallel
from dlm_jax.data.tasks import Metric, Record, register_task
from dlm_jax.data.tfds_records import tfds_records
from dlm_jax.evaluation.metrics import bleu

LANGUAGES = {"en": "English", "de": "German"}
SHOTS = (0, 1, 2, 3)
IWSLT14_SPLITS = {"train": "train", "validation": "valid", "test": "test"}
WMT14 = "wmt14_translate/de-en:1.0.0"

# The tokenisations of arXiv 2308.12219, footnote 9.
_bleu_international: Metric = functools.partial(bleu, tokenize="intl")


def _iwslt14(stem: str) -> Iterator[dict[str, str]]:
    folder = data_folder("iwslt14", "train, valid and test .de and .en of fairseq's preparation")
    files = [find_file(folder, f"{stem}.{language}") for language in LANGUAGES]
    for english, german in read_parallel(files):
        yield {"en": english, "de": german}


def register_translation(
    prefix: str,
    dataset: str,
    splits: Mapping[str, Callable[[], Iterator[Record]]],
    metric: Metric,
    demonstrations: str = "train",
) -> None:
    """Registers both directions of a German-English data set, and their k-shot prompts.

    Args:
      prefix: what the names begin with, `<dataset>_<version>`.
      dataset: name of the data set in the descriptions.
      splits: for each split a function that yields records of `de` and `en`.
      metric: judges the translations.
      demonstrations: split that they are drawn from; all of it is held in memory.
    """
    for source, target in (("de", "en"), ("en", "de")):
        origin, goal = LANGUAGES[source], LANGUAGES[target]
        register_task(
            f"{prefix}.{source}_{target}",
            splits=splits,
            inputs=f"Translate the {origin} sentence to {goal}. {origin}: {{{source}}} {goal}:",
            targets=f"{{{target}}}",
            metrics=(metric,),
            description=f"{dataset}, {origin} to {goal}.",
        )
        for shots in SHOTS:
            register_task(
                f"{prefix}.{source}_{target}_{shots}_shot",
                splits=with_demonstrations(
                    splits, splits[demonstrations], shots, identity=f"{{{source}}}"
                ),
                inputs=few_shot_prompt(
                    f"{origin}: {{{source}}} {goal}:",
                    f" {{{target}}}",
                    preamble=f"Translate the sentences into {goal}. ",
                    separator=" ",
                ),
                targets=f"{{{target}}}",
                metrics=(metric,),
                description=f"{dataset}, {origin} to {goal}, {shots} demonstrations.",
            )


register_translation(
    "iwslt14_v1",
    "IWSLT14 talks",
    {split: functools.partial(_iwslt14, stem) for split, stem in IWSLT14_SPLITS.items()},
    bleu,
)
# Its train split has 4.5 million pairs: too many for a pool of demonstrations.
register_translation(
    "wmt14_v1",
    "WMT14 news",
    {
        split: functools.partial(tfds_records, WMT14, split)
        for split in ("train", "validation", "test")
    },
    _bleu_international,
    demonstrations="validation",
)
