from __future__ import annotations

import numpy as np
import pytest

from dlm_jax.errors import UserError
from dlm_jax.sampling import infilling_canvas, make_canvas, response_canvas, written_tokens


def test_fixed_canvas_is_prompt_masks_and_a_given_end(vocabulary):
    canvas = response_canvas([[5, 6, 7], [8]], 4, vocabulary)
    assert canvas.shape == (2, 64)
    assert canvas.tokens[0, :10].tolist() == [0, 5, 6, 7, 29, 29, 29, 29, 2, 1]
    assert canvas.tokens[1, :8].tolist() == [0, 8, 29, 29, 29, 29, 2, 1]
    assert np.flatnonzero(canvas.editable[0]).tolist() == [4, 5, 6, 7]
    assert canvas.segment_ids.sum(axis=-1).tolist() == [9, 7]
    assert canvas.positions[1].tolist() == list(range(64))
    assert canvas.row_ids.tolist() == [0, 1]
    assert str(canvas.row_ids.dtype) == "uint32"


def test_oracle_lengths_and_shapes_of_a_last_batch(vocabulary):
    canvas = response_canvas(
        [[5] * 60, [8]], [3, 0], vocabulary, row_ids=[2**32 - 1, 40], batch_size=4
    )
    assert canvas.shape == (4, 128)
    assert canvas.editable.sum(axis=-1).tolist() == [3, 0, 0, 0]
    assert canvas.segment_ids.sum(axis=-1).tolist() == [65, 3, 0, 0]
    assert canvas.row_ids.tolist() == [2**32 - 1, 40, 0, 0]


def test_infilling_keeps_the_parts_around_the_gaps(vocabulary):
    canvas = infilling_canvas([[2, [5, 6], 3, [7]], [[9]]], vocabulary)
    assert canvas.tokens[0, :10].tolist() == [0, 29, 29, 5, 6, 29, 29, 29, 7, 2]
    assert np.flatnonzero(canvas.editable[0]).tolist() == [1, 2, 5, 6, 7]
    filled = np.where(canvas.editable, 11, canvas.tokens)
    filled[0, 2] = vocabulary.eos_id
    assert written_tokens(filled, canvas) == [[11, 2, 11, 11, 11], []]
    assert written_tokens(filled, canvas, drop=[0, 1, 2]) == [[11, 11, 11, 11], []]


def test_lengths_are_rounded_up_but_never_beyond_the_model(vocabulary):
    def length(size, **settings):
        return make_canvas([[5] * size], [[True] * size], pad_id=1, **settings).shape[1]

    assert [length(n) for n in (1, 64, 65, 129)] == [64, 64, 128, 192]
    assert length(30, length_multiple=8) == 32
    assert length(90, max_length=100) == 100
    with pytest.raises(UserError, match="Row 1 of the canvas takes 15 tokens .* at most 12"):
        response_canvas([[5], [5] * 8], 5, vocabulary, max_length=12)
    with pytest.raises(UserError, match="gap of -2 tokens"):
        infilling_canvas([[[5], -2]], vocabulary)
    with pytest.raises(ValueError, match="do not make a batch of 1"):
        make_canvas([[5], [6]], [[True], [True]], pad_id=1, batch_size=1)
