"""The plots of the page, small PNG files beside the results."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.claims.tables import Document, figure, select
from dlm_jax.evaluation import figures as style


def _points(axes: Any, places: list[float], pairs: list[tuple[float, float]], **look: Any) -> None:
    errors = [1.96 * error if math.isfinite(error) else 0.0 for _, error in pairs]
    axes.errorbar(places, [v for v, _ in pairs], yerr=errors, capsize=2, markersize=4, **look)


def _look(index: int, label: str) -> dict[str, Any]:
    return {"color": style.SERIES_COLORS[index], "marker": style.MARKERS[index], "label": label}


def _scale(axes: Any, places: list[float], label: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(places, [style.tick_text(float(f"{place:.3g}")) for place in places])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(label)


def sizes(document: Document) -> Any:
    """NELBO and BLEU against parameters."""
    drawing, panels = style.new_panels(2, 2.6)
    steps = max(cell["steps"] for cell in document["sweeps"]["bleu"])
    for axes, sweep, wanted in zip(panels, ("nelbo", "bleu"), ({}, {"steps": steps})):
        cells = select(document["sweeps"][sweep], task="multi30k_v1.en_de", **wanted)
        places = [cell["parameters"] for cell in cells]
        _points(axes, places, [figure(cell, sweep) for cell in cells], **_look(0, "en→de"))
        _scale(axes, places, "parameters")
        axes.set_title(sweep.upper())
        axes.set_ylabel("nats/token" if sweep == "nelbo" else "BLEU")
    return drawing


def instructions(document: Document) -> Any:
    """Mean accuracy on unseen tasks against the number of tasks."""
    drawing, [axes] = style.new_panels(1, 2.6)
    cells = document["sweeps"]["accuracy"]
    for index, shot in enumerate(("zero-shot", "two-shot")):
        places, pairs = [], []
        for name, model in document["models"].items():
            found = [
                figure(cell, "exact_match")
                for cell in select(cells, model=model["folder"])
                if cell["task"].endswith("_2_shot") == (shot == "two-shot")
            ]
            if not name[0].isdigit():
                continue
            places.append(float(name.split()[0]))
            error = math.sqrt(sum(error**2 for _, error in found)) / len(found)
            pairs.append((sum(value for value, _ in found) / len(found), error))
        _points(axes, places, pairs, **_look(index, shot))
    _scale(axes, places, "tasks trained on")
    axes.set_ylabel("exact match, unseen tasks")
    axes.set_ylim(bottom=0.0)
    return drawing


def best(document: Document) -> Any:
    """Predicted against true length, and the reliability of the predictor's probability."""
    from dlm_jax.sampling.length_calibration import reliability

    drawing, (scatter, reliable) = style.new_panels(2, 2.8)
    true, predicted, confidences = zip(*document["lengths"])
    counts = collections.Counter(zip(true, predicted))
    scatter.scatter(
        [t for t, _ in counts],
        [p for _, p in counts],
        s=[8 * n for n in counts.values()],
        color=style.SERIES_COLORS[0],
        alpha=0.5,
        linewidths=0,
    )
    ends = [min(true), max(true)]
    scatter.plot(ends, ends, color=style.MUTED, linewidth=1)
    scatter.set_xlabel("true length, tokens")
    scatter.set_ylabel("predicted length")
    right = [t == p for t, p in zip(true, predicted)]
    bins = reliability(confidences, right)
    _points(
        reliable,
        [one.confidence for one in bins],
        [(one.accuracy, (one.accuracy * (1 - one.accuracy) / one.count) ** 0.5) for one in bins],
        **_look(1, "predicted length"),
    )
    reliable.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1)
    reliable.set_xlabel("probability of the likeliest length")
    reliable.set_ylabel("share that is right")
    return drawing


def steps(document: Document) -> Any:
    """BLEU against denoiser evaluations, and the autoregressive baseline as a point."""
    drawing, [axes] = style.new_panels(1, 3.0)
    cells = document["sweeps"]["steps"]
    for index, strategy in enumerate(dict.fromkeys(cell["strategy"] for cell in cells)):
        found = select(cells, strategy=strategy)
        places = [float(cell["steps"]) for cell in found]
        _points(axes, places, [figure(c, "bleu") for c in found], **_look(index, strategy))
    [baseline] = document["sweeps"]["steps_autoregressive"]
    evaluations = baseline["figures"]["nfe"]
    look = {**_look(4, "autoregressive, greedy"), "linestyle": "none"}
    _points(axes, [evaluations], [figure(baseline, "bleu")], **look)
    _scale(axes, places, "denoiser evaluations")
    axes.set_ylabel("BLEU")
    axes.set_ylim(bottom=0.0)
    return drawing


PLOTS: Mapping[str, Callable[[Document], Any]] = {
    "sizes": sizes,
    "best": best,
    "steps": steps,
    "instructions": instructions,
}


def write(documents: Mapping[str, Document], folder: Path) -> None:
    """Draws what there are documents for."""
    for name, draw in PLOTS.items():
        if name not in documents:
            continue
        with style.styled():
            drawing = draw(documents[name])
            handles, labels = drawing.axes[0].get_legend_handles_labels()
            drawing.legend(handles, labels, loc="outside upper left", ncols=2)
            drawing.savefig(folder / f"{name}.png", dpi=100, metadata={"Software": None})
