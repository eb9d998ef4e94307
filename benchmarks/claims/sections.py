"""What the page says of each experiment, decided by its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.claims.tables import (
    Cell,
    Document,
    figure,
    number,
    select,
    shown,
    standard_errors,
    table,
    verdict,
)

_SURE = 2.0  # standard errors
_PAPERS_SAMPLER = "reparam-uncond-deterministic-cosine"
_DIRECTIONS = {"multi30k_v1.en_de": "en→de", "multi30k_v1.de_en": "de→en"}


def image(name: str, description: str) -> list[str]:
    """A plot of the page."""
    return [f"![{description}](claims/{name}.png)", ""]


def _by_model(document: Document, sweep: str) -> list[tuple[str, list[Cell]]]:
    """Names of the models, each with its cells of a sweep."""
    cells = document["sweeps"][sweep]
    return [
        (name, found)
        for name, model in document["models"].items()
        if (found := select(cells, model=model["folder"]))
    ]


def pretraining(document: Document) -> list[str]:
    """Pretrained against random weights at equal steps."""
    nelbo, rows = document["nelbo"], []
    for name, [cell] in _by_model(document, "bleu"):
        rows.append([name, shown(nelbo[name]), shown(figure(cell, "bleu"))])
    [cell, *_] = document["sweeps"]["bleu"]
    bleu = "BLEU, oracle length"
    difference, error = nelbo["difference"]
    text = (
        f"NELBO, random minus pretrained, paired by example: "
        f"{standard_errors(difference, error)} nats/token."
    )
    return [
        "The same encoder (12 layers of width 384), the same masked language modelling and then "
        "the same diffusive finetuning on Multi30k en→de: once from the weights of e5-small, once "
        "from random ones. Data, order, noise and steps are equal.",
        "",
        *table(["weights", "NELBO, nats/token", bleu], rows),
        f"NELBO on {nelbo['examples']} sentences of test ({number(nelbo['tokens'])} tokens, "
        f"{nelbo['draws']} draws each); BLEU on {number(cell['figures']['n'])} with "
        f"{cell['steps']} denoiser evaluations, `{cell['strategy']}`.",
        "",
        *verdict(difference > _SURE * error, text),
    ]


def sizes(document: Document) -> list[str]:
    """NELBO and BLEU against parameters."""
    bleu, nelbo = (dict(_by_model(document, sweep)) for sweep in ("bleu", "nelbo"))
    counts = sorted({cell["steps"] for cell in document["sweeps"]["bleu"]})
    header, rows = ["model", "parameters"], []
    for task in _DIRECTIONS:
        header.append(f"NELBO {_DIRECTIONS[task]}")
        header += [f"BLEU {_DIRECTIONS[task]}, {count} steps" for count in counts]
    for name, cells in bleu.items():
        row = [name, number(cells[0]["parameters"])]
        for task in _DIRECTIONS:
            [likelihood] = select(nelbo[name], task=task)
            row.append(shown(figure(likelihood, "nelbo")))
            for count in counts:
                [cell] = select(cells, task=task, steps=count)
                row.append(shown(figure(cell, "bleu")))
        rows.append(row)
    return [
        "The lowest 1, 2, 4 and 8 layers of e5-small, each with its own masked language modelling, "
        "then finetuned on both directions of Multi30k at once. Data and steps are equal.",
        "",
        *table(header, rows),
        f"{number(next(iter(bleu.values()))[0]['figures']['n'])} sentences of test a direction; "
        "BLEU with the reference's length. Most parameters of the small ones are the token table, "
        "which is as large for all.",
        "",
        *image("sizes", "NELBO and BLEU against parameters"),
        *_trend("NELBO", [[figure(c, "nelbo") for c in nelbo[name]] for name in nelbo], -1),
        *_trend(
            "BLEU",
            [[figure(c, "bleu") for c in select(bleu[n], steps=counts[-1])] for n in bleu],
            1,
        ),
        *_killed(document),
    ]


def _trend(name: str, models: Sequence[Sequence[tuple[float, float]]], sign: int) -> list[str]:
    """Whether every larger model is better in every column."""
    better = all(
        sign * (after[0] - before[0]) > 0
        for small, large in zip(models, models[1:])
        for before, after in zip(small, large)
    )
    gains = []
    for first, last in zip(models[0], models[-1]):
        error = math.hypot(first[1], last[1])
        gains.append(standard_errors(last[0] - first[0], error))
    sure = all(
        sign * (last[0] - first[0]) > _SURE * math.hypot(first[1], last[1])
        for first, last in zip(models[0], models[-1])
    )
    text = (
        f"{name}: {'every' if better else 'not every'} larger model is better; from the smallest "
        f"to the largest {' and '.join(gains)}."
    )
    return verdict(True if better and sure else None if sure else False, text)


def _killed(document: Document) -> list[str]:
    killed = document["killed"]
    return [
        f"The sweep of BLEU has {killed['cells']} cells. It was killed ({killed['signal']}) when "
        f"{killed['finished_before_the_kill']} were finished, and started again by the same "
        f"command: {killed['written_again']} of these were computed again, and the other "
        f"{killed['computed_after_the_restart']} followed.",
        "",
    ]


def instructions(document: Document) -> list[str]:
    """Accuracy on tasks that were never trained on, against how many were."""
    tasks = sorted({cell["task"] for cell in document["sweeps"]["accuracy"]})
    shots = {
        "zero-shot": [task for task in tasks if not task.endswith("_2shot")],
        "two-shot": [task for task in tasks if task.endswith("_2shot")],
    }
    models = dict(_by_model(document, "accuracy"))
    lines = [
        "A BERT-tiny (2 layers of width 128), adapted to diffusion on prose, then finetuned on 1, "
        "2, 4 or 8 tasks of reasoning-gym for equally many steps, and asked four tasks that are in "
        "none of these mixtures. Answers of one and of two tokens are tried; an answer is right "
        "when it equals the reference.",
        "",
    ]
    means: dict[str, list[tuple[float, float]]] = {}
    for shot, names in shots.items():
        header = [shot, *(name.split(".")[1].removesuffix("_2shot") for name in names), "mean"]
        rows = []
        for model, cells in models.items():
            found = [figure(one, "exact_match") for n in names for one in select(cells, task=n)]
            mean = sum(value for value, _ in found) / len(found)
            error = math.sqrt(sum(error**2 for _, error in found)) / len(found)
            means.setdefault(shot, []).append((mean, error))
            rows.append([model, *map(shown, found), shown((mean, error))])
        some = next(iter(models.values()))
        majority = [one["majority"] for n in names for one in select(some, task=n)]
        average = sum(majority) / len(majority)
        rows.append(
            ["*always the most frequent answer*", *map("{:.3f}".format, (*majority, average))]
        )
        lines += table(header, rows)
    examples = number(document["sweeps"]["accuracy"][0]["figures"]["n"])
    lines += [f"{examples} test questions of each task.", ""]
    lines += image(
        "instructions", "Accuracy on unseen tasks against the number of tasks trained on"
    )
    for shot, found in means.items():
        (fewest, error), (most, other) = found[1], found[-1]
        gain, spread = most - fewest, math.hypot(error, other)
        lines += verdict(
            True if gain > _SURE * spread else None if gain > -_SURE * spread else False,
            f"{shot}: from 1 to 8 tasks the mean changes by {standard_errors(gain, spread)}.",
        )
    return lines


def order(document: Document) -> list[str]:
    """Whether answers are written in the order of their reasoning, by sampler."""
    free, given = document["sweeps"]["order"], document["sweeps"]["left to right"]
    rows = []
    for cell in (*free, *given):
        figures = cell["figures"]
        steps = "one a token" if cell in given else str(cell["steps"])
        rows.append(
            [
                f"`{cell['strategy']}`",
                steps,
                shown(figure(cell, "numeric_answer")),
                number(figures["n"] * figures["answers_read"]),
                _with_interval(figures, "topological_share"),
                f"{figures['topological_share_chance']:.2g}",
                _with_interval(figures, "topological_share_right"),
                f"{figures['order_violations']:.1f}",
            ]
        )
    header = [
        "sampler",
        "steps",
        "right",
        "read",
        "in order",
        "by chance",
        "in order, of the right",
        "wrong pairs",
    ]
    lines = [
        "The paper marks by hand which ideas, equations and results of 30 worked answers appear "
        "before which, and finds 21 of them in an order in which nothing appears before what it "
        "builds on. Here a BERT-tiny (2 layers of width 128) is finetuned on word problems of two "
        "steps from templates, whose answers know what builds on what, and the traces are judged.",
        "",
        *table(header, rows),
        f"{number(free[0]['figures']['n'])} test questions. *Read* are the answers of the known "
        "form, the others cannot be judged; of these, *in order* is the share in which no span "
        "appears in an earlier step than one that it builds on, with Wilson's 95% interval. *By "
        "chance* is the same after dealing the steps of each answer to its tokens at random, "
        "exactly. *Wrong pairs* are those of an answer, of 18 that can be. What one step writes "
        "counts as in order, so that fewer steps leave fewer ways to be out of it.",
        "",
    ]
    for cell in free:
        if cell["strategy"] == _PAPERS_SAMPLER:
            lines += _mostly_in_order(cell["figures"], cell["steps"])
    return lines


def _with_interval(figures: Cell, name: str) -> str:
    if name not in figures:
        return "–"
    return f"{figures[name]:.2f} [{figures[f'{name}_low']:.2f}, {figures[f'{name}_high']:.2f}]"


def _mostly_in_order(figures: Cell, steps: int) -> list[str]:
    low, high = (figures[f"topological_share_{end}"] for end in ("low", "high"))
    often = "more often than" if low > figures["topological_share_chance"] else "as seldom as"
    return verdict(
        True if low > 0.5 else False if high < 0.5 else None,
        f"With the paper's sampler and {steps} steps {figures['topological_share']:.0%} of the "
        f"answers are written in order, {often} by chance.",
    )
