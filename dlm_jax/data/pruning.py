"""Vocabularies cut to a corpus: the pieces that it uses, and what the table of rows becomes.

Text of the corpus is split into the same pieces as before. In a Unigram model the best path is made
of pieces that stay, and its rivals can only disappear; in WordPiece the longest match is one that
stays. (In BPE a piece is reached through others, so that none can go.) Other text is split into
smaller pieces, down to the characters of the corpus.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dlm_jax.data.vocabularies import (
    CharacterVocabulary,
    SentencePieceVocabulary,
    TokenizersVocabulary,
    Vocabulary,
)
from dlm_jax.errors import UserError

_BATCH = 1024
_UNIGRAM = 1  # TrainerSpec.ModelType of sentencepiece_model.proto
_NORMAL = 1  # ModelProto.SentencePiece.Type
# How a piece says that it begins, or goes on with, a word.
_WORD_MARKS = ("▁", "##")


@dataclasses.dataclass(frozen=True)
class PrunedVocabulary:
    """A smaller vocabulary and where its rows come from.

    Attributes:
      vocabulary: the pieces that are left, in their old order.
      old_ids: int64 [size], the id that each piece had before.
    """

    vocabulary: Vocabulary
    old_ids: NDArray[np.int64]


def count_ids(vocabulary: Vocabulary, sequences: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """How often each id occurs in sequences of ids, int64 [size]."""
    counts = np.zeros(vocabulary.size, np.int64)
    sequences = iter(sequences)
    while batch := list(itertools.islice(sequences, _BATCH)):
        ids = np.fromiter(itertools.chain.from_iterable(batch), np.int64)
        counts += np.bincount(ids, minlength=vocabulary.size)
    return counts


def prune_vocabulary(
    vocabulary: Vocabulary, counts: NDArray[np.int64], minimum_count: int = 1
) -> PrunedVocabulary:
    """Keeps the pieces that occur, the characters they are made of, and the special tokens.

    Args:
      vocabulary: of a Unigram, WordPiece or character kind.
      counts: [size], as `count_ids` gives them.
      minimum_count: pieces that occur less often go; text that had them is split further.

    Raises:
      UserError: no piece would be left, or the kind cannot be pruned.
    """
    if minimum_count < 1:
        raise UserError(f"minimum_count is {minimum_count}, and must be 1 or more")
    kept = counts >= minimum_count
    if not kept.any():
        raise UserError(f"no piece of the vocabulary occurs {minimum_count} times in the text")
    pieces = [vocabulary.piece(token) for token in range(vocabulary.size)]
    kept |= _characters_of(pieces, np.flatnonzero(counts > 0))
    kept[list(vocabulary.special_ids)] = True
    if isinstance(vocabulary, SentencePieceVocabulary):
        return _prune_sentencepiece(vocabulary, kept)
    if isinstance(vocabulary, TokenizersVocabulary):
        return _prune_tokenizers(vocabulary, kept)
    if isinstance(vocabulary, CharacterVocabulary):
        alphabet = "".join(c for c in vocabulary.alphabet if kept[vocabulary.encode(c)[0]])
        return PrunedVocabulary(CharacterVocabulary(alphabet), np.flatnonzero(kept))
    raise UserError(f"a {vocabulary.kind} vocabulary has nothing to prune")


def _characters_of(pieces: list[str], used: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Marks the pieces of one character that occurs in a used piece, with and without a mark."""
    characters = set(itertools.chain.from_iterable(pieces[token] for token in used))

    def is_one(piece: str) -> bool:
        for mark in _WORD_MARKS:
            if len(piece) > len(mark):
                piece = piece.removeprefix(mark)
        return len(piece) == 1 and piece in characters

    return np.array([is_one(piece) for piece in pieces])


def _prune_sentencepiece(
    vocabulary: SentencePieceVocabulary, kept: NDArray[np.bool_]
) -> PrunedVocabulary:
    from sentencepiece import sentencepiece_model_pb2

    # Protocol buffers make their classes when they are imported, which type checkers do not see.
    model = getattr(sentencepiece_model_pb2, "ModelProto").FromString(vocabulary.content)  # noqa: B009
    if model.trainer_spec.model_type != _UNIGRAM:
        raise UserError("a SentencePiece model of another type than Unigram cannot be pruned")
    normal = [index for index, piece in enumerate(model.pieces) if piece.type == _NORMAL]
    # An unknown character is scored relative to the worst piece, which stays for that reason.
    worst = min(normal, key=lambda index: model.pieces[index].score)
    staying = [
        index
        for index, piece in enumerate(model.pieces)
        if piece.type != _NORMAL or kept[index + 1] or index == worst
    ]
    chosen = [model.pieces[index] for index in staying]
    old_ids = [0, 1, 2, 3, *(index + 1 for index in staying if index > 2), vocabulary.mask_id]
    del model.pieces[:]
    model.pieces.extend(chosen)
    model.trainer_spec.vocab_size = len(chosen)
    return PrunedVocabulary(
        SentencePieceVocabulary.from_bytes(model.SerializeToString(), "the pruned model"),
        np.array(old_ids, np.int64),
    )


def _prune_tokenizers(
    vocabulary: TokenizersVocabulary, kept: NDArray[np.bool_]
) -> PrunedVocabulary:
    document = json.loads(vocabulary.content)
    model, kind = document["model"], document["model"]["type"]
    if kind == "Unigram":
        normal = [i for i in range(len(model["vocab"])) if i not in vocabulary.special_ids]
        kept[min(normal, key=lambda index: model["vocab"][index][1])] = True
    elif kind != "WordPiece":
        raise UserError(f"a {kind} tokenizer cannot be pruned: only Unigram and WordPiece can")
    for token in document.get("added_tokens", ()):
        kept[token["id"]] = True
    old_ids = np.flatnonzero(kept)
    new_ids = {int(old): new for new, old in enumerate(old_ids)}
    if kind == "Unigram":
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in new_ids]
        model["unk_id"] = None if model["unk_id"] is None else new_ids[model["unk_id"]]
    else:
        model["vocab"] = {
            piece: new_ids[index] for piece, index in model["vocab"].items() if index in new_ids
        }
    for token in document.get("added_tokens", ()):
        token["id"] = new_ids[token["id"]]
    # Both place special tokens by their old ids; this project places them itself.
    document["post_processor"] = document["padding"] = None
    content = json.dumps(document, ensure_ascii=False).encode()
    return PrunedVocabulary(TokenizersVocabulary.from_bytes(content, "the pruned model"), old_ids)
