"""Pruned vocabularies split their corpus as before, and say where each row comes from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from dlm_jax.data.pruning import count_ids, prune_vocabulary
from dlm_jax.data.vocabularies import (
    ByteVocabulary,
    CharacterVocabulary,
    SentencePieceVocabulary,
    TokenizersVocabulary,
    Vocabulary,
    load_vocabulary,
)
from dlm_jax.errors import UserError

CORPUS = ["the cat sat on the mat .", "a cat and a dog sat , and the dog ran .", "Zebras!"]
OTHER = ["the mathematician ran", "dogs and cats", "zoo"]


def _unigram(folder: Path) -> SentencePieceVocabulary:
    words = [
        "the",
        "mathematicians",
        "considered",
        "cats",
        "dogs",
        "mats",
        "and",
        "zebras",
        "running",
        "slowly",
        "on",
        "a",
        "hill",
    ]
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(words, 8)) for _ in range(500)]
    file = folder / "unigram"
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences + CORPUS + OTHER),
        model_prefix=str(file),
        vocab_size=120,
        model_type="unigram",
        hard_vocab_limit=False,
    )
    return SentencePieceVocabulary(f"{file}.model")


def _wordpiece(folder: Path) -> TokenizersVocabulary:
    pieces = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += sorted({c for text in CORPUS + OTHER for c in text.lower() if c != " "})
    pieces += [f"##{c}" for c in sorted({c for text in CORPUS + OTHER for c in text.lower()})]
    pieces += [
        "the",
        "cat",
        "cats",
        "sat",
        "on",
        "mat",
        "##hema",
        "and",
        "dog",
        "ran",
        "ze",
        "##bra",
    ]
    file = folder / "vocab.txt"
    file.write_text("\n".join(pieces), encoding="utf-8")
    return TokenizersVocabulary.from_wordpieces(file)


def _pieces(vocabulary: Vocabulary, text: str) -> list[str]:
    return [vocabulary.piece(token) for token in vocabulary.encode(text)]


@pytest.fixture(params=["unigram", "wordpiece", "characters"])
def vocabulary(request, tmp_path) -> Vocabulary:
    if request.param == "characters":
        return CharacterVocabulary.from_text(" ".join(CORPUS) + "xyzXYZ")
    return {"unigram": _unigram, "wordpiece": _wordpiece}[request.param](tmp_path)


def test_the_corpus_is_split_as_before_and_rows_are_those_of_the_same_pieces(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    counts = count_ids(vocabulary, map(vocabulary.encode, CORPUS))
    assert counts.sum() == sum(len(vocabulary.encode(text)) for text in CORPUS)
    pruned = prune_vocabulary(vocabulary, counts)
    small, old_ids = pruned.vocabulary, pruned.old_ids
    assert small.size == len(old_ids) < vocabulary.size
    for text in CORPUS:
        assert [int(old_ids[token]) for token in small.encode(text)] == vocabulary.encode(text)
        assert small.decode(small.encode(text)) == vocabulary.decode(vocabulary.encode(text))
    for new, old in enumerate(old_ids):
        assert small.piece(new) == vocabulary.piece(int(old))
    for role in ("pad", "bos", "eos", "unk", "mask"):
        assert old_ids[getattr(small, f"{role}_id")] == getattr(vocabulary, f"{role}_id")
    small.save(tmp_path / "saved")
    again = load_vocabulary(tmp_path / "saved")
    assert [again.encode(text) for text in CORPUS + OTHER] == [
        small.encode(text) for text in CORPUS + OTHER
    ]


def test_a_rare_piece_is_split_into_kept_ones_rather_than_lost(tmp_path: Path) -> None:
    for vocabulary in (_unigram(tmp_path), _wordpiece(tmp_path)):
        counts = count_ids(vocabulary, map(vocabulary.encode, CORPUS))
        pruned = prune_vocabulary(vocabulary, counts, minimum_count=2).vocabulary
        assert "Z" not in "".join(_pieces(pruned, "the dog sat"))
        rare = [text for text in CORPUS if pruned.unk_id in pruned.encode(text)]
        known = [text for text in CORPUS if vocabulary.unk_id in vocabulary.encode(text)]
        assert rare == known


def test_an_unknown_character_is_as_unlikely_as_before(tmp_path: Path) -> None:
    vocabulary = _unigram(tmp_path)
    texts = ["the € cat", "dog€s"]
    counts = count_ids(vocabulary, map(vocabulary.encode, texts))
    small = prune_vocabulary(vocabulary, counts).vocabulary
    assert [_pieces(small, text) for text in texts] == [_pieces(vocabulary, text) for text in texts]


def test_what_cannot_be_pruned_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a byte vocabulary has nothing to prune"):
        prune_vocabulary(ByteVocabulary(), np.ones(261, np.int64))
    characters = CharacterVocabulary("ab")
    with pytest.raises(UserError, match="no piece of the vocabulary occurs 3 times"):
        prune_vocabulary(characters, np.full(characters.size, 2), minimum_count=3)
    with pytest.raises(UserError, match="minimum_count is 0"):
        prune_vocabulary(characters, np.ones(characters.size), minimum_count=0)
    wordpiece = _wordpiece(tmp_path)
    document = json.loads(wordpiece.content)
    document["model"] = {"type": "BPE", "vocab": document["model"]["vocab"], "merges": []}
    bpe = TokenizersVocabulary.from_bytes(json.dumps(document).encode(), "a BPE file")
    with pytest.raises(UserError, match="a BPE tokenizer cannot be pruned"):
        prune_vocabulary(bpe, np.ones(bpe.size, np.int64))
