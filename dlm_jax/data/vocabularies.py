"""Vocabularies: text to ids and back, with the special ids stated rather than assumed.

No id has a meaning by its value: in XLM-R id 0 opens a text and id 1 is padding. Text never yields
a special id, even when it spells one out; special tokens are placed by the data room alone.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dlm_jax.data.files import read_json, read_lines
from dlm_jax.errors import UserError, nearest

DESCRIPTION_FILE = "vocabulary.json"
_FORMAT = 1
_SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
_ROLES = {
    "bos": ("[CLS]", "<s>"),
    "eos": ("[SEP]", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "mask": ("[MASK]", "<mask>"),
}


class Vocabulary(abc.ABC):
    """A finite set of pieces, numbered from 0.

    Attributes:
      size: number of ids; every id is in [0, size).
      pad_id, bos_id, eos_id, unk_id, mask_id: ids of the special tokens.
      special_ids: all ids that no text encodes to and that `decode` leaves out.
    """

    kind: str
    size: int
    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int
    mask_id: int
    special_ids: frozenset[int]

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without any special token around them."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns `[encode(text) for text in texts]`, faster where the tokenizer can."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; special tokens are dropped wherever they stand.

        Raises:
          UserError: an id is outside [0, size).
        """
        kept = []
        for value in ids:
            token = int(value)
            self._check(token)
            if token not in self.special_ids:
                kept.append(token)
        return self._decode(kept) if kept else ""

    @abc.abstractmethod
    def piece(self, token: int) -> str:
        """Returns the surface form of one id, special tokens included, for traces and tables."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of everything that decides the ids: equal digests, equal encodings."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name, content in sorted(self._files().items()):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()[:32]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the files from which `load_vocabulary(directory)` gives an equal vocabulary."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files().items():
            (folder / name).write_bytes(content)
        description = {"format": _FORMAT, "kind": self.kind, **self._description()}
        (folder / DESCRIPTION_FILE).write_text(
            json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @abc.abstractmethod
    def _description(self) -> dict[str, Any]:
        """What, beside the files, decides the ids (JSON values)."""

    def _files(self) -> dict[str, bytes]:
        return {}

    def _check(self, token: int) -> None:
        if not 0 <= token < self.size:
            raise UserError(f"Token id {token} is outside the vocabulary of {self.size} pieces.")

    def _use_fairseq_layout(self, size: int) -> None:
        """Sets the ids as XLM-R numbers them: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> last."""
        self.bos_id, self.pad_id, self.eos_id, self.unk_id = 0, 1, 2, 3
        self.mask_id = size - 1
        self.size = size
        self.special_ids = frozenset((0, 1, 2, 3, size - 1))

    def _special_piece(self, token: int) -> str | None:
        names = {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>", self.mask_id: "<mask>"}
        return names.get(token)


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model in the numbering of fairseq, as XLM-R uses it.

    The id of a piece is its SentencePiece id plus one; <s> 0, <pad> 1, </s> 2, <unk> 3, and <mask>
    follows the last piece.

    Args:
      file: the `.model` file.
      mask_id: id of <mask>; by default one past the last piece.

    Attributes:
      content: the serialised model.

    Raises:
      UserError: the file is missing or is no SentencePiece model, or `mask_id` is a piece.
    """

    kind = "sentencepiece"

    def __init__(self, file: str | os.PathLike[str], mask_id: int | None = None):
        self._load(_read_file(Path(file)), str(file), mask_id)

    @classmethod
    def from_bytes(cls, content: bytes, origin: str) -> SentencePieceVocabulary:
        """Reads a serialised model; `origin` is its name in error messages."""
        vocabulary = cls.__new__(cls)
        vocabulary._load(content, origin, None)
        return vocabulary

    def _load(self, content: bytes, origin: str, mask_id: int | None) -> None:
        import sentencepiece

        self.content = content
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise UserError(f"{origin} is not a SentencePiece model.") from error
        pieces = len(self._processor)
        ordinary = [i for i in range(min(3, pieces)) if not self._is_special(i)]
        if ordinary:
            raise UserError(
                f"{origin} has {self._processor.IdToPiece(ordinary[0])!r} as its piece "
                f"{ordinary[0]}, and the first three must be special, such as <unk>, <s> and </s>."
            )
        if mask_id is not None and mask_id <= pieces:
            raise UserError(f"mask_id={mask_id} must come after the {pieces} pieces of {origin}.")
        self._use_fairseq_layout((mask_id if mask_id is not None else pieces + 1) + 1)
        self._renumbered = {self._processor.unk_id(): self.unk_id}
        for token, own in (
            (self._processor.bos_id(), self.bos_id),
            (self._processor.eos_id(), self.eos_id),
        ):
            if token >= 0:
                self._renumbered[token] = own

    def _is_special(self, piece: int) -> bool:
        processor = self._processor
        return processor.IsControl(piece) or processor.IsUnknown(piece) or processor.IsUnused(piece)

    def encode(self, text: str) -> list[int]:
        return self._from_processor(self._processor.EncodeAsIds(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._processor.Encode(list(texts), out_type=int)
        return [self._from_processor(ids) for ids in encoded]

    def piece(self, token: int) -> str:
        self._check(token)
        special = self._special_piece(token)
        if special is not None:
            return special
        # Ids between the last piece and <mask> exist when a checkpoint has spare rows.
        in_model = token - 1 < len(self._processor)
        return self._processor.IdToPiece(token - 1) if in_model else f"<extra_{token}>"

    def _from_processor(self, ids: list[int]) -> list[int]:
        renumbered = self._renumbered
        return [renumbered[i] if i in renumbered else i + 1 for i in ids]

    def _decode(self, ids: list[int]) -> str:
        pieces = len(self._processor)
        return self._processor.DecodeIds([i - 1 for i in ids if i - 1 < pieces])

    def _description(self) -> dict[str, Any]:
        return {"mask_id": self.mask_id}

    def _files(self) -> dict[str, bytes]:
        return {_SENTENCEPIECE_FILES[0]: self.content}


class TokenizersVocabulary(Vocabulary):
    """A Hugging Face `tokenizer.json`: WordPiece, Unigram or byte-level BPE.

    Special tokens are found by name: [CLS] or <s>, [SEP] or </s>, [PAD] or <pad>, [UNK] or <unk>,
    [MASK] or <mask>.
    Padding, truncation and the tokenizer's own template are switched off.

    Args:
      file: a `tokenizer.json`.

    Attributes:
      content: the text of the file.

    Raises:
      UserError: the file is missing or is no tokenizer, or lacks one of the special tokens.
    """

    kind = "tokenizers"

    def __init__(self, file: str | os.PathLike[str]):
        self._load(_read_file(Path(file)), str(file))

    @classmethod
    def from_wordpieces(
        cls, file: str | os.PathLike[str], lowercase: bool = True
    ) -> TokenizersVocabulary:
        """Builds BERT's tokenizer from a `vocab.txt`, one piece a line."""
        import tokenizers

        vocab = {piece: index for index, piece in enumerate(read_lines(Path(file)))}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
        tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = tokenizers.decoders.WordPiece()
        names = [name for role in _ROLES.values() for name in role if name in vocab]
        tokenizer.add_special_tokens(names)
        return cls.from_bytes(tokenizer.to_str().encode(), str(file))

    @classmethod
    def from_bytes(cls, content: bytes, origin: str) -> TokenizersVocabulary:
        """Reads the text of a `tokenizer.json`; `origin` is its name in error messages."""
        vocabulary = cls.__new__(cls)
        vocabulary._load(content, origin)
        return vocabulary

    def _load(self, content: bytes, origin: str) -> None:
        import tokenizers

        try:
            tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # The library raises bare Exception for a malformed file.
            raise UserError(f"{origin} is not a tokenizers file.") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self.content, self._tokenizer = content, tokenizer
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocab.values()) + 1
        for role, names in _ROLES.items():
            ids = [vocab[name] for name in names if name in vocab]
            if not ids:
                raise UserError(f"{origin} has no {role} token ({' or '.join(names)}).")
            setattr(self, f"{role}_id", ids[0])
        added = tokenizer.get_added_tokens_decoder()
        special = {token for token, entry in added.items() if entry.special}
        roles = {self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id}
        self.special_ids = frozenset(special | roles)

    def encode(self, text: str) -> list[int]:
        return self._ordinary(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._ordinary(encoding.ids) for encoding in encodings]

    def __getstate__(self) -> dict[str, Any]:
        # The library's own pickle forgets `encode_special_tokens`.
        return {"content": self.content}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._load(state["content"], "pickled vocabulary")

    def _ordinary(self, ids: list[int]) -> list[int]:
        # A Unigram model lists its special tokens as pieces, so text can spell them.
        unk_id, special_ids = self.unk_id, self.special_ids
        return [unk_id if token in special_ids else token for token in ids]

    def piece(self, token: int) -> str:
        self._check(token)
        return self._tokenizer.id_to_token(token) or f"<extra_{token}>"

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _description(self) -> dict[str, Any]:
        return {}

    def _files(self) -> dict[str, bytes]:
        return {"tokenizer.json": self.content}


class CharacterVocabulary(Vocabulary):
    """One id a character, after <s> 0, <pad> 1, </s> 2, <unk> 3; <mask> is last.

    Args:
      alphabet: the characters in the order of their ids.

    Raises:
      UserError: the alphabet is empty or repeats a character.
    """

    kind = "character"

    def __init__(self, alphabet: str):
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise UserError("alphabet must name at least one character, and each one once.")
        self.alphabet = alphabet
        self._ids = {character: index + 4 for index, character in enumerate(alphabet)}
        self._use_fairseq_layout(len(alphabet) + 5)

    @classmethod
    def from_text(cls, text: str) -> CharacterVocabulary:
        """Takes the characters of `text`, sorted."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(character, self.unk_id) for character in text]

    def piece(self, token: int) -> str:
        self._check(token)
        return self._special_piece(token) or self.alphabet[token - 4]

    def _decode(self, ids: list[int]) -> str:
        return "".join(self.alphabet[token - 4] for token in ids)

    def _description(self) -> dict[str, Any]:
        return {"alphabet": self.alphabet}


class ByteVocabulary(Vocabulary):
    """The 256 bytes of UTF-8 as ids 4 to 259, after <s> <pad> </s> <unk>; <mask> is 260."""

    kind = "byte"

    def __init__(self) -> None:
        self._use_fairseq_layout(261)

    def encode(self, text: str) -> list[int]:
        return [byte + 4 for byte in text.encode("utf-8")]

    def piece(self, token: int) -> str:
        self._check(token)
        special = self._special_piece(token)
        if special is not None:
            return special
        byte = token - 4
        return chr(byte) if 32 < byte < 127 else f"<0x{byte:02X}>"

    def _decode(self, ids: list[int]) -> str:
        # A denoiser may write half of a character; the reader sees the replacement sign there.
        return bytes(token - 4 for token in ids).decode("utf-8", errors="replace")

    def _description(self) -> dict[str, Any]:
        return {}


def load_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Reads a vocabulary saved by `Vocabulary.save`, of a run or a Hugging Face folder, or a file.

    In a folder `vocabulary.json` is preferred, then `tokenizer.json`, a SentencePiece model and
    `vocab.txt`. A single file is told by its name: `*.json`, `*.model` or `*.txt`.

    Raises:
      UserError: nothing readable is there.
    """
    location = Path(path)
    if location.is_dir():
        return _load_folder(location)
    if not location.exists():
        raise UserError(f"Vocabulary {path} does not exist.")
    if location.name == DESCRIPTION_FILE:
        return _load_folder(location.parent)
    if location.suffix == ".json":
        return TokenizersVocabulary(location)
    if location.suffix == ".model":
        return SentencePieceVocabulary(location)
    if location.suffix == ".txt":
        return TokenizersVocabulary.from_wordpieces(location, _lowercase(location.parent))
    raise UserError(f"Vocabulary {path} is not a .json, .model or .txt file.")


def _load_folder(folder: Path) -> Vocabulary:
    if (folder / DESCRIPTION_FILE).exists():
        return _load_saved(folder)
    if (folder / "tokenizer.json").exists():
        return TokenizersVocabulary(folder / "tokenizer.json")
    for name in _SENTENCEPIECE_FILES:
        if (folder / name).exists():
            return SentencePieceVocabulary(folder / name)
    if (folder / "vocab.txt").exists():
        return TokenizersVocabulary.from_wordpieces(folder / "vocab.txt", _lowercase(folder))
    if (folder / "vocabulary" / DESCRIPTION_FILE).exists():  # a run folder
        return _load_saved(folder / "vocabulary")
    raise UserError(
        f"No vocabulary in {folder}: expected {DESCRIPTION_FILE}, tokenizer.json, "
        f"{_SENTENCEPIECE_FILES[0]} or vocab.txt."
    )


def _load_saved(folder: Path) -> Vocabulary:
    description = read_json(folder / DESCRIPTION_FILE)
    kinds = ("sentencepiece", "tokenizers", "character", "byte")
    kind = description.get("kind")
    if description.get("format") != _FORMAT:
        raise UserError(
            f"{folder / DESCRIPTION_FILE} has format {description.get('format')!r}, "
            f"and this version reads format {_FORMAT}."
        )
    try:
        if kind == "sentencepiece":
            return SentencePieceVocabulary(folder / _SENTENCEPIECE_FILES[0], description["mask_id"])
        if kind == "tokenizers":
            return TokenizersVocabulary(folder / "tokenizer.json")
        if kind == "character":
            return CharacterVocabulary(description["alphabet"])
        if kind == "byte":
            return ByteVocabulary()
    except KeyError as error:
        raise UserError(f"{folder / DESCRIPTION_FILE} lacks the key {error}.") from error
    raise UserError(
        f"{folder / DESCRIPTION_FILE} names the unknown kind {kind!r}{nearest(str(kind), kinds)}."
    )


def _lowercase(folder: Path) -> bool:
    """Whether a BERT folder says its text is lower-cased; BERT's own default is that it is."""
    config = folder / "tokenizer_config.json"
    return bool(read_json(config).get("do_lower_case", True)) if config.exists() else True


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"Vocabulary file {file} cannot be read ({error.strerror}).") from error
