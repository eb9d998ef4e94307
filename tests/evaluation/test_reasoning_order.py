"""Reveal orders of answers: from tokens to spans to verdicts, for handmade and for real traces."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.tasks import TextTask, register_task
from dlm_jax.data.vocabularies import ByteVocabulary, CharacterVocabulary, TokenizersVocabulary
from dlm_jax.errors import UserError
from dlm_jax.evaluation.answers import Answer
from dlm_jax.evaluation.dependency_graph import DependencyGraph
from dlm_jax.evaluation.evaluators import GenerationEvaluator
from dlm_jax.evaluation.json_lines import read_json_lines
from dlm_jax.evaluation.metrics import exact_match, numeric_answer
from dlm_jax.evaluation.order_evaluator import ReasoningOrderEvaluator
from dlm_jax.evaluation.reasoning_order import (
    OrderOfAnswer,
    RevealedText,
    order_figures,
    order_of,
    record_of,
    reveal_text,
)
from dlm_jax.models.config import EncoderConfig
from dlm_jax.sampling import Canvas, Policy, generate, infilling_canvas, reveal_steps
from dlm_jax.sampling.trace import Trace

pytestmark = pytest.mark.usefixtures("compiled_quickly")

GRAPH = DependencyGraph(
    r"(?P<idea>[a-z]+) (?P<equation>\d \+ \d) = (?P<result>\d), so (?P<answer>\d)",
    {"idea": (), "equation": ("idea",), "result": ("equation",), "answer": ("result",)},
)
TEXT = "add 2 + 3 = 5, so 5"
LETTERS = CharacterVocabulary.from_text(TEXT)


def revealed(times: dict[str, int]) -> RevealedText:
    """One token a character; those of no node appear in step 1."""
    spans = GRAPH.spans(TEXT)
    assert spans is not None
    steps = [
        next((times[node] for node, (a, b) in spans.items() if a <= place < b), 1)
        for place in range(len(TEXT))
    ]
    return reveal_text(LETTERS, LETTERS.encode(TEXT), steps, max(steps))


def judged(**times: int) -> OrderOfAnswer:
    order = order_of(revealed(times), GRAPH)
    assert order is not None and dict(order.times) == times
    return order


def test_verdicts_of_handmade_orders() -> None:
    in_turn = judged(idea=1, equation=2, result=3, answer=4)
    assert in_turn.topological and in_turn.strict and in_turn.violations == 0
    tied = judged(idea=1, equation=3, result=3, answer=3)
    assert tied.topological and not tied.strict and tied.violations == 0
    early = judged(idea=2, equation=3, result=4, answer=1)  # before all three that it rests on
    assert not early.topological and not early.strict and early.violations == 3
    swapped = judged(idea=2, equation=1, result=3, answer=4)
    assert not swapped.topological and swapped.violations == 1


def test_a_span_appears_with_its_last_token_or_its_first() -> None:
    ids = LETTERS.encode(TEXT)
    steps = [5, 1, 1, *[2] * (len(ids) - 3)]  # the first letter of the idea comes last of all
    text = reveal_text(LETTERS, ids, steps, 5)
    last, first = order_of(text, GRAPH), order_of(text, GRAPH, "first")
    assert last is not None and first is not None
    assert (last.times["idea"], first.times["idea"]) == (5, 1)
    assert not last.topological and last.violations == 3
    assert first.topological


def trace_of(steps: list[list[tuple[int, int]]], remasked: list[list[int]], length: int) -> Trace:
    """A trace of one row from (place, token) written and places masked again in each step."""
    tokens = np.full((len(steps), 1, length), LETTERS.mask_id)
    committed = np.zeros((len(steps), 1, length), bool)
    gone = np.zeros_like(committed)
    for number, (written, lost) in enumerate(zip(steps, remasked, strict=True)):
        if number:
            tokens[number] = tokens[number - 1]
        for place, token in written:
            tokens[number, 0, place], committed[number, 0, place] = token, True
        for place in lost:
            tokens[number, 0, place], gone[number, 0, place] = LETTERS.mask_id, True
    return Trace(
        start=jnp.full((1, length), LETTERS.mask_id),
        editable=jnp.ones((1, length), bool),
        segment_ids=jnp.ones((1, length), jnp.int32),
        tokens=jnp.asarray(tokens),
        scores=jnp.zeros(tokens.shape),
        committed=jnp.asarray(committed),
        remasked=jnp.asarray(gone),
        steps_taken=jnp.int32(len(steps)),
    )


def test_a_token_that_is_masked_again_counts_from_when_it_is_written_for_good() -> None:
    ids = LETTERS.encode(TEXT)
    places = list(enumerate(ids))
    spans = GRAPH.spans(TEXT)
    assert spans is not None
    equation, answer = spans["equation"][0], len(ids) - 1
    # The answer is written first, but it is masked again, and written for good at the end; then
    # the first digit of the equation is replaced, later still.
    steps = [[places[answer]], [], places[:-1], [places[answer]], [], [places[equation]]]
    settled = trace_of(steps[:4], [[], [answer], [], []], len(ids))
    times = reveal_steps(settled)[0]
    order = order_of(reveal_text(LETTERS, ids, times.tolist(), 4), GRAPH)
    assert order is not None and order.topological
    assert order.times == {"idea": 3, "equation": 3, "result": 3, "answer": 4}
    reopened = trace_of(steps, [[], [answer], [], [], [equation], []], len(ids))
    times = reveal_steps(reopened)[0]
    order = order_of(reveal_text(LETTERS, ids, times.tolist(), 6), GRAPH)
    assert order is not None and not order.topological
    assert order.times == {"idea": 3, "equation": 6, "result": 3, "answer": 4}
    assert order.violations == 2


def test_tokens_of_several_kinds_find_their_characters() -> None:
    text = ByteVocabulary()
    ids = [*text.encode("aé"), text.eos_id, *text.encode("b")]
    found = reveal_text(text, ids, [1, 2, 3, 4, 5], 5)
    # Both bytes of é are of its one character; the special token is of none, but it was drawn.
    assert found.text == "aéb"
    assert found.pieces == [(0, 1, 1), (1, 2, 2), (1, 2, 3), (2, 3, 5)]
    assert found.drawn == (1, 1, 1, 1, 1)


def test_pieces_of_words_carry_the_blank_before_them(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "add", "2", "+", "3", "=", "5", ",",
              "so", "mult", "##ip", "##ly"]  # fmt: skip
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    words = TokenizersVocabulary.from_wordpieces(tmp_path / "vocab.txt")
    ids = words.encode("multiply 2 + 3 = 5, so 5")
    found = reveal_text(words, ids, list(range(1, len(ids) + 1)), len(ids))
    assert found.text == "multiply 2 + 3 = 5, so 5"
    assert [found.text[a:b] for a, b, _ in found.pieces][:4] == ["mult", "ip", "ly", " 2"]
    order = order_of(found, GRAPH)
    assert order is not None and order.strict
    assert order.times == {"idea": 3, "equation": 6, "result": 8, "answer": 11}


def test_figures_are_shares_with_intervals() -> None:
    good = judged(idea=1, equation=2, result=3, answer=4)
    bad = judged(idea=2, equation=3, result=4, answer=1)
    figures = order_figures([good, bad, None, good], [True, False, True, False])
    assert figures["answers_read"] == 0.75
    assert figures["topological_share"] == pytest.approx(2 / 3)
    # Wilson's interval of 2 in 3, from the formula by hand.
    assert figures["topological_share_low"] == pytest.approx(0.2077, abs=1e-4)
    assert figures["topological_share_high"] == pytest.approx(0.9385, abs=1e-4)
    assert figures["order_violations"] == pytest.approx(1.0)
    # The answer needs the result alone, directly; no other step was early.
    assert figures["early/answer before result"] == pytest.approx(1 / 3)
    assert figures["early/equation before idea"] == figures["early/result before equation"] == 0.0
    assert figures["topological_share_right"] == 1.0 and figures["answers_right"] == 1.0
    assert order_figures([None, None]) == {"answers_read": 0.0}
    odd = reveal_text(LETTERS, LETTERS.encode("so"), [2, 1], 2)
    assert order_of(odd, GRAPH) is None
    assert record_of(odd, None) == {"order": None, "pieces": [[0, 1, 2], [1, 2, 1]]}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parrot:
    """Says one text whatever it is asked: logits [length, vocab] by position."""

    table: jax.Array
    config: EncoderConfig = dataclasses.field(metadata={"static": True})

    def features(self, tokens, positions, segment_ids):
        return positions[..., None].astype(jnp.float32)

    def logits(self, features):
        return self.table[features[..., 0].astype(jnp.int32)]


def parrot(prompt: str, sureness: dict[int, float] | None = None) -> Parrot:
    ids = [LETTERS.bos_id, *LETTERS.encode(prompt), *LETTERS.encode(TEXT), LETTERS.eos_id]
    table = np.zeros((64, LETTERS.size), np.float32)
    for place, token in enumerate(ids):
        table[place, token] = 3.0 + (sureness or {}).get(place - len(prompt) - 1, 0.0)
    config = EncoderConfig(LETTERS.size, 8, 1, 1, 8, max_positions=66)
    return Parrot(jnp.asarray(table), config)


@pytest.fixture(scope="module")
def task() -> TextTask:
    return toy_task()


def toy_task() -> TextTask:
    return register_task(
        "order_v1.toy",
        splits={"train": lambda: [{}], "validation": lambda: [{} for _ in range(400)]},
        inputs="add 2 2 ",
        targets=lambda record: Answer(TEXT, graph=GRAPH),
        metrics=(exact_match, numeric_answer),
    )


def evaluated(tmp_path: Path, task: TextTask, denoiser: Parrot, **settings) -> dict[str, float]:
    evaluator = ReasoningOrderEvaluator(
        task=task.name, **{"steps": 7, "max_examples": 20, **settings}
    )
    description = ModelDescription(config=denoiser.config)
    found = evaluator(denoiser, LETTERS, description, RunFolder(tmp_path), 3)
    return found["eval/order_v1.toy/reasoning_order"]


def test_a_random_order_is_topological_as_often_as_chance_says(tmp_path, task) -> None:
    figures = evaluated(
        tmp_path, task, parrot("add 2 2 "), strategy="cmlm", max_examples=400, batch_size=200
    )
    assert figures["exact_match"] == 1.0 and figures["answers_read"] == 1.0
    for name in ("topological_share", "strict_topological_share"):
        chance = figures[f"{name}_chance"]
        # Five standard errors: one seed in two million would fail.
        assert abs(figures[name] - chance) < 5 * math.sqrt(chance * (1 - chance) / 400)
        assert 0.0 < chance < 0.4
    assert figures["topological_share_low"] < figures["topological_share_chance"]
    assert figures["topological_share_high"] > figures["topological_share_chance"]
    records, _ = read_json_lines(tmp_path / "eval/order_v1.toy/reasoning_order/3.jsonl")
    assert len(records) == 400
    shared = np.mean([record["order"]["topological"] for record in records])
    assert shared == pytest.approx(figures["topological_share"])
    node = records[0]["order"]["nodes"]["equation"]
    assert node["text"] == "2 + 3"
    own = [step for begin, _, step in records[0]["pieces"] if 0 <= begin - node["begin"] < 5]
    assert node["step"] == max(own)
    page = (tmp_path / "eval/order_v1.toy/reasoning_order/3.html").read_text(encoding="utf-8")
    assert "in order: add 2 2" in page and "out of order: add 2 2" in page


def test_left_to_right_is_always_in_order(tmp_path, task) -> None:
    figures = evaluated(tmp_path, task, parrot("add 2 2 "), strategy="left-to-right")
    assert figures["topological_share"] == figures["strict_topological_share"] == 1.0
    assert figures["topological_share_low"] > 0.8 and figures["order_violations"] == 0.0
    assert figures["topological_share_right"] == 1.0 and figures["answers_right"] == 20


@pytest.mark.parametrize("strategy", ["reparam-uncond-deterministic-linear", "cmlm"])
def test_what_is_judged_is_what_the_sampler_wrote(tmp_path, task, strategy) -> None:
    """The orders agree with a trace of the sampler itself, taken without any evaluator."""
    prompt = "add 2 2 "
    denoiser = parrot(prompt, {len(TEXT) - 1: 5.0})  # surest of the answer, which comes first
    figures = evaluated(tmp_path, task, denoiser, strategy=strategy, canvas="oracle")
    records, _ = read_json_lines(tmp_path / "eval/order_v1.toy/reasoning_order/3.oracle.jsonl")
    canvas: Canvas = infilling_canvas(
        [[LETTERS.encode(prompt), len(TEXT)]] * 3, LETTERS, row_ids=[7, 8, 9], max_length=64
    )
    result = generate(
        denoiser,
        canvas,
        Policy.parse(strategy, steps=7),
        jax.random.key(0, impl="threefry2x32"),
        mask_id=LETTERS.mask_id,
        vocab_size=LETTERS.size,
        trace=True,
    )
    assert result.trace is not None
    begin = len(prompt) + 1
    steps = reveal_steps(result.trace)[:, begin : begin + len(TEXT)]
    assert [[piece[2] for piece in record["pieces"]] for record in records[7:10]] == steps.tolist()
    if strategy != "cmlm":
        assert figures["oracle_topological_share"] == 0.0
        assert figures["oracle_order_violations"] >= 1.0


def test_tasks_without_graphs_and_unknown_reveals_are_refused(tmp_path) -> None:
    plain = register_task(
        "order_v1.plain",
        splits={"validation": lambda: [{}]},
        inputs="add ",
        targets=TEXT,
        metrics=(exact_match,),
    )
    with pytest.raises(UserError, match="order_v1.plain carry no graph"):
        evaluated(tmp_path, plain, parrot("add "), canvas="oracle")
    with pytest.raises(UserError, match="reveal is 'lst', none of last, first .did you mean last"):
        ReasoningOrderEvaluator(reveal="lst")
    with pytest.raises(UserError, match="mbr is 2, and must be 1: one answer is traced"):
        ReasoningOrderEvaluator(mbr=2, temperature=1.0)


def test_the_traced_answer_is_the_one_that_a_search_of_lengths_keeps(tmp_path, task) -> None:
    """Answers drawn at random, of the best of three lengths, as the plain evaluator gives them."""
    settings = {"response_lengths": [17, 19, 21], "temperature": 1.0, "strategy": "cmlm"}
    denoiser = parrot("add 2 2 ")
    evaluated(tmp_path, task, denoiser, **settings)
    plain = GenerationEvaluator(task=task.name, steps=7, max_examples=20, **settings)
    plain(denoiser, LETTERS, ModelDescription(config=denoiser.config), RunFolder(tmp_path), 3)
    kept, traced = (
        read_json_lines(tmp_path / f"eval/order_v1.toy/{name}3.jsonl")[0]
        for name in ("", "reasoning_order/")
    )
    assert len({(record["prediction"], record["canvas_length"]) for record in kept}) > 5
    for name in ("prediction", "canvas_length", "score", "nfe", "metrics"):
        assert [one[name] for one in traced] == [one[name] for one in kept], name
