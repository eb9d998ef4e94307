"""How answers came about, step by step, as a page beside the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlm_jax.api import DiffusionLanguageModel
from dlm_jax.checkpoints.run_folder import RunFolder
from dlm_jax.sampling.trace_page import trace_html


def write_trace(
    model: DiffusionLanguageModel,
    run_dir: str | Path,
    prompts: Sequence[str],
    *,
    lengths: Sequence[int],
    **options: Any,
) -> Path:
    """Answers prompts and writes `trace.html` into the run folder.

    Args:
        model: the model.
        run_dir: run folder.
        prompts: texts to answer.
        lengths: candidate lengths in tokens; the best-scored one of each prompt is traced.
        **options: of `DiffusionLanguageModel.generate`, without `trace`.

    Returns:
        The path of the page.
    """
    chosen = [answer.length for answer in model.generate(prompts, length=list(lengths), **options)]
    ids = [[model.vocabulary.bos_id, *model.vocabulary.encode(prompt)] for prompt in prompts]
    model.generate_ids(ids, chosen, **options, trace=True)
    if model.trace is None:
        raise ValueError("no trace was kept")
    page = trace_html(
        model.trace,
        model.vocabulary.piece,
        rows=range(len(prompts)),
        row_titles=list(prompts),
        title="How the answers were written",
    )
    RunFolder(run_dir).write_text("trace.html", page)
    return Path(run_dir) / "trace.html"
