"""Ids against known values and independent tokenizers; round trips; broken files."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
from pathlib import Path

import pytest

from dlm_jax.data import vocabularies
from dlm_jax.data.vocabularies import (
    ByteVocabulary,
    CharacterVocabulary,
    SentencePieceVocabulary,
    TokenizersVocabulary,
    Vocabulary,
    load_vocabulary,
)
from dlm_jax.errors import UserError

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Ein schneller brauner Fuchs springt über den faulen Hund.",
    "Reverse the list of words: one, two, three.",
    "Der Mann sieht den Hund, und der Hund sieht den Mann.",
] * 8
MODELS = os.environ.get("DLM_MODELS_DIR")
needs_models = pytest.mark.skipif(not MODELS, reason="DLM_MODELS_DIR is not set")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small file of every kind, trained here."""
    import sentencepiece
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    root = tmp_path_factory.mktemp("vocabularies")
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS), model_writer=stream, vocab_size=60, minloglevel=2
    )
    (root / "xlmr").mkdir()
    (root / "xlmr" / "sentencepiece.bpe.model").write_bytes(stream.getvalue())

    wordpiece = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials)
    wordpiece.train_from_iterator(CORPUS, trainer)
    wordpiece.enable_truncation(5)
    wordpiece.enable_padding(length=7)
    (root / "bert").mkdir()
    wordpiece.save(str(root / "bert" / "tokenizer.json"))
    (root / "old_bert").mkdir()
    pieces = sorted(wordpiece.get_vocab().items(), key=lambda item: item[1])
    (root / "old_bert" / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces))

    unigram = tokenizers.Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=specials, unk_token="<unk>")
    unigram.train_from_iterator(CORPUS, trainer)
    (root / "unigram").mkdir()
    unigram.save(str(root / "unigram" / "tokenizer.json"))
    return root


def every_kind(folder: Path) -> list[Vocabulary]:
    return [
        *(load_vocabulary(folder / name) for name in ("xlmr", "bert", "old_bert", "unigram")),
        CharacterVocabulary.from_text("".join(CORPUS)),
        ByteVocabulary(),
    ]


@needs_models
def test_xlm_r_ids_are_fairseqs() -> None:
    vocabulary = load_vocabulary(Path(MODELS or "") / "xlmr")
    assert vocabulary.encode("Hello world") == [35378, 8999]
    ids = (vocabulary.bos_id, vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id)
    assert ids == (0, 1, 2, 3)
    assert (vocabulary.mask_id, vocabulary.size) == (250001, 250002)
    assert [vocabulary.piece(i) for i in (0, 1, 2, 3, 35378, 250001)] == [
        "<s>", "<pad>", "</s>", "<unk>", "▁Hello", "<mask>",
    ]  # fmt: skip
    text = "Das ist ein schöner Tag, n'est-ce pas?"
    assert vocabulary.decode(vocabulary.encode(text)) == text


@needs_models
def test_pruned_vocabulary_fits_the_embedding_table_of_its_checkpoint() -> None:
    root = Path(MODELS or "") / "e5-small-en-de-fr"
    vocabulary = load_vocabulary(root)
    assert vocabulary.size == json.loads((root / "config.json").read_text())["vocab_size"]
    assert vocabulary.mask_id == vocabulary.size - 1


def test_sentencepiece_ids_are_the_librarys_plus_one(folder: Path) -> None:
    import sentencepiece

    file = folder / "xlmr" / "sentencepiece.bpe.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    vocabulary = SentencePieceVocabulary(file)
    for text in {*CORPUS, "", "  two  spaces "}:
        assert vocabulary.encode(text) == [i + 1 for i in processor.encode(text)]
    assert vocabulary.mask_id == len(processor) + 1
    # Piece 0 of the model is <unk>, whose shifted id would be padding.
    assert set(vocabulary.encode("日")) & {vocabulary.unk_id}
    assert vocabulary.pad_id not in vocabulary.encode("日本")


