"""What the page says of each experiment, decided by its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.claims.tables import (
    Cell,
    Document,
    figure,
    minutes,
    number,
    select,
    shown,
    standard_errors,
    table,
    verdict,
)

_SURE = 2.0  # standard errors
_PAPERS_SAMPLER = "reparam-uncond-deterministic-cosine"
_TRAINED = "multi30k_v1.en_de"
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
    sampler = cell["strategy"].replace("auto", _PAPERS_SAMPLER)
    bleu = "BLEU, oracle length"
    difference, error = nelbo["difference"]
    text = (
        f"NELBO, random minus pretrained, paired by example: "
        f"{standard_errors(difference, error)} nats/token."
    )
    return [
        "The same encoder (12 layers of width 384), the same masked language modelling and then "
        "the same diffusive finetuning on Multi30k en→de: once from the weights of e5-small, once "
        "from random ones. Data, order, noise and steps are equal, and so is the learning rate, "
        "which was tuned for neither.",
        "",
        *table(["weights", "NELBO, nats/token", bleu], rows),
        f"NELBO on {nelbo['examples']} sentences of test ({number(nelbo['tokens'])} tokens, "
        f"{nelbo['draws']} draws each); BLEU on {number(cell['figures']['n'])} with "
        f"{cell['steps']} denoiser evaluations, `{sampler}`.",
        "",
        *verdict(_decided(difference, error), text),
    ]


def sizes(document: Document) -> list[str]:
    """NELBO and BLEU against parameters."""
    bleu, nelbo = (dict(_by_model(document, sweep)) for sweep in ("bleu", "nelbo"))
    counts = sorted({cell["steps"] for cell in document["sweeps"]["bleu"]})
    header, rows = ["model", "parameters", "NELBO en→de"], []
    depths = [str(model["layers"]) for model in document["models"].values()]
    for task in _DIRECTIONS:
        header += [f"BLEU {_DIRECTIONS[task]}, {count} steps" for count in counts]
    for name, cells in bleu.items():
        row = [name, number(cells[0]["parameters"])]
        [likelihood] = nelbo[name]
        row.append(shown(figure(likelihood, "nelbo")))
        for task in _DIRECTIONS:
            for count in counts:
                [cell] = select(cells, task=task, steps=count)
                row.append(shown(figure(cell, "bleu")))
        rows.append(row)
    return [
        f"The lowest {', '.join(depths[:-1])} and all {depths[-1]} layers of the encoder after its "
        "masked language modelling, "
        "finetuned on Multi30k en→de with the same data, noise and steps. None was ever trained to "
        "translate back: de→en shows what a task that was not asked for gives.",
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
            [
                [figure(c, "bleu") for c in select(bleu[n], steps=counts[-1], task=_TRAINED)]
                for n in bleu
            ],
            1,
        ),
        *_killed(document),
    ]


def _trend(name: str, models: Sequence[Sequence[tuple[float, float]]], sign: int) -> list[str]:
    """Whether larger models are better: each than the next smaller, and the largest surely."""
    values = [pair for [pair] in models]
    better = all(sign * (after[0] - before[0]) > 0 for before, after in zip(values, values[1:]))
    (first, error), (last, other) = values[0], values[-1]
    gain, spread = last - first, _spread(error, other)
    sure = _decided(sign * gain, spread)
    text = (
        f"{name}: {'every' if better else 'not every'} larger model is better; from the smallest "
        f"to the largest {standard_errors(gain, spread)}."
    )
    return verdict(None if sure and not better else sure, text)


def _killed(document: Document) -> list[str]:
    killed = document["killed"]
    return [
        f"The sweep of BLEU has {killed['cells']} cells. It was killed ({killed['signal']}) when "
        f"{killed['finished_before_the_kill']} were finished, and started again by the same "
        f"command: {killed['written_again']} of these were computed again, and the other "
        f"{killed['computed_after_the_restart']} followed.",
        "",
    ]


_DECODINGS = {
    ("best", "fixed"): "one length for all",
    ("best", "predicted"): "the likeliest predicted length",
    ("best_beam", 5): "a beam of 5 predicted lengths",
    ("best", "oracle"): "the oracle length",
    ("best_autoregressive", 0.0): "the autoregressive model, greedy",
}


def _decoded(document: Document) -> list[str]:
    """The table of the cells in the order above, and how BLEU is computed."""
    rows = []
    for (sweep, setting), name in _DECODINGS.items():
        for cell in document["sweeps"].get(sweep, ()):
            if setting in cell.values():
                figures = [figure(cell, one) for one in ("bleu", "bleu_lowercase", "nfe")]
                rows.append([name, *map(shown, figures), minutes(cell["seconds"])])
                n = cell["figures"]["n"]
    return [
        *table(["decoding", "BLEU", "BLEU, lower-cased", "evaluations", "minutes"], rows),
        f"{number(n)} sentences of test; BLEU is `{document['signature']}`, lower-cased with "
        "`case:lc`. Published small autoregressive Transformers, trained to the end, reach 38 to "
        "41 (tokenised).",
        "",
    ]


def _comparisons(document: Document) -> list[str]:
    """A verdict on each pair of cells, the second of which is claimed to be the better one."""
    lines = []
    for pair in document["compared"]:
        first, second = (_DECODINGS[_place(pair[side])] for side in ("first", "second"))
        difference, error = pair["difference"], pair["standard_error"]
        lines += verdict(
            _decided(difference, error),
            f"{second.capitalize()} ≥ {first}: {standard_errors(difference, error)} BLEU, paired "
            "by sentence.",
        )
    return lines


def best(document: Document) -> list[str]:
    """Lengths of the best model."""
    [predicted] = select(document["sweeps"]["best"], canvas="predicted")
    steps = document["models"]["diffusion"]["steps"]
    return [
        "The warmed-up encoder of the first experiment, all 12 layers, finetuned on Multi30k "
        f"en→de for longer ({number(steps)} steps), with a length predictor on its frozen "
        f"features; {predicted['steps']} denoiser evaluations. Beside it an autoregressive model "
        "of the same size: it starts from the same weights, has causal attention, and sees the "
        "same data for the same steps.",
        "",
        *_decoded(document),
        *_comparisons(document),
        *_calibration(document, predicted["figures"]),
    ]


def _place(saved: Sequence[str | float]) -> tuple[str, str | float]:
    return str(saved[0]), saved[1]


def _spread(first: float, second: float) -> float:
    """Standard error of a difference; a BLEU of 0 has none of its own."""
    return math.hypot(*(error for error in (first, second) if math.isfinite(error)))


def _decided(difference: float, error: float) -> bool | None:
    """True or False where the difference is more than its noise."""
    return None if abs(difference) <= _SURE * error else difference > 0


def _calibration(document: Document, figures: Mapping[str, float]) -> list[str]:
    exact, close = (figures[f"length_{name}"] for name in ("exact", "within_2"))
    return [
        f"The likeliest length is right for {exact:.0%} of the sentences and at most "
        f"two tokens off for {close:.0%}; it is {figures['length_mae']:.1f} tokens off on "
        f"average, its correlation with the true one is {figures['length_correlation']:.2f}, and "
        f"the expected calibration error of its probability {figures['length_ece']:.2f}.",
        "",
        *image("best", "Predicted against true length, and how often it is right"),
    ]


def steps(document: Document) -> list[str]:
    """Quality against denoiser evaluations, three samplers."""
    cells = document["sweeps"]["steps"]
    strategies = list(dict.fromkeys(cell["strategy"] for cell in cells))
    counts = sorted({cell["steps"] for cell in cells})
    rows = []
    for strategy in strategies:
        found = [
            figure(one, "bleu") for n in counts for one in select(cells, strategy=strategy, steps=n)
        ]
        rows.append([f"`{strategy}`", *map(shown, found)])
    [baseline] = document["sweeps"]["steps_autoregressive"]
    lines = [
        f"The diffusion model of {document['models']['diffusion']['layers']} layers on its "
        "likeliest predicted length, with three samplers.",
        "",
        *table(["BLEU after so many evaluations", *map(str, counts)], rows),
        f"{number(baseline['figures']['n'])} sentences of test. The autoregressive baseline of the "
        f"same size and steps reaches {shown(figure(baseline, 'bleu'))} with "
        f"{baseline['figures']['nfe']:.1f} evaluations, one for each token.",
        "",
        *image("steps", "BLEU against denoiser evaluations"),
    ]
    for strategy in strategies:
        one, *_, last = [figure(c, "bleu") for c in select(cells, strategy=strategy)]
        best = max(figure(c, "bleu")[0] for c in select(cells, strategy=strategy))
        enough = next(
            c["steps"]
            for c in sorted(select(cells, strategy=strategy), key=lambda c: c["steps"])
            if figure(c, "bleu")[0] + figure(c, "bleu")[1] >= best
        )
        gain, error = last[0] - one[0], _spread(one[1], last[1])
        lines += verdict(
            _decided(gain, error),
            f"`{strategy}`: from {counts[0]} to {counts[-1]} evaluations "
            f"{standard_errors(gain, error)} BLEU; {enough} are within a standard error of its "
            "best.",
        )
    return lines


def instructions(document: Document) -> list[str]:
    """Accuracy on tasks that were never trained on, against how many were."""
    tasks = sorted({cell["task"] for cell in document["sweeps"]["accuracy"]})
    shots = {
        "zero-shot": [task for task in tasks if not task.endswith("_2_shot")],
        "two-shot": [task for task in tasks if task.endswith("_2_shot")],
    }
    models = dict(_by_model(document, "accuracy"))
    _, *trained = models.values()
    lines = [
        "A BERT-tiny (2 layers of width 128), adapted to diffusion on prose, then finetuned on 1, "
        "2, 4 or 8 tasks of reasoning-gym for equally many steps, and asked four tasks that are in "
        "none of these mixtures. Answers of one and of two tokens are tried; an answer is right "
        "when it equals the reference.",
        "",
    ]
    means: dict[str, list[tuple[float, float]]] = {}
    averages: dict[str, float] = {}
    gainers: dict[str, str] = {}
    for shot, names in shots.items():
        header = [shot, *(name.split(".")[1].removesuffix("_2_shot") for name in names), "mean"]
        rows = []
        for model, cells in models.items():
            found = [figure(one, "exact_match") for n in names for one in select(cells, task=n)]
            mean = sum(value for value, _ in found) / len(found)
            error = math.sqrt(sum(error**2 for _, error in found)) / len(found)
            means.setdefault(shot, []).append((mean, error))
            rows.append([model, *map(shown, found), shown((mean, error))])
        gainers[shot] = _largest_gain(names, trained[0], trained[-1])
        some = next(iter(models.values()))
        majority = [one["majority"] for n in names for one in select(some, task=n)]
        averages[shot] = average = sum(majority) / len(majority)
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
        gain, spread = most - fewest, _spread(error, other)
        side = "above" if most > averages[shot] else "below"
        lines += verdict(
            _decided(gain, spread),
            f"{shot}: from 1 to 8 tasks the mean changes by {standard_errors(gain, spread)}, "
            f"most of it on `{gainers[shot]}`; with 8 it is {side} what always giving the most "
            "frequent answer would reach.",
        )
    return lines


def _largest_gain(tasks: Sequence[str], before: Sequence[Cell], after: Sequence[Cell]) -> str:
    """The task whose accuracy rises most."""

    def gain(task: str) -> float:
        first, last = (select(cells, task=task)[0] for cells in (before, after))
        return figure(last, "exact_match")[0] - figure(first, "exact_match")[0]

    return max(tasks, key=gain)


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
    papers = [cell for cell in free if cell["strategy"] == _PAPERS_SAMPLER]
    edges = [name for name in papers[0]["figures"] if name.startswith("early/")]
    lines += table(
        ["written before what it builds on", *(f"{cell['steps']} steps" for cell in papers)],
        [
            [name.removeprefix("early/").replace("_", " ")]
            + [_with_interval(cell["figures"], name) for cell in papers]
            for name in edges
            if not name.endswith(("_se", "_low", "_high"))
        ],
    )
    for cell in papers:
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
