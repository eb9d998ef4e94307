"""Arithmetic word problems: right, apart in their splits, their graphs fit their answers."""

from __future__ import annotations

import re

import pytest
from dlm_jax.tasks import arithmetic

from dlm_jax.data.tasks import get_task
from dlm_jax.evaluation.metrics import equations_correct, numeric_answer

NAMES = ("arithmetic_v1.two_steps", "arithmetic_v1.three_steps")


@pytest.mark.parametrize("name", NAMES)
def test_no_question_is_in_two_splits(name: str) -> None:
    splits = {
        split: [example.inputs for example in get_task(name).examples(split)]
        for split in ("train", "validation", "test")
    }
    sizes = {split: len(set(questions)) for split, questions in splits.items()}
    assert sizes == {"train": 20_000, "validation": 500, "test": 500}
    assert sum(sizes.values()) == len(set().union(*splits.values()))


@pytest.mark.parametrize("name", NAMES)
def test_answers_follow_from_their_questions(name: str) -> None:
    """Every step is computed anew, from the question's numbers and earlier results alone."""
    for example in get_task(name).examples("test"):
        known = [int(number) for number in re.findall(r"\d+", example.inputs)]
        found = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)\.", example.targets)
        assert len(found) == (2 if "two" in name else 3)
        for left, sign, right, result in found:
            assert int(left) in known and int(right) in known
            assert eval(f"{left} {sign} {right}") == int(result) > 0
            known.append(int(result))
        assert example.targets.endswith(f". the answer is {known[-1]}.")
        assert re.fullmatch(r"[a-z0-9 ,.?]+", example.inputs)
        assert re.fullmatch(r"[a-z0-9 .=+*-]+", example.targets)


@pytest.mark.parametrize("name", NAMES)
def test_graphs_read_their_answers_and_text_is_a_topological_order(name: str) -> None:
    shapes = set()
    for example in get_task(name).examples("validation"):
        graph = example.targets.graph
        spans = graph.spans(example.targets)
        # Also as a tokenizer gives it back that sets signs and words apart.
        apart = re.sub(r"([.=+*-])", r" \1 ", example.targets)
        assert spans is not None and graph.spans(apart) is not None
        begins = {node: begin for node, (begin, _) in spans.items()}
        assert graph.ordered(begins, strict=True)
        for node, (begin, end) in spans.items():
            text = example.targets[begin:end]
            assert text == text.strip() != "", node
        # An equation needs the result of an earlier step exactly where it uses one.
        numbers = set(re.findall(r"\d+", example.inputs))
        for node in ("equation_2", "equation_3"):
            for parent in graph.needs.get(node, ())[1:]:
                begin, end = spans[parent]
                a, b = spans[node]
                assert example.targets[begin:end] in example.targets[a:b].split()
            if node in spans and len(graph.needs[node]) == 1:
                a, b = spans[node]
                assert set(re.findall(r"\d+", example.targets[a:b])) <= numbers
        shapes.add(tuple(sorted(graph.edges)))
    assert len(shapes) == (1 if "two" in name else 3)


def test_a_problem_is_decided_by_seed_and_index() -> None:
    fixed = arithmetic.problem(arithmetic.TWO_STEPS, 0, 0)
    assert fixed == arithmetic.problem(arithmetic.TWO_STEPS, 0, 0)
    assert fixed["question"] == (
        "emma reads 6 pages a day for 5 days and then 3 pages more. how many pages does emma read?"
    )
    questions = {arithmetic.problem(arithmetic.TWO_STEPS, 1, n)["question"] for n in range(50)}
    assert len(questions) == 50
    first = [record["question"] for record in arithmetic.problems(arithmetic.TWO_STEPS, "test", 9)]
    more = [record["question"] for record in arithmetic.problems(arithmetic.TWO_STEPS, "test", 12)]
    assert more[:9] == first


def test_answers_are_verifiable() -> None:
    target = ["add. 2 + 3 = 5. double. 5 * 2 = 10. the answer is 10."]
    wrong_step = ["add. 2 + 3 = 6. double. 6 * 2 = 12. the answer is 12."]
    short = ["double. 5 * 2 = 10. the answer is 10."]
    other = ["add. 1+4=5. double. 2 * 5 = 10 . the answer is 10"]
    assert equations_correct(target, other) == {"equations_correct": 1.0}
    assert equations_correct(target, wrong_step) == {"equations_correct": 0.0}
    assert equations_correct(target, short) == {"equations_correct": 0.0}
    assert equations_correct(["7 - 9 = -2"], ["8 / 2 = 4"]) == {"equations_correct": 1.0}
    assert equations_correct(["no equation"], ["none"]) == {"equations_correct": 0.0}
    assert numeric_answer(target, short) == {"numeric_answer": 1.0}
