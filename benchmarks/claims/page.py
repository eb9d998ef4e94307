"""docs/claims.md and its plots, made from the JSON files alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.claims import plots, sections
from benchmarks.claims.experiments import EXPERIMENTS
from benchmarks.claims.tables import Document, commands, costs

_INTRODUCTION = """\
# The claims, measured again

What Ye et al. 2023 ([arXiv 2308.12219](https://arxiv.org/abs/2308.12219)) claim of diffusion
language models, measured on small real data, with one or two CPU cores and minutes for each run.
`python -m benchmarks.claims page` writes this page from the files `docs/claims/*.json`, which the
runs themselves write; no figure in it is typed in by hand.

These models are tiny and see few epochs or a part of one: the figures show directions, not what the
method can reach. `±` is one standard error, by bootstrap over examples (BLEU, accuracies) or by the
delta method over examples (NELBO). Each model was trained once, with one seed, so the spread
between seeds is in none of them. "Holds" means more than two standard errors.

Multi30k has 29,000 training captions, and `test` is test_2016_flickr. The pretrained encoder is
e5-small, its vocabulary cut to the pieces of the training captions. It comes without a head, so
that every translation model first recovers one by masked language modelling. Data go where
`DLM_DATA_DIR` says, e5-small where `DLM_MODELS_DIR` says. Models that several experiments start
from are trained once.
"""

Section = Callable[[Document], list[str]]
SECTIONS: Mapping[str, tuple[str, Section]] = {
    "pretraining": ("A pretrained encoder is a head start", sections.pretraining),
    "sizes": ("Larger models are better", sections.sizes),
    "best": (
        "Predicted lengths, a beam of them, and an autoregressive model of the same size",
        sections.best,
    ),
    "steps": ("A few denoiser evaluations do", sections.steps),
    "instructions": ("More instructions help unseen tasks", sections.instructions),
    "order": ("Answers are written in the order of their reasoning", sections.order),
}


def render(documents: Mapping[str, Document]) -> str:
    """The page; an experiment without a document is named as not run."""
    lines = _INTRODUCTION.splitlines() + [""]
    for name, (title, section) in SECTIONS.items():
        lines += [f"## {title}", ""]
        if name not in documents:
            lines += [
                f"Not measured. `python -m benchmarks.claims run {name}` is ready to run.",
                "",
            ]
            continue
        document = documents[name]
        lines += [*section(document), *_details(document)]
    return "\n".join(lines).rstrip() + "\n"


def _details(document: Document) -> list[str]:
    commit, cores = document["commit"], document["cores"]
    return [
        "<details><summary>Runs and commands</summary>",
        "",
        *costs(document),
        *commands(document),
        f"Measured at commit `{commit}` on {cores} CPU core{'s' * (cores > 1)}; figures: "
        f"[`claims/{document['experiment']}.json`](claims/{document['experiment']}.json).",
        "",
        "</details>",
        "",
    ]


def read(results: Path) -> dict[str, Document]:
    """The documents of the experiments that have one."""
    files = {name: results / f"{name}.json" for name in EXPERIMENTS}
    return {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }


def write_page(results: Path, page: Path) -> Path:
    """Writes the page and its plots."""
    documents = read(results)
    page.write_text(render(documents), encoding="utf-8")
    plots.write(documents, results)
    return page
