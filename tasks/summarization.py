"""Summarisation: Gigaword headlines, 10,000 of them, and XSum.

Gigaword (Rush et al. 2015) and XSum (Narayan et al. 2018) come from TensorFlow Datasets.
Gigaword-10K is the low-resource set of the LGEB benchmark: the folder `gigaword_10k` under
DLM_DATA_DIR holds `train.src`, `train.tgt` (10,000 lines each) and the same for `dev` and `test`,
gzipped or not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from dlm_jax.data.files import data_folder, find_file, read_parallel
from dlm_jax.data.tasks import register_task
from dlm_jax.data.tfds_records import tfds_records
from dlm_jax.evaluation.metrics import rouge

GIGAWORD = "gigaword:1.2.0"
XSUM = "xsum:1.1.0"
GIGAWORD_PROMPT = "Summarize the following sentence. Sentence: {document} Summary:"
XSUM_PROMPT = "Summarize the following article in one sentence. Article: {document} Summary:"


def _gigaword_10k(stem: str) -> Iterator[dict[str, str]]:
    folder = data_folder("gigaword_10k", "train, dev and test .src and .tgt of LGEB's Gigaword-10K")
    files = [find_file(folder, f"{stem}.{side}") for side in ("src", "tgt")]
    for document, summary in read_parallel(files):
        yield {"document": document, "summary": summary}


for _name, _dataset, _prompt, _description in (
    ("gigaword_v1.headline", GIGAWORD, GIGAWORD_PROMPT, "First sentence to headline, Gigaword."),
    ("xsum_v1.summary", XSUM, XSUM_PROMPT, "BBC article to its one-sentence summary, XSum."),
):
    register_task(
        _name,
        splits={
            split: functools.partial(tfds_records, _dataset, split)
            for split in ("train", "validation", "test")
        },
        inputs=_prompt,
        targets="{summary}",
        metrics=(rouge,),
        description=_description,
    )
register_task(
    "gigaword_10k_v1.headline",
    splits={
        split: functools.partial(_gigaword_10k, stem)
        for split, stem in (("train", "train"), ("validation", "dev"), ("test", "test"))
    },
    inputs=GIGAWORD_PROMPT,
    targets="{summary}",
    metrics=(rouge,),
    description="Gigaword headlines learnt from 10,000 examples.",
)
