"""Reading of compiled HLO text: computations, who calls whom, and how often loops go round."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) (?:\(.*\) -> .*)?\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_OPCODE = re.compile(r"\s*(?P<opcode>[\w\-]+)\((?P<arguments>.*)$")
_CALLEES = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation"
    r"|called_computations)=(?:\{(?P<several>[^}]*)\}|%?(?P<one>[\w.\-]+))"
)
_TRIPS = re.compile(r'"?known_trip_count"?\s*:\s*\{\s*"?n"?\s*:\s*"?(\d+)')
_INTEGER = re.compile(r"^[su](?:8|16|32|64)\[\]")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Attributes:
        name: without the percent sign.
        type: shape as written, such as 'bf16[16,512]{1,0}' or a tuple of them.
        opcode: such as 'all-gather'.
        arguments: operands and attributes, as written.
    """

    name: str
    type: str
    opcode: str
    arguments: str

    def attribute(self, name: str) -> str | None:
        """Value of a simple attribute `name=value`, without the percent sign."""
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.arguments)
        return match[1] if match else None

    def operands(self) -> list[str]:
        """Names of its operands."""
        inner = self.arguments[: _closing("(" + self.arguments) - 2]
        return re.findall(r"%([\w.\-]+)", inner)

    def callees(self) -> list[str]:
        """Names of the computations that it calls."""
        names: list[str] = []
        for match in _CALLEES.finditer(self.arguments):
            listed = match["several"].split(",") if match["several"] else [match["one"]]
            names += [name.strip().lstrip("%") for name in listed if name and name.strip()]
        return names


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
        computations: instructions of each computation, by its name.
        entry: name of the computation that runs first.
    """

    computations: dict[str, list[Instruction]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Module:
        """Reads `compiled.as_text()`.

        Raises:
            ValueError: the text has no entry computation.
        """
        computations: dict[str, list[Instruction]] = {}
        entry, current = "", None
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                current = computations.setdefault(header["name"], [])
                entry = header["name"] if header["entry"] else entry
            elif current is not None:
                instruction = _instruction(line)
                if instruction:
                    current.append(instruction)
        if not entry:
            raise ValueError("The text is no HLO module: it has no ENTRY computation.")
        return cls(computations, entry)

    def executed(self, unknown_trips: float = 1.0) -> Iterator[tuple[Instruction, str, float]]:
        """Yields every instruction that can run: itself, its computation, and how often it runs.

        Bodies of loops count as often as the loop goes round; every branch of a conditional
        counts as if it were taken.

        Args:
            unknown_trips: rounds of a loop whose number is only known when the program runs.
        """
        waiting = [(self.entry, 1.0)]
        while waiting:
            name, times = waiting.pop()
            for instruction in self.computations.get(name, ()):
                yield instruction, name, times
                rounds = 1.0
                if instruction.opcode == "while":
                    known = self.trip_count(instruction)
                    rounds = unknown_trips if known is None else float(known)
                waiting += [(callee, times * rounds) for callee in instruction.callees()]

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a `while` goes round, or None where only running it can tell.

        The compiler's own annotation counts where there is one. Else the loop must be what a scan
        becomes: a counter from 0, compared with a constant. It is not always in steps of 1: the
        compiler unrolls the loops into which it cuts a product that waits for the network.
        """
        annotated = _TRIPS.search(loop.arguments)
        if annotated:
            return int(annotated[1])
        within = list(self._within(loop.attribute("condition") or ""))
        limits = {_constant(i) for i in within if i.opcode == "constant"} - {None}
        compares = [i for i in within if i.opcode == "compare"]
        if len(limits) != 1 or len(compares) != 1 or "direction=LT" not in compares[0].arguments:
            return None
        counters = [i for i in within if i.opcode == "get-tuple-element" and _INTEGER.match(i.type)]
        place = counters[0].attribute("index") if len(counters) == 1 else None
        step = self._step(loop.attribute("body") or "", int(place)) if place else 1
        return -(-(limits.pop() or 0) // step)

    def _step(self, body: str, place: int) -> int:
        """What a round of a loop adds to the counter at `place` of its state; 1 where unclear."""
        instructions = self.computations.get(body, [])
        named = {instruction.name: instruction for instruction in instructions}
        if not instructions or place >= len(instructions[-1].operands()):
            return 1
        current, total = named.get(instructions[-1].operands()[place]), 0
        while current is not None and current.opcode == "add":
            terms = [named.get(name) for name in current.operands()]
            added = [_constant(term) for term in terms if term and term.opcode == "constant"]
            others = [term for term in terms if term and term.opcode != "constant"]
            if len(added) != 1 or len(others) != 1:
                return 1
            total, current = total + (added[0] or 0), others[0]
        return max(1, total)

    def _within(self, name: str) -> Iterator[Instruction]:
        for instruction in self.computations.get(name, ()):
            yield instruction
            for callee in instruction.callees():
                yield from self._within(callee)


def _constant(instruction: Instruction) -> int | None:
    """Value of an integer constant."""
    if instruction.opcode != "constant" or not _INTEGER.match(instruction.type):
        return None
    return int(instruction.arguments.split(")")[0])


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    rest = _COMMENT.sub("", match["rest"])
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    parts = _OPCODE.match(rest[end:]) if end > 0 else None
    if parts is None:
        return None
    return Instruction(match["name"], rest[:end], parts["opcode"], parts["arguments"])


def _closing(text: str) -> int:
    """Position after the parenthesis that closes the first one."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place + 1
    return -1
