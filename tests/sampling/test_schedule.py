from __future__ import annotations

import numpy as np
import pytest

from dlm_jax.errors import UserError
from dlm_jax.sampling.schedule import UnmaskingSchedule


def remaining(shape, n, steps, reading="masked"):
    return UnmaskingSchedule(shape, reading).masked_counts(steps, n)[1:, n].tolist()


def test_published_vectors():
    assert remaining("cosine", 20, 10) == [19, 19, 17, 16, 14, 11, 9, 6, 3, 0]
    assert remaining("linear", 20, 10) == [18, 16, 14, 12, 10, 8, 6, 3, 1, 0]
    assert remaining("cosine", 7, 10) == [6, 6, 6, 5, 4, 4, 3, 2, 1, 0]
    fifty = remaining("cosine", 20, 50)
    assert fifty.index(0) == 48 and len(fifty) == 50
    assert remaining("cosine", 20, 1) == remaining("linear", 20, 1) == [0]


def test_denoised_reading_counts_what_is_written():
    written = [20 - left for left in remaining("cosine", 20, 10, "denoised")]
    assert written == [3, 6, 9, 11, 14, 16, 17, 19, 19, 20]
    assert remaining("linear", 20, 10, "denoised")[-1] == 0


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("reading", ["masked", "denoised"])
def test_every_count_falls_from_all_to_none(shape, reading):
    for steps in (1, 3, 10, 50):
        counts = UnmaskingSchedule(shape, reading).masked_counts(steps, 130)
        assert counts.shape == (steps + 1, 131)
        np.testing.assert_array_equal(counts[0], np.arange(131))
        assert (counts[-1] == 0).all() and (np.diff(counts, axis=0) <= 0).all()
        fractions = UnmaskingSchedule(shape, reading).masked_fractions(steps)
        assert fractions[0] == pytest.approx(1) and fractions[-1] == pytest.approx(0, abs=1e-12)
        assert (np.abs(counts - np.outer(fractions, np.arange(131))) < 1 + 1e-9).all()


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean cosine"):
        UnmaskingSchedule("cosin")
    with pytest.raises(UserError, match="did you mean denoised"):
        UnmaskingSchedule("cosine", "denoise")
