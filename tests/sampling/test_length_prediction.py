"""Predicted lengths: the beam against its definition, and rows that know nothing of each other."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from dlm_jax.models.config import SIZES
from dlm_jax.models.encoder import Encoder
from dlm_jax.models.length_predictor import LengthPredictor
from dlm_jax.sampling.length_calibration import LengthCalibration, calibration_error, reliability
from dlm_jax.sampling.length_prediction import length_beam, length_log_probs
from dlm_jax.sampling.tiling import Tiling

CONFIG = dataclasses.replace(SIZES["test"], max_positions=102)


def test_the_beam_is_that_of_the_length_cut_at_the_room() -> None:
    probabilities = np.array([0.1, 0.3, 0.05, 0.2, 0.25, 0.1])
    log_probs = np.log(probabilities)
    wide = length_beam(log_probs, 3, 100)
    assert [length for length, _ in wide] == [2, 5, 4]
    np.testing.assert_allclose([p for _, p in wide], np.log([0.3, 0.25, 0.2]))
    # Three tokens of room: 3 stands for 3, 4, 5 and 6, and no length comes twice.
    narrow = length_beam(log_probs, 10, 3)
    assert [length for length, _ in narrow] == [3, 2, 1]
    np.testing.assert_allclose([p for _, p in narrow], np.log([0.6, 0.3, 0.1]))
    assert length_beam(log_probs, 2, 1) == [(1, pytest.approx(0.0, abs=1e-12))]
    # Of equal ones the shorter.
    assert [length for length, _ in length_beam(np.log(np.full(4, 0.25)), 2, 9)] == [1, 2]


@pytest.fixture(scope="module")
def model():
    encoder = Encoder(CONFIG, rngs=nnx.Rngs(0))
    predictor = LengthPredictor(CONFIG, rngs=nnx.Rngs(1))
    # Far from uniform, so that differences would show.
    predictor.classes.kernel[...] = predictor.classes.kernel[...] * 100
    return encoder, predictor


def predicted(model, prompts, tiling=None):
    encoder, predictor = model
    return length_log_probs(
        encoder, predictor, prompts, pad_id=1, max_length=CONFIG.max_length, tiling=tiling
    )


def test_a_prompts_lengths_are_the_same_to_the_bit_in_any_company(model) -> None:
    random = np.random.default_rng(0)
    sizes = [5, 40, 31, 33, 100, 7, 64, 2]
    prompts = [[0, *random.integers(5, 90, size - 1).tolist()] for size in sizes]
    together = predicted(model, prompts)
    assert together.shape == (len(sizes), CONFIG.max_positions)
    np.testing.assert_allclose(np.exp(together).sum(-1), 1.0, rtol=1e-5)
    for number, prompt in enumerate(prompts):
        np.testing.assert_array_equal(predicted(model, [prompt])[0], together[number])
    np.testing.assert_array_equal(predicted(model, prompts[::-1]), together[::-1])
    # The whole batch at once, as accelerators do it, and the definition.
    at_once = predicted(model, prompts, Tiling(block_tokens=None))
    np.testing.assert_allclose(at_once, together, atol=1e-4)
    encoder, predictor = model
    tokens = np.array([prompts[1]], np.int32)
    segments = np.ones_like(tokens)
    features = encoder.features(tokens, np.arange(40)[None], segments)
    direct = jax.nn.log_softmax(predictor(features, segments))[0]
    np.testing.assert_allclose(together[1], direct, atol=1e-4)


def test_figures_of_a_calibration_by_hand() -> None:
    # Classes 1 … 4. Predicted 2, 2, 4, 1 where 2, 3, 1, 1 is true.
    probabilities = np.array(
        [[0.1, 0.7, 0.1, 0.1], [0.1, 0.5, 0.3, 0.1], [0.2, 0.1, 0.1, 0.6], [0.9, 0.05, 0.03, 0.02]]
    )
    calibration = LengthCalibration(np.log(probabilities), np.array([2, 3, 1, 1]))
    figures = calibration.figures(beam=2)
    assert figures["length_mae"] == (0 + 1 + 3 + 0) / 4
    assert figures["length_exact"] == 0.5
    assert figures["length_within_1"] == figures["length_within_2"] == 0.75
    assert figures["length_in_beam"] == 1.0
    nll = -np.log([0.7, 0.3, 0.2, 0.9])
    assert figures["length_nll"] == pytest.approx(nll.mean())
    assert figures["length_nll_se"] == pytest.approx(nll.std(ddof=1) / 2)
    # Confidences 0.7, 0.5, 0.6 and 0.9 lie in bins of their own.
    assert figures["length_ece"] == pytest.approx((0.3 + 0.5 + 0.6 + 0.1) / 4)
    correlation = np.corrcoef([2, 2, 4, 1], [2, 3, 1, 1])[0, 1]
    assert figures["length_correlation"] == pytest.approx(correlation)
    first = calibration.records()[0]
    assert (first["predicted_length"], first["true_length"]) == (2, 2)
    assert first["length_confidence"] == pytest.approx(0.7, abs=1e-6)
    assert first["true_length_log_probability"] == pytest.approx(math.log(0.7), abs=1e-6)
    # Neither one example nor equal lengths give a spread.
    alone = LengthCalibration(np.log(probabilities[:1]), np.array([9])).figures(1)
    assert alone["length_mae"] == 7 and alone["length_nll"] == pytest.approx(-math.log(0.1))
    assert "length_mae_se" not in alone and "length_correlation" not in alone


def test_a_model_that_is_right_as_often_as_it_says_has_no_calibration_error() -> None:
    confidences = [0.25] * 4 + [0.75] * 4 + [1.0]
    right = [True, False, False, False, True, True, True, False, True]
    bins = reliability(confidences, right)
    assert [(one.confidence, one.accuracy, one.count) for one in bins] == [
        (0.25, 0.25, 4),
        (0.75, 0.75, 4),
        (1.0, 1.0, 1),
    ]
    assert calibration_error(bins) == 0.0
    assert calibration_error(reliability([1.0, 1.0], [True, False])) == 0.5


def test_the_share_within_a_beam_is_that_of_the_beam_also_where_lengths_tie() -> None:
    equal = np.log(np.full((4, 4), 0.25, np.float32))
    lengths = np.array([1, 2, 3, 9])  # the last counts as 4, the longest class
    for size in (1, 2, 3, 4):
        within = [
            min(length, 4) in dict(length_beam(row, size, 100))
            for row, length in zip(equal, lengths)
        ]
        figures = LengthCalibration(equal, lengths).figures(size)
        assert figures["length_in_beam"] == np.mean(within) == size / 4