@pytest.mark.parametrize("ids", [{"bos_id": -1, "eos_id": -1}, {"bos_id": -1, "eos_id": 1}])
def test_a_model_whose_first_pieces_are_no_special_ones_is_refused(tmp_path, ids) -> None:
    import sentencepiece

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS), model_writer=stream, vocab_size=55, minloglevel=2, **ids
    )
    file = tmp_path / "spiece.model"
    file.write_bytes(stream.getvalue())
    with pytest.raises(UserError, match=r"the first three must be special"):
        SentencePieceVocabulary(file)


def test_spare_rows_before_the_mask(folder: Path) -> None:
    file = folder / "xlmr" / "sentencepiece.bpe.model"
    vocabulary = SentencePieceVocabulary(file, mask_id=200)
    assert (vocabulary.mask_id, vocabulary.size) == (200, 201)
    assert vocabulary.decode([150, *vocabulary.encode("the dog")]) == "the dog"
    with pytest.raises(UserError, match="mask_id=50 must come after"):
        SentencePieceVocabulary(file, mask_id=50)


@pytest.mark.parametrize("name", ["bert", "unigram"])
def test_tokenizers_parity(folder: Path, name: str) -> None:
    import tokenizers

    reference = tokenizers.Tokenizer.from_file(str(folder / name / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    vocabulary = load_vocabulary(folder / name)
    for text in set(CORPUS):
        ids = reference.encode(text, add_special_tokens=False).ids
        assert len(ids) > 7  # Longer than the truncation stored in the file.
        assert vocabulary.encode(text) == ids
        assert vocabulary.decode(ids) == reference.decode(ids)
    assert vocabulary.size == reference.get_vocab_size()
    assert vocabulary.special_ids == {
        reference.token_to_id(vocabulary.piece(i)) for i in vocabulary.special_ids
    }
    assert len(vocabulary.special_ids) == 5


def test_vocab_txt_equals_tokenizer_json(folder: Path) -> None:
    old, new = load_vocabulary(folder / "old_bert"), load_vocabulary(folder / "bert")
    assert [old.encode(text) for text in CORPUS[:4]] == [new.encode(text) for text in CORPUS[:4]]
    assert (old.mask_id, old.special_ids) == (new.mask_id, new.special_ids)
    config = folder / "old_bert" / "tokenizer_config.json"
    config.write_text('{"do_lower_case": false}')
    try:
        assert load_vocabulary(folder / "old_bert").encode("The") != new.encode("The")
    finally:
        config.unlink()


def test_laws_of_every_kind(folder: Path) -> None:
    lowercase = {"bert", "old_bert"}
    names = ["xlmr", "bert", "old_bert", "unigram", "character", "byte"]
    for name, vocabulary in zip(names, every_kind(folder)):
        roles = ("bos_id", "eos_id", "pad_id", "unk_id", "mask_id")
        special = [getattr(vocabulary, role) for role in roles]
        assert len(set(special)) == 5 and set(special) <= vocabulary.special_ids
        assert max(vocabulary.special_ids) < vocabulary.size
        for text in set(CORPUS):
            ids = vocabulary.encode(text)
            assert not vocabulary.special_ids & set(ids), name
            around = [vocabulary.bos_id, *ids, vocabulary.mask_id, vocabulary.eos_id]
            decoded = vocabulary.decode(around)
            assert decoded == vocabulary.decode(ids)
            if name in lowercase:
                text = text.lower().replace("ü", "u")
            assert decoded.replace(" ", "") == text.replace(" ", "")
        assert vocabulary.encode_batch(CORPUS[:4]) == [vocabulary.encode(t) for t in CORPUS[:4]]
        assert vocabulary.encode_batch([]) == [] and vocabulary.decode([]) == ""
        pieces = [vocabulary.piece(i) for i in range(vocabulary.size)]
        assert len(set(pieces)) == vocabulary.size and all(pieces)
        with pytest.raises(UserError, match="outside the vocabulary"):
            vocabulary.decode([vocabulary.size])
        with pytest.raises(UserError, match="outside the vocabulary"):
            vocabulary.piece(-1)


def test_text_that_spells_a_special_token_does_not_become_one(folder: Path) -> None:
    for vocabulary in every_kind(folder):
        bos, mask = vocabulary.piece(vocabulary.bos_id), vocabulary.piece(vocabulary.mask_id)
        ids = set(vocabulary.encode(f"the {mask} dog{bos}"))
        assert not ids & {vocabulary.bos_id, vocabulary.mask_id, vocabulary.eos_id}


def test_save_and_load_give_an_equal_vocabulary(folder: Path, tmp_path: Path) -> None:
    prints = set()
    for number, vocabulary in enumerate(every_kind(folder)):
        vocabulary.save(tmp_path / str(number))
        for again in (
            load_vocabulary(tmp_path / str(number)),
            load_vocabulary(tmp_path / str(number) / vocabularies.DESCRIPTION_FILE),
        ):
            assert type(again) is type(vocabulary)
            assert again.fingerprint == vocabulary.fingerprint
            assert again.special_ids == vocabulary.special_ids
            assert again.encode(CORPUS[1]) == vocabulary.encode(CORPUS[1])
        prints.add(vocabulary.fingerprint)
    assert len(prints) == 6


def test_copies_encode_alike(folder: Path) -> None:
    for vocabulary in every_kind(folder):
        for twin in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
            assert twin.encode("The [MASK] dog") == vocabulary.encode("The [MASK] dog")
            assert twin.fingerprint == vocabulary.fingerprint


def test_unknown_characters_and_broken_bytes() -> None:
    characters = CharacterVocabulary("abc")
    assert characters.encode("abx") == [4, 5, characters.unk_id]
    byte = ByteVocabulary()
    assert byte.decode(byte.encode("ü日🦊")) == "ü日🦊"
    assert byte.decode(byte.encode("ü")[:1]) == "\ufffd"
    assert byte.piece(byte.encode(" ")[0]) == "<0x20>"


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a/vocabulary.json", b'{"format": 9, "kind": "byte"}', "format 9"),
        ("a/vocabulary.json", b'{"format": 1, "kind": "bytes"}', "did you mean byte"),
        ("a/vocabulary.json", b'{"format": 1, "kind": "character"}', "lacks the key 'alphabet'"),
        ("a/vocabulary.json", b"[]", "JSON object"),
        ("a/vocabulary.json", b"{", "not valid JSON"),
        ("a/vocabulary.json", b'{"format": 1, "kind": "tokenizers"}', "cannot be read"),
        ("a/tokenizer.json", b"{}", "not a tokenizers file"),
        ("a/tokenizer.json", b"\xff", "not a tokenizers file"),
        ("a/sentencepiece.bpe.model", b"nonsense", "not a SentencePiece model"),
        ("a/vocab.txt", b"[PAD]\nthe\n", "has no bos token"),
        ("a/vocab.txt", b"\xff\xfe", "not UTF-8"),
        ("a/readme.md", b"", "No vocabulary in"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        load_vocabulary(path.parent)


def test_wrong_paths_and_alphabets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_vocabulary(tmp_path / "absent")
    with pytest.raises(UserError, match=r"not a \.json"):
        load_vocabulary(write(tmp_path / "a.bin", b""))
    for alphabet in ("", "aa"):
        with pytest.raises(UserError, match="alphabet"):
            CharacterVocabulary(alphabet)
    with pytest.raises(UserError, match="cannot be read"):
        TokenizersVocabulary(tmp_path / "tokenizer.json")


def test_a_wordpiece_file_has_one_piece_a_line_whatever_the_pieces(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "\u2028", "\u0085", "b", "c"]
    for ending in ("", "\n"):
        file = tmp_path / "vocab.txt"
        file.write_bytes("\n".join(pieces).encode() + ending.encode())
        vocabulary = TokenizersVocabulary.from_wordpieces(file)
        assert vocabulary.size == 10
        assert vocabulary.encode("a b c") == [5, 8, 9]
