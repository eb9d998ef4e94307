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
        pieces: given texts and sizes of gaps, in order; no two gaps stand side by side.
        parts: the same as ids and sizes.
    """

    pieces: tuple[str | int, ...]
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
        pieces: list[str | int] = []
        for index, piece in enumerate(_GAP.split(text)):
            if index % 2:
                size = int(piece or 1)
                if not 1 <= size <= longest:
                    raise UserError(
                        f"{text!r} has a gap of {size} tokens, and 1 to {longest} can be filled"
                    )
                if pieces and isinstance(pieces[-1], int):
                    # Filled as one: a character may take tokens of both.
                    size += pieces.pop()  # type: ignore[operator]
                pieces.append(size)
            elif piece:
                pieces.append(piece)
        parts = (p if isinstance(p, int) else vocabulary.encode(p) for p in pieces)
        return cls(tuple(pieces), tuple(parts))

    def filled(self, ids: Sequence[int], vocabulary: Vocabulary) -> str:
        """The text with its gaps filled; what was given stands as it was, character for character.

        Args:
            ids: of the whole row, from the first given or written one.
            vocabulary: ids back to text.
        """
        place, text = 0, ""
        for piece, part in zip(self.pieces, self.parts, strict=True):
            if isinstance(piece, str):
                text += piece
                place += len(part)  # type: ignore[arg-type]
                continue
            end = place + piece
            before = vocabulary.decode(ids[:place])
            # Decoded together, so that pieces of one word are joined as they should be.
            gap = vocabulary.decode(ids[:end]).removeprefix(before)
            text += gap.lstrip() if not text or text[-1].isspace() else gap
            place = end
        return text
