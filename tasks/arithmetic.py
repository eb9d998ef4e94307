"""Arithmetic word problems of two and three steps with worked answers, made from templates.

An answer names the idea of each step, then its equation with its result, and ends in `the answer is
N.`; it carries the graph of what builds on what (`Answer.graph`), as the analysis of the order in
which answers are written needs it (arXiv 2308.12219, figure 6). All text is lower-case words,
digits and signs that an uncased vocabulary can give back.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence

from dlm_jax.data.tasks import Record, register_mixture, register_task
from dlm_jax.evaluation.answers import Answer
from dlm_jax.evaluation.dependency_graph import DependencyGraph
from dlm_jax.evaluation.metrics import equations_correct, numeric_answer

TRAIN_EXAMPLES = 20_000
HELD_OUT_EXAMPLES = 500

NAMES = ("anna", "ben", "clara", "david", "emma", "frank", "grace", "henry", "julia", "peter")
THINGS = ("apples", "books", "coins", "cards", "eggs", "flowers", "marbles", "pens", "shells")
LARGEST_QUANTITY = 12
_TENTHS = {"validation": 0, "test": 1}  # of all questions; the others are for training


@dataclasses.dataclass(frozen=True)
class Template:
    """A story and how it is solved.

    Attributes:
      question: with `{name}`, `{other}`, `{things}` and the quantities `{a}`, `{b}`, ….
      steps: (idea, expression) in order; an expression is made of two quantities or results
        `{r1}`, `{r2}` of earlier steps and one of the signs + - *.
    """

    question: str
    steps: Sequence[tuple[str, str]]


TWO_STEPS = (
    Template(
        "{name} has {a} {things} and buys {b} more. then {name} gives {c} of them away. "
        "how many {things} are left?",
        (("add the {things} that were bought", "{a} + {b}"),
         ("subtract the {things} given away", "{r1} - {c}")),
    ),
    Template(
        "a shop has {a} boxes with {b} {things} in each. it sells {c} {things}. "
        "how many {things} are left?",
        (("count the {things} in all boxes", "{a} * {b}"),
         ("subtract the {things} that were sold", "{r1} - {c}")),
    ),
    Template(
        "a bag holds {a} red {things} and {b} blue {things}. "
        "how many {things} are in {c} such bags?",
        (("add the {things} in one bag", "{a} + {b}"),
         ("multiply by the number of bags", "{r1} * {c}")),
    ),
    Template(
        "{name} reads {a} pages a day for {b} days and then {c} pages more. "
        "how many pages does {name} read?",
        (("count the pages of all days", "{a} * {b}"),
         ("add the other pages", "{r1} + {c}")),
    ),
    Template(
        "{name} had {a} {things}, lost {b} of them and then found {c}. "
        "how many {things} does {name} have now?",
        (("subtract the {things} that were lost", "{a} - {b}"),
         ("add the {things} that were found", "{r1} + {c}")),
    ),
)  # fmt: skip
THREE_STEPS = (
    Template(
        "a shop has {a} boxes with {b} {things} in each and {c} bags with {d} {things} in each. "
        "how many {things} does it have?",
        (("count the {things} in the boxes", "{a} * {b}"),
         ("count the {things} in the bags", "{c} * {d}"),
         ("add both", "{r1} + {r2}")),
    ),
    Template(
        "{name} has {a} {things} and buys {b} more. {other} has {c} {things} and loses {d}. "
        "how many {things} do they have together?",
        (("add the {things} that {name} bought", "{a} + {b}"),
         ("subtract the {things} that {other} lost", "{c} - {d}"),
         ("add both", "{r1} + {r2}")),
    ),
    Template(
        "{name} picks {a} {things} a day for {b} days, gives {c} away and then finds {d} more. "
        "how many {things} does {name} have?",
        (("count the {things} of all days", "{a} * {b}"),
         ("subtract the {things} given away", "{r1} - {c}"),
         ("add the {things} that were found", "{r2} + {d}")),
    ),
    Template(
        "{name} has {a} {things} and {other} has {b} more than {name}. they give {c} of all their "
        "{things} away. how many {things} are left?",
        (("count the {things} of {other}", "{a} + {b}"),
         ("add the {things} of {name}", "{r1} + {a}"),
         ("subtract the {things} given away", "{r2} - {c}")),
    ),
    Template(
        "{name} reads {a} pages on monday, {b} more than that on tuesday, and on sunday {c} times "
        "as many as on tuesday. how many pages are read on tuesday and sunday together?",
        (("count the pages of tuesday", "{a} + {b}"),
         ("count the pages of sunday", "{r1} * {c}"),
         ("add both", "{r1} + {r2}")),
    ),
)  # fmt: skip

_STEP_PATTERN = (
    r"\s*(?P<idea_{n}>[^.=]*[^.=\s])\s*\."
    r"\s*(?P<equation_{n}>\d+\s*[-+*]\s*\d+)\s*=\s*(?P<result_{n}>-?\d+)\s*\."
)
_END_PATTERN = r"\s*the answer is\s+(?P<answer>-?\d+)\s*\.?\s*"


def graph_of(template: Template) -> DependencyGraph:
    """What builds on what in the worked answers of a template.

    An idea needs the question alone, an equation its idea and the results among its operands, a
    result its equation, and the answer the last result.
    """
    needs: dict[str, tuple[str, ...]] = {}
    pattern = ""
    for n, (_, expression) in enumerate(template.steps, start=1):
        pattern += _STEP_PATTERN.replace("{n}", str(n))
        operands = [f"result_{r}" for r in re.findall(r"\{r(\d)\}", expression)]
        needs[f"idea_{n}"] = ()
        needs[f"equation_{n}"] = (f"idea_{n}", *operands)
        needs[f"result_{n}"] = (f"equation_{n}",)
    return DependencyGraph(
        pattern + _END_PATTERN, {**needs, "answer": (f"result_{len(template.steps)}",)}
    )


_GRAPHS = {template: graph_of(template) for template in (*TWO_STEPS, *THREE_STEPS)}


def problem(templates: Sequence[Template], seed: int, index: int) -> Record:
    """Returns the question, the worked answer and the template number `index` of a seed.

    Every result is positive. The same arguments give the same problem everywhere.
    """
    source = random.Random(f"arithmetic {seed} {index}")

    def one_of(options: Sequence[str] | Sequence[Template] | range) -> int:
        # `random` alone is promised to stay the same in later versions of Python.
        return int(source.random() * len(options))

    template = templates[one_of(templates)]
    name = one_of(NAMES)
    other = (name + 1 + one_of(NAMES[1:])) % len(NAMES)
    words: dict[str, str | int] = {
        "name": NAMES[name], "other": NAMES[other], "things": THINGS[one_of(THINGS)]
    }  # fmt: skip
    while True:
        quantities = range(2, LARGEST_QUANTITY + 1)
        drawn = {letter: quantities[one_of(quantities)] for letter in "abcd"}
        worked = _worked(template, {**words, **drawn})
        if worked is not None:
            question = template.question.format_map({**words, **drawn})
            return {"question": question, "worked": worked, "template": template}


def _worked(template: Template, values: dict[str, str | int]) -> str | None:
    """The worked answer, or None if a result would not be positive."""
    lines = []
    result = 0
    for n, (idea, expression) in enumerate(template.steps, start=1):
        equation = expression.format_map(values)
        left, sign, right = equation.split()
        a, b = int(left), int(right)
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        if result < 1:
            return None
        values[f"r{n}"] = result
        lines.append(f"{idea.format_map(values)}. {equation} = {result}.")
    return " ".join([*lines, f"the answer is {result}."])


def split_of(question: str) -> str:
    """The split that a question belongs to: it is decided by its text, so none is in two."""
    digest = hashlib.sha256(question.encode()).digest()
    tenth = int.from_bytes(digest[:8], "big") % 10
    return next((split for split, own in _TENTHS.items() if own == tenth), "train")


def problems(
    templates: Sequence[Template], split: str, count: int, *, seed: int = 0
) -> Iterator[Record]:
    """Yields `count` different problems of a split, in the order of their index."""
    seen: set[str] = set()
    for index in itertools.count():
        if len(seen) == count:
            return
        found = problem(templates, seed, index)
        question = found["question"]
        if question not in seen and split_of(question) == split:
            seen.add(question)
            yield found


def _target(record: Record) -> str:
    return Answer(record["worked"], graph=_GRAPHS[record["template"]])


def _register(name: str, templates: Sequence[Template], steps: str) -> None:
    sizes = {"train": TRAIN_EXAMPLES, "validation": HELD_OUT_EXAMPLES, "test": HELD_OUT_EXAMPLES}
    register_task(
        name,
        splits={
            split: functools.partial(problems, templates, split, count)
            for split, count in sizes.items()
        },
        inputs="{question}",
        targets=_target,
        metrics=(numeric_answer, equations_correct),
        description=f"Word problems of {steps} steps with worked answers, from templates.",
    )


_register("arithmetic_v1.two_steps", TWO_STEPS, "two")
_register("arithmetic_v1.three_steps", THREE_STEPS, "three")
register_mixture(
    "arithmetic_v1.mixture", {"arithmetic_v1.two_steps": 1.0, "arithmetic_v1.three_steps": 1.0}
)
