"""Demonstrations: the draw, its laws, and that it is one and the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dlm_jax.data.few_shot import DEMONSTRATIONS, draw, few_shot_prompt, with_demonstrations
from dlm_jax.errors import UserError

POOL = [{"q": f"question {n}", "a": str(n), "s": "odd" if n % 2 else "even"} for n in range(40)]


def demonstrated(shots: int, **options):
    options = {"identity": "{q}", **options}
    return list(with_demonstrations({"x": lambda: POOL}, lambda: POOL, shots, **options)["x"]())


def test_draws_are_distinct_even_and_never_the_example() -> None:
    names = [str(n) for n in range(10)]
    seen: Counter[int] = Counter()
    for number in range(2000):
        chosen = draw(f"example {number}", names, 3, seed=0)
        assert len({*chosen}) == 3
        seen.update(chosen)
        assert names.index("4") not in draw("4", names, 9, seed=number)
    # 6000 draws over 10 places: 600 each, with a standard deviation of about 20.
    assert all(500 < count < 700 for count in seen.values()) and len(seen) == 10
    assert draw("e", names, 3, 0) == draw("e", names, 3, 0) != draw("e", names, 3, 1)
    # Golden: the draw must not change from one release to the next.
    assert draw("an example", names, 4, seed=0) == GOLDEN
    with pytest.raises(ValueError, match="3 of 2"):
        draw("a", ["a", "b", "b", "c"], 3, 0)


GOLDEN = [7, 1, 5, 0]


def test_demonstrations_do_not_depend_on_neighbours_or_place() -> None:
    whole = demonstrated(4, group="{s}")
    alone = with_demonstrations(
        {"x": lambda: POOL[17:18]}, lambda: POOL, 4, identity="{q}", group="{s}"
    )
    assert next(iter(alone["x"]())) == whole[17]
    for record in whole:
        shown = record[DEMONSTRATIONS]
        assert record["q"] not in {one["q"] for one in shown}
        assert {one["s"] for one in shown} == {record["s"]} and len({o["q"] for o in shown}) == 4
    assert [r[DEMONSTRATIONS] for r in demonstrated(4, seed=1)] != [
        r[DEMONSTRATIONS] for r in whole
    ]


def test_the_same_question_in_other_letters_does_not_demonstrate_itself() -> None:
    pool = [{"q": "Who  is IT?", "a": "x"}, {"q": "Other?", "a": "y"}]
    asked = {"x": lambda: [{"q": "who is it?", "a": "x"}]}
    (record,) = with_demonstrations(asked, lambda: pool, 1, identity="{q}")["x"]()
    assert [one["q"] for one in record[DEMONSTRATIONS]] == ["Other?"]
    with pytest.raises(UserError, match="prompt of 2 demonstrations .* the pool holds 1"):
        list(with_demonstrations(asked, lambda: pool, 2, identity="{q}")["x"]())
    with pytest.raises(UserError, match="shots=-1"):
        with_demonstrations(asked, lambda: pool, -1, identity="{q}")


def test_in_order_takes_the_first_but_never_the_example() -> None:
    records = demonstrated(2, in_order=True)
    assert [one["a"] for one in records[9][DEMONSTRATIONS]] == ["0", "1"]
    assert [one["a"] for one in records[0][DEMONSTRATIONS]] == ["1", "2"]


def test_prompts_read_as_written() -> None:
    prompt = few_shot_prompt("Q: {q} A:", " {a}", preamble="About {s}. ", separator=" | ")
    assert prompt(demonstrated(0)[3]) == "About odd. Q: question 3 A:"
    record = demonstrated(2, in_order=True)[3]
    expected = "About odd. Q: question 0 A: 0 | Q: question 1 A: 1 | Q: question 3 A:"
    assert prompt(record) == expected


SCRIPT = """
import hashlib, itertools
import dlm_jax.tasks.bbh, dlm_jax.tasks.mmlu, dlm_jax.tasks.natural_instructions
from dlm_jax.data.tasks import get_task
digest = hashlib.sha256()
for name, split in {names!r}:
    for example in itertools.islice(get_task(name).examples(split), 200):
        digest.update(repr(example).encode())
print(digest.hexdigest())
"""


def test_two_processes_draw_the_same(toy_data: Path) -> None:
    names = [("mmlu_v1.all_5_shot", "test"), ("natural_instructions_v2.definition", "train")]
    if (toy_data / "bbh/snarks.json.gz").exists():
        names.append(("bbh_v1.snarks_3_shot", "test"))
    digests = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT.format(names=names)],
            env={**os.environ, "DLM_DATA_DIR": str(toy_data), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1 and len(digests.pop().strip()) == 64
