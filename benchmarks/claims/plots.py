"""The plots of the page, small PNG files beside the results."""

from __future__ import annotations

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
    """NELBO and BLEU against parameters, both directions."""
    drawing, panels = style.new_panels(2, 2.6)
    steps = max(cell["steps"] for cell in document["sweeps"]["bleu"])
    for axes, sweep, wanted in zip(panels, ("nelbo", "bleu"), ({}, {"steps": steps})):
        for index, task in enumerate(("multi30k_v1.en_de", "multi30k_v1.de_en")):
            cells = select(document["sweeps"][sweep], task=task, **wanted)
            places = [cell["parameters"] for cell in cells]
            look = _look(index, task.split(".")[1].replace("_", "→"))
            _points(axes, places, [figure(cell, sweep) for cell in cells], **look)
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
                if cell["task"].endswith("_2shot") == (shot == "two-shot")
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


PLOTS: Mapping[str, Callable[[Document], Any]] = {"sizes": sizes, "instructions": instructions}


def write(documents: Mapping[str, Document], folder: Path) -> None:
    """Draws what there are documents for."""
    for name, draw in PLOTS.items():
        if name not in documents:
            continue
        with style.styled():
            drawing = draw(documents[name])
            for axes in drawing.axes[:1]:
                drawing.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)
            drawing.savefig(folder / f"{name}.png", dpi=100, metadata={"Software": None})
