"""Demonstrations: drawn by the identity of the example, and written in front of its question.

Which demonstrations an example gets depends only on the seed, its own text and the pool: not on its
neighbours, the process or the version of Python. An example never demonstrates itself.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set

from dlm_jax.data.tasks import Record, Template, list_tasks
from dlm_jax.errors import UserError

DEMONSTRATIONS = "demonstrations"
"""Key of a record that holds its demonstrations, themselves records."""

_SHOT = re.compile(r"_\d+_shot$")

Records = Callable[[], Iterable[Record]]


def with_demonstrations(
    splits: Mapping[str, Records],
    pool: Records | Mapping[str, Records],
    shots: int,
    *,
    identity: Template,
    group: Template | None = None,
    in_order: bool = False,
    seed: int = 0,
) -> dict[str, Records]:
    """Returns `splits` with `shots` demonstrations in every record, under `DEMONSTRATIONS`.

    Records are the same if their `identity` is, white space and case aside. Such a record is never
    among an example's demonstrations, and none of these is there twice.

    Args:
      splits: for each split a function that yields its records.
      pool: yields the records that may demonstrate; or one such function for each split.
      shots: demonstrations of an example.
      identity: what makes two records the same example, usually the question.
      group: demonstrations share it with the example, for instance a subject or a language.
      in_order: take the first of the pool in its order instead of drawing.
      seed: of the draw.

    Raises:
      UserError: `shots` is negative; when a record is read, if too few others could demonstrate it.
    """
    if shots < 0:
        raise UserError(f"shots={shots} of a few-shot prompt must not be negative.")
    pools = pool if isinstance(pool, Mapping) else dict.fromkeys(splits, pool)

    def read(split: str) -> Iterator[Record]:
        if not shots:
            for record in splits[split]():
                yield {**record, DEMONSTRATIONS: []}
            return
        candidates = _Pools(pools[split](), identity, group)
        for record in splits[split]():
            chosen = candidates.choose(record, shots, in_order, seed)
            yield {**record, DEMONSTRATIONS: chosen}

    return {split: functools.partial(read, split) for split in splits}


def few_shot_prompt(
    question: Template,
    answer: Template,
    *,
    preamble: Template = "",
    separator: str = "\n\n",
) -> Callable[[Record], str]:
    """Returns the `inputs` of a task: preamble, demonstrations with answers, the open question.

    Args:
      question: how a record asks, in a demonstration and at the end.
      answer: what follows a demonstration's question, with the space before it.
      preamble: what stands in front, rendered from the example.
      separator: stands between demonstrations, and before the question.
    """

    def prompt(record: Record) -> str:
        shown = [
            render(question, demonstration) + render(answer, demonstration)
            for demonstration in record[DEMONSTRATIONS]
        ]
        return render(preamble, record) + separator.join([*shown, render(question, record)])

    return prompt


def name_with_shots(name: str, shots: int) -> str:
    """Returns the registered task that is `name` with so many demonstrations.

    Such names end in `_<k>_shot`. Without demonstrations it is `…_0_shot` where that is registered,
    for prompts of one wording, and else the plain name.

    Args:
      name: a task, with or without `_<k>_shot` at the end of its name.
      shots: demonstrations.

    Raises:
      UserError: no such task is registered.
    """
    stem, known = _SHOT.sub("", name), list_tasks()
    for candidate in (f"{stem}_{shots}_shot", *(() if shots else (stem,))):
        if candidate in known:
            return candidate
    alike = re.compile(rf"{re.escape(stem)}_(\d+)_shot")
    there = sorted(int(same[1]) for other in known if (same := alike.fullmatch(other)))
    offered = ", ".join(map(str, there)) if there else "none"
    raise UserError(
        f"Task {name!r} is not registered with {shots} demonstrations; it is with {offered}."
    )


def render(template: Template, record: Record) -> str:
    """Returns a template filled from a record; a missing key is a KeyError."""
    return template.format_map(record) if isinstance(template, str) else template(record)


def draw(
    example: str,
    candidates: Sequence[str],
    shots: int,
    seed: int,
    *,
    distinct: Set[str] | None = None,
) -> list[int]:
    """Draws `shots` places of `candidates` whose identities differ from `example` and each other.

    The draw is a stream of SHA-256 digests of (seed, number, example), so that it is the same
    everywhere and for ever.

    Args:
      example: identity of the example.
      candidates: identities of the pool.
      shots: how many to draw.
      seed: of the draw.
      distinct: the set of `candidates`, where the caller has it already.

    Raises:
      ValueError: fewer than `shots` distinct candidates differ from the example.
    """
    distinct = set(candidates) if distinct is None else distinct
    available = len(distinct) - (example in distinct)
    if available < shots:
        raise ValueError(f"{shots} of {available}")
    chosen: list[int] = []
    taken = {example}
    for number in itertools.count():
        if len(chosen) == shots:
            break
        digest = hashlib.sha256(f"{seed}\n{number}\n{example}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") % len(candidates)
        if candidates[place] not in taken:
            taken.add(candidates[place])
            chosen.append(place)
    return chosen


class _Pools:
    """The records that may demonstrate, by group."""

    def __init__(self, records: Iterable[Record], identity: Template, group: Template | None):
        self._identity, self._group = identity, group
        self._records: dict[str, list[Record]] = {}
        self._identities: dict[str, list[str]] = {}
        self._distinct: dict[str, set[str]] = {}
        for record in records:
            key = self._key(record)
            self._records.setdefault(key, []).append(record)
            same = self._same(record)
            self._identities.setdefault(key, []).append(same)
            self._distinct.setdefault(key, set()).add(same)

    def choose(self, record: Record, shots: int, in_order: bool, seed: int) -> list[Record]:
        key, example = self._key(record), self._same(record)
        records, identities = self._records.get(key, []), self._identities.get(key, [])
        distinct = self._distinct.get(key, set())
        available = len(distinct) - (example in distinct)
        if available < shots:
            where = f" of {key!r}" if key else ""
            raise UserError(
                f"A prompt of {shots} demonstrations needs as many examples{where} beside the one "
                f"that is asked, but the pool holds {available}."
            )
        if in_order:
            first: dict[str, int] = {}
            for place, name in enumerate(identities):
                first.setdefault(name, place)
                if len(first) > shots:
                    break
            first.pop(example, None)
            return [records[place] for place in list(first.values())[:shots]]
        chosen = draw(example, identities, shots, seed, distinct=distinct)
        return [records[place] for place in chosen]

    def _key(self, record: Record) -> str:
        return "" if self._group is None else render(self._group, record)

    def _same(self, record: Record) -> str:
        return " ".join(render(self._identity, record).split()).casefold()
