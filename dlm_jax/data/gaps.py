"""Texts with gaps: `the state of the <mask>*2 is strong`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError

# Both spellings of a mask, whatever the vocabulary calls it; '*3' makes a gap of three tokens.
_GAP = re.compile(r"(?:\[MASK\]|<mask>)(?:\*(\d+))?")


@dataclasses.dataclass(frozen=True)
class GappedText:
    """A text whose gaps are to be filled.

    Attributes:
        pieces: given text and sizes of gaps in turn.
        parts: the same without empty texts, as ids and sizes.
    """

    pieces: tuple[str, ...]
    parts: tuple[Sequence[int] | int, ...]

    @classmethod
    def parse(cls, text: str, vocabulary: Vocabulary, longest: int) -> GappedText:
        """Reads a text in which '[MASK]' or '<mask>' is a gap of one token, '<mask>*3' of three.

        Raises:
            UserError: it has no gap, or one of no token or of more than `longest`.
        """
        if not _GAP.search(text):
            raise UserError(
                f"{text!r} has no gap to fill: write <mask>, or <mask>*3 for three tokens"
            )
        pieces = _GAP.split(text)
        parts: list[Sequence[int] | int] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                size = int(piece or 1)
                if not 1 <= size <= longest:
                    raise UserError(
                        f"{text!r} has a gap of {size} tokens, and 1 to {longest} can be filled"
                    )
                parts.append(size)
            elif piece:
                parts.append(vocabulary.encode(piece))
        return cls(tuple(pieces), tuple(parts))

    def filled(self, ids: Sequence[int], vocabulary: Vocabulary) -> str:
        """The text with its gaps filled; what was given stands as it was, character for character.

        Args:
            ids: of the whole row, from the first given or written one.
            vocabulary: ids back to text.
        """
        parts, place, text = iter(self.parts), 0, ""
        for index, piece in enumerate(self.pieces):
            if not index % 2:
                text += piece
                place += len(next(parts)) if piece else 0  # type: ignore[arg-type]
                continue
            end = place + int(next(parts))  # type: ignore[arg-type]
            before = vocabulary.decode(ids[:place])
            # Decoded together, so that pieces of one word are joined as they should be.
            gap = vocabulary.decode(ids[:end]).removeprefix(before)
            text += gap.lstrip() if not text or text[-1].isspace() else gap
            place = end
        return text
