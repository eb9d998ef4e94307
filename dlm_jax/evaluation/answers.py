"""Reference answers, and what counts of a text: its words, last number, option or conclusion."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from dlm_jax.evaluation.dependency_graph import DependencyGraph

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d)")
# A minus sign belongs to the number only where it cannot be a subtraction, as in `7-3`.
_NUMBER = re.compile(r"(?:(?<![\w)\]])-)?(?:\d+(?:\.\d+)?|(?<![\w.])\.\d+)")
# The letter of an option alone, in brackets, or before its text; not the article in `A dog`.
_CHOICE = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])(?:[.):]|\s*$))")
_TERM = r"-?\d+(?:\.\d+)?"
_OPERATION = rf"[^\S\n]*[-+*/][^\S\n]*{_TERM}"
# A chain of operations, what it equals, and nothing behind it that would belong to that.
_EQUATION = re.compile(
    rf"(?<![\w.])({_TERM}(?:{_OPERATION})+)[^\S\n]*=[^\S\n]*({_TERM})(?!\.?\d|{_OPERATION})"
)
_TERM_AND_SIGN = re.compile(rf"({_TERM})[^\S\n]*([-+*/])?")
# What a chain cannot begin behind; at the beginning of a line it is the mark of a list.
_UNFINISHED = re.compile(r"[^\s][^\S\n]*[-+*/=][^\S\n]*$")
_CONCLUSION = re.compile(r"\banswer is:?\s+", re.IGNORECASE)


class Answer(str):
    """A reference answer that knows its group, what else would be right, and what builds on what.

    It is the text itself wherever text is wanted.

    Attributes:
      group: part of the benchmark that it belongs to, such as a subject; None for none.
      references: all right answers, this one first.
      graph: how the spans of an answer of this form depend on each other; None if not known.
    """

    group: str | None
    references: tuple[str, ...]
    graph: DependencyGraph | None

    def __new__(
        cls,
        text: str,
        *,
        group: str | None = None,
        references: Sequence[str] = (),
        graph: DependencyGraph | None = None,
    ) -> Answer:
        """Returns `text` with its group and graph, and `references` beside it."""
        answer = super().__new__(cls, text)
        answer.group = group
        answer.references = tuple(dict.fromkeys((text, *references)))
        answer.graph = graph
        return answer


def normalize_whitespace(text: str) -> str:
    """Returns `text` in Unicode NFC with runs of white space as one space and none at the ends.

    Case, punctuation and articles stay as they are.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalize_answer(text: str) -> list[str]:
    """Returns the words of `text` lower-cased, without ASCII punctuation and English articles.

    The normalisation of the SQuAD evaluation script (Rajpurkar et al. 2016).
    """
    lowered = "".join(char for char in text.lower() if char not in string.punctuation)
    return _ARTICLES.sub(" ", lowered).split()


def last_number(text: str) -> Decimal | None:
    """Returns the last number of `text` with commas between digits dropped, or None."""
    plain = text.replace("\N{MINUS SIGN}", "-")
    found = _NUMBER.findall(_THOUSANDS_COMMA.sub("", plain))
    return Decimal(found[-1]) if found else None


def chosen_option(text: str) -> str | None:
    """Returns the letter of the option that `text` begins with: `B`, `(B)`, `B.` or `(B) blue`."""
    found = _CHOICE.match(text)
    return (found[1] or found[2]) if found else None


def conclusion(text: str) -> str:
    """Returns what follows the last `answer is`, or all of `text`, without a full stop at its end.

    It reads worked answers as the prompts of BIG-Bench Hard (Suzgun et al. 2022) end them.
    """
    return _CONCLUSION.split(text)[-1].strip().removesuffix(".").rstrip()


def equations(text: str) -> list[bool]:
    """Returns for each equation of numbers, such as `3 + 4 * 5 = 23`, whether it holds, exactly.

    Its left side is a chain of +, -, * and /, all on one line; nothing is divided by zero.
    """
    plain = _THOUSANDS_COMMA.sub("", text.replace("\N{MINUS SIGN}", "-"))
    return [
        _value(found[1]) == Fraction(found[2])
        for found in _EQUATION.finditer(plain)
        if not _UNFINISHED.search(plain[: found.start()])
    ]


def _value(chain: str) -> Fraction | None:
    """What `a + b * c` comes to, products first; None where something is divided by zero."""
    products: list[Fraction] = []
    sign = "+"
    for term, following in _TERM_AND_SIGN.findall(chain):
        value = Fraction(term)
        if sign == "/" and value == 0:
            return None
        if sign in "*/":
            products[-1] = products[-1] * value if sign == "*" else products[-1] / value
        else:
            products.append(value if sign == "+" else -value)
        sign = following
    return sum(products, Fraction(0))
