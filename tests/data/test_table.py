"""Layout, truncation and the cache of tokenised tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlm_jax.data.table import ExampleTable, Truncation, TruncationCounts, build_table
from dlm_jax.data.tasks import TextTask
from dlm_jax.data.vocabularies import ByteVocabulary, CharacterVocabulary
from dlm_jax.errors import UserError

VOCABULARY = ByteVocabulary()


def task_of(pairs: list[tuple[str, str]], name: str = "t_v1.x", plain: bool = False) -> TextTask:
    records = [{"i": one, "t": other} for one, other in pairs]
    return TextTask(name, {"train": lambda: records}, "{t}", None if plain else "{i}")


def texts(table: ExampleTable) -> list[tuple[str, str]]:
    split = []
    for index in range(len(table)):
        tokens, prompt = table.example(index)
        assert tokens[0] == VOCABULARY.bos_id and tokens[-1] == VOCABULARY.eos_id
        split.append((VOCABULARY.decode(tokens[:prompt]), VOCABULARY.decode(tokens[prompt:])))
    return split


def test_layout() -> None:
    table = build_table(task_of([("ab", "xyz"), ("", "w")]), "train", VOCABULARY, 16)
    encode, bos, eos = VOCABULARY.encode, VOCABULARY.bos_id, VOCABULARY.eos_id
    assert table.tokens.tolist() == [bos, *encode("abxyz"), eos, bos, *encode("w"), eos]
    assert table.offsets.tolist() == [0, 7, 10]
    assert table.prompt_lengths.tolist() == [3, 1]
    assert table.lengths.tolist() == [7, 3]
    assert table.tokens.dtype == np.int32 and table.pad_id == VOCABULARY.pad_id
    assert table.counts == TruncationCounts(records=2)


PAIRS = [("abcd", "wxyz"), ("a", "uvwxyz"), ("a", "z")]


@pytest.mark.parametrize(
    ("truncation", "expected", "counts"),
    [
        (
            Truncation(),
            [("cd", "wxyz"), ("", "uvwxyz"), ("a", "z")],
            TruncationCounts(records=3, prompts_cut=2, tokens_cut=3),
        ),
        (
            Truncation(side="right"),
            [("ab", "wxyz"), ("", "uvwxyz"), ("a", "z")],
            TruncationCounts(records=3, prompts_cut=2, tokens_cut=3),
        ),
        (
            Truncation(max_response=3),
            [("bcd", "wxy"), ("a", "uvw"), ("a", "z")],
            TruncationCounts(records=3, prompts_cut=1, responses_cut=2, tokens_cut=5),
        ),
        (
            Truncation(overlong="drop"),
            [("a", "z")],
            TruncationCounts(records=3, dropped=2),
        ),
    ],
)
def test_truncation_cuts_where_it_says(
    truncation: Truncation, expected: list[tuple[str, str]], counts: TruncationCounts
) -> None:
    table = build_table(task_of(PAIRS), "train", VOCABULARY, 8, truncation)
    assert texts(table) == expected
    assert table.counts == counts
    assert table.lengths.max() <= 8
    whole = sum(len(one) + len(other) for one, other in PAIRS) + 2 * 3
    if truncation.overlong == "cut":
        assert len(table.tokens) + table.counts.tokens_cut == whole


def test_plain_text_is_split_and_nothing_is_lost() -> None:
    text = "abcdefghijklmno"
    table = build_table(task_of([("", text), ("", "pq")], plain=True), "train", VOCABULARY, 8)
    assert texts(table) == [("", "abcdef"), ("", "ghijkl"), ("", "mno"), ("", "pq")]
    assert table.records.tolist() == [0, 0, 0, 1]
    assert table.prompt_lengths.tolist() == [1, 1, 1, 1]
    assert table.counts == TruncationCounts(records=2, texts_split=1)


def test_overlong_and_impossible() -> None:
    with pytest.raises(UserError, match="record 0: 4 input and 4 target tokens do not fit"):
        build_table(task_of(PAIRS), "train", VOCABULARY, 8, Truncation(overlong="error"))
    with pytest.raises(UserError, match="all 3 were dropped"):
        pairs = [PAIRS[0]] * 3
        build_table(task_of(pairs), "train", VOCABULARY, 4, Truncation(overlong="drop"))
    with pytest.raises(UserError, match="length=2 has no room"):
        build_table(task_of(PAIRS), "train", VOCABULARY, 2)
    with pytest.raises(UserError, match="record 0: targets has no tokens"):

        class Silent(CharacterVocabulary):
            def encode(self, text: str) -> list[int]:
                return []

        build_table(task_of(PAIRS), "train", Silent("a"), 8)


def equal(one: ExampleTable, other: ExampleTable) -> bool:
    names = ("tokens", "offsets", "prompt_lengths", "records")
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in names) and (
        (one.counts, one.fingerprint, one.pad_id) == (other.counts, other.fingerprint, other.pad_id)
    )


def test_cache_is_the_same_table_and_is_reused(tmp_path: Path) -> None:
    task, reads = task_of(PAIRS), []
    memory = build_table(task, "train", VOCABULARY, 8)
    first = build_table(task, "train", VOCABULARY, 8, cache_dir=tmp_path)
    assert equal(memory, first) and isinstance(first.tokens, np.memmap)

    class Watched(ByteVocabulary):
        def encode(self, text: str) -> list[int]:
            reads.append(text)
            return super().encode(text)

    again = build_table(task, "train", Watched(), 8, cache_dir=tmp_path)
    assert equal(memory, again) and not reads
    assert len(list(tmp_path.iterdir())) == 1


def test_cache_notices_whatever_changes_the_table(tmp_path: Path) -> None:
    def build(pairs: list[tuple[str, str]] = PAIRS, **changes: object) -> ExampleTable:
        settings: dict = {
            "vocabulary": VOCABULARY, "length": 8, "truncation": Truncation(), "limit": None,
            "cache_dir": tmp_path,
        }  # fmt: skip
        return build_table(task_of(pairs), "train", **{**settings, **changes})

    base = build()
    alphabet = CharacterVocabulary("abcdefghijklmnopqrstuvwxyz")
    variants = [
        build([("abcd", "wxyz"), ("a", "uvwxyz"), ("a", "y")]),
        build(length=7),
        build(truncation=Truncation(side="right")),
        build(limit=2),
        build(vocabulary=alphabet),
    ]
    prints = {base.fingerprint, *(table.fingerprint for table in variants)}
    assert len(prints) == 6 and len(list(tmp_path.iterdir())) == 6
    assert build().fingerprint == base.fingerprint
    # Moving a character between inputs and targets must not go unnoticed.
    assert build([("ab", "c")]).fingerprint != build([("a", "bc")]).fingerprint


def test_failed_and_damaged_caches(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        build_table(task_of([("a", " ")]), "train", VOCABULARY, 8, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    build_table(task_of(PAIRS), "train", VOCABULARY, 8, cache_dir=tmp_path)
    file = next(tmp_path.glob("*/tokens.npy"))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="is damaged .*delete that folder"):
        build_table(task_of(PAIRS), "train", VOCABULARY, 8, cache_dir=tmp_path)
