from __future__ import annotations

import json
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.sampling import (
    Policy,
    Trace,
    generate,
    infilling_canvas,
    make_canvas,
    remask_counts,
    reveal_steps,
)
from dlm_jax.sampling.trace_page import trace_html

pytestmark = pytest.mark.usefixtures("quick_compilation")

PIECES = [f"<piece {i}>" for i in range(29)] + ["</script>[MASK]"]


@pytest.fixture(scope="module")
def trace(toy, key, vocabulary):
    rng = np.random.default_rng(2)
    rows = [rng.integers(4, 29, size).tolist() for size in (20, 33, 64, 12, 5)]
    marks = [(rng.random(len(row)) < 0.6).tolist() for row in rows]
    canvas = make_canvas(rows, marks, pad_id=1)
    policy = Policy.parse("reparam-uncond-deterministic-cosine", steps=10)
    return generate(toy, canvas, policy, key, mask_id=vocabulary.mask_id, trace=True).trace


def hand_made():
    """One row: written 1, masked 2, written 3 | given | written 2, masked 3, left masked."""
    committed = np.zeros((3, 1, 3), bool)
    remasked = np.zeros((3, 1, 3), bool)
    committed[[0, 2], 0, 0] = remasked[1, 0, 0] = True
    committed[1, 0, 2] = remasked[2, 0, 2] = True
    empty = jnp.zeros((3, 1, 3), jnp.int32)
    return Trace(
        start=jnp.array([[9, 4, 9]]),
        editable=jnp.array([[True, False, True]]),
        segment_ids=jnp.ones((1, 3), jnp.int32),
        tokens=empty,
        scores=empty.astype(jnp.float32),
        committed=jnp.asarray(committed),
        remasked=jnp.asarray(remasked),
        steps_taken=jnp.int32(3),
    )


def test_reveal_steps_and_remask_counts_by_hand():
    assert reveal_steps(hand_made()).tolist() == [[3, 0, 0]]
    assert remask_counts(hand_made()).tolist() == [[1, 0, 1]]


def test_reveal_steps_are_when_the_final_token_appeared(trace):
    tokens, steps = np.asarray(trace.tokens), reveal_steps(trace)
    editable = np.asarray(trace.editable)
    assert (steps[~editable] == 0).all() and (steps[editable] > 0).all()
    for row, place in np.argwhere(editable):
        history = tokens[:, row, place]
        since = steps[row, place] - 1
        assert (history[since:] == history[-1]).all() and history[-1] != 29
        assert since == 0 or history[since - 1] == 29


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.scripts, self.attributes, self.open, self.title = {}, [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in ("meta", "input"):
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else (None, {})
        if tag == "script":
            self.scripts[attrs.get("type", "code")] = data
        if tag == "title":
            self.title += data


def test_the_page_is_whole_and_stands_alone(trace):
    text = trace_html(trace, PIECES, title="a < b & c")
    page = Page(text)
    assert page.open == [] and page.title == "a < b & c"
    assert not any(name in ("src", "href", "srcset") for _, name, _ in page.attributes)
    assert "//" not in text.replace("<!DOCTYPE", "") and "url(" not in text
    assert "@import" not in text
    slider = {name: value for tag, name, value in page.attributes if tag == "input"}
    assert slider["type"] == "range"
    assert set(page.scripts) == {"code", "application/json"}


def test_the_page_contains_every_step(trace):
    data = json.loads(Page(trace_html(trace, PIECES)).scripts["application/json"])
    assert data["steps"] == 10 and len(data["rows"]) == 5
    tokens = np.asarray(trace.tokens)
    remasks = 0
    for number, row in enumerate(data["rows"]):
        cells = [data["pieces"][piece] for piece in row["start"]]
        for step in range(data["steps"]):
            for place, piece, score in row["written"][step]:
                cells[place] = data["pieces"][piece]
                assert score == pytest.approx(float(trace.scores[step, number, place]), abs=1e-4)
            for place in row["remasked"][step]:
                cells[place] = PIECES[29]
                remasks += 1
            assert cells == [PIECES[token] for token in tokens[step, number, : len(cells)]]
        assert row["editable"] == np.flatnonzero(trace.editable[number]).tolist()
    assert remasks == remask_counts(trace).sum() > 0


def test_rows_titles_and_piece_functions(trace):
    text = trace_html(trace, lambda token: f"p{token}", rows=[3, 1], row_titles=["third", "first"])
    data = json.loads(Page(text).scripts["application/json"])
    assert [row["title"] for row in data["rows"]] == ["third", "first"]
    assert [len(row["start"]) for row in data["rows"]] == [12, 33]
    assert all(piece.startswith("p") for piece in data["pieces"])
    with pytest.raises(ValueError, match="1 titles for 5 rows"):
        trace_html(trace, PIECES, row_titles=["one"])


def test_an_early_end_leaves_no_empty_steps(toy, key, vocabulary):
    canvas = infilling_canvas([[[5], 3, [6], 2], [[7], 1], [[8, 9]]], vocabulary)
    policy = Policy.parse("left-to-right", steps=None)
    early = generate(toy, canvas, policy, key, mask_id=vocabulary.mask_id, trace=True).trace
    data = json.loads(Page(trace_html(early, PIECES)).scripts["application/json"])
    assert data["steps"] == 5
    assert [len(row["written"]) for row in data["rows"]] == [5, 5, 5]
