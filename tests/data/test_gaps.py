"""Gaps in texts: what was given stands, what was written is read once."""

from __future__ import annotations

import pytest

from dlm_jax.data.gaps import GappedText
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.errors import UserError

VOCABULARY = ByteVocabulary()


@pytest.mark.parametrize("gaps", ["<mask><mask>", "<mask>*2", "[MASK]<mask>"])
def test_a_character_may_take_the_tokens_of_neighbouring_gaps(gaps: str) -> None:
    text = GappedText.parse(f"ab{gaps}cd<mask>", VOCABULARY, 9)
    assert text.pieces == ("ab", 2, "cd", 1)
    assert text.filled(VOCABULARY.encode("abécd!"), VOCABULARY) == "abécd!"


def test_gaps_at_the_ends_and_nothing_else() -> None:
    text = GappedText.parse("<mask>b<mask>*3", VOCABULARY, 9)
    assert text.parts == (1, VOCABULARY.encode("b"), 3)
    assert text.filled(VOCABULARY.encode("abcde"), VOCABULARY) == "abcde"
    assert GappedText.parse("<mask>", VOCABULARY, 9).filled([*VOCABULARY.encode("x")], VOCABULARY)


@pytest.mark.parametrize("text", ["no gap", "<mask>*0", "<mask>*10"])
def test_texts_without_a_gap_that_can_be_filled(text: str) -> None:
    with pytest.raises(UserError, match="gap"):
        GappedText.parse(text, VOCABULARY, 9)
