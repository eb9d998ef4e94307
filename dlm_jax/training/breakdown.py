"""Where the time of a training step goes, read off a profile of some steps."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

HOST_KINDS = ("data", "checkpoint", "evaluation", "wait")
"""Blocks of `Goodput.measure`, and the wait for the last of the steps; a trace shows them as
'dlm:<kind>'."""
DEVICE_SCOPES = ("noise", "embeddings", "layers", "attention", "mlp", "head_and_loss", "optimizer")
"""Names of `jax.named_scope` in the model and the step; the innermost one counts."""
COLLECTIVES = "collectives"
STEP = "train"

_SCOPE = re.compile(rf"(?<![\w.])({'|'.join(DEVICE_SCOPES)})(?![\w.])")
_MODULE = re.compile(r"HloModule ([\w.\-]+)")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", re.MULTILINE)
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="([^"]*)"')
_COLLECTIVE = re.compile(
    r" (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)"
    r"(?:-start|-done)?\("
)


@dataclasses.dataclass(frozen=True)
class Span:
    """Something that took time; in nanoseconds of the trace's clock."""

    begin: float
    end: float
    name: str


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Milliseconds of a step, by what the host and what the devices did meanwhile.

    Attributes:
        steps: how many were profiled.
        step: wall time of one, on average.
        host: of the step's time on the host; adds up to `step`. 'dispatch' is the call of the step,
            which waits where the devices are behind, 'wait' is for the last step, and 'rest' is all
            else.
        device: of the step's time on a device, the mean over this host's devices; adds up to
            `step`. 'other' is outside of all scopes, and 'idle' when nothing ran.
    """

    steps: int
    step: float
    host: Mapping[str, float]
    device: Mapping[str, float]

    def table(self) -> str:
        """The figures as lines of text."""
        rows = [f"one step of {self.steps}: {self.step:.2f} ms"]
        for title, parts in (("host", self.host), ("device", self.device)):
            for name, value in sorted(parts.items(), key=lambda part: -part[1]):
                share = value / self.step if self.step else 0.0
                rows.append(f"  {title:<6}  {name:<14} {value:10.2f} ms {share:6.1%}")
        return "\n".join(rows)


def write_breakdown(folder: Path, program: str) -> Breakdown | None:
    """Reads the newest trace in a profile's folder; writes breakdown.json and breakdown.txt there.

    Args:
        folder: given to `jax.profiler.start_trace`.
        program: optimized HLO of the step, which says what scope an operation is of.

    Returns:
        What it wrote; None where the trace holds no step.
    """
    import jax

    traces = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        return None
    found = breakdown(jax.profiler.ProfileData.from_file(str(traces[-1])), program)
    if found is not None:
        text = json.dumps(dataclasses.asdict(found), indent=1)
        (folder / "breakdown.json").write_text(text + "\n", encoding="utf-8")
        (folder / "breakdown.txt").write_text(found.table() + "\n", encoding="utf-8")
    return found


def breakdown(profile: Any, program: str) -> Breakdown | None:
    """Takes a `jax.profiler.ProfileData` apart; None where it holds no step."""
    groups, name = group_of_instructions(program), _MODULE.match(program)
    module = name[1] if name else ""
    host: list[Span] = []
    devices: dict[str, list[list[Span]]] = collections.defaultdict(list)
    for plane in profile.planes:
        for line in plane.lines:
            lanes: dict[str, list[Span]] = collections.defaultdict(list)
            for event in line.events:
                span = Span(event.start_ns, event.start_ns + event.duration_ns, event.name)
                if event.name == STEP or event.name.startswith("dlm:"):
                    host.append(span)
                elif (op := _operation(plane.name, line.name, event, module)) is not None:
                    device, instruction = op
                    group = groups.get(instruction, "other")
                    lanes[device].append(dataclasses.replace(span, name=group))
            for device, spans in lanes.items():
                devices[device].append(spans)
    return _add_up(host, list(devices.values()))


def _operation(plane: str, line: str, event: Any, module: str) -> tuple[str, str] | None:
    """The device and the HLO instruction of an event, if it is one that ran on a device.

    The instruction is '' where it is known to be of another program than `module`.
    """
    stats = dict(event.stats)
    if "hlo_op" in stats:  # CPU (threads of the host), GPU (streams of a device)
        own = stats.get("hlo_module", module) == module
        return f"{plane}:{stats.get('device_ordinal', 0)}", str(stats["hlo_op"]) if own else ""
    if line == "XLA Ops":  # TPU: the event's name is the whole instruction
        return plane, event.name.partition(" = ")[0].lstrip("%")
    return None


def group_of_instructions(program: str) -> dict[str, str]:
    """Scope of each instruction of an optimized HLO text, or 'collectives'."""
    groups = {}
    for name, rest in _INSTRUCTION.findall(program):
        if _COLLECTIVE.search(rest):
            groups[name] = COLLECTIVES
        elif (found := _OP_NAME.search(rest)) and (scopes := _SCOPE.findall(found[1])):
            groups[name] = scopes[-1]
    return groups


def _add_up(host: list[Span], devices: list[list[list[Span]]]) -> Breakdown | None:
    steps = [span for span in host if span.name == STEP]
    if not steps or not devices:
        return None
    # By the host's clock alone: that of a device need not agree with it.
    share = 1e-6 / len(steps)
    wall = (max(span.end for span in host) - min(span.begin for span in host)) * share
    on_host = {"dispatch": sum(span.end - span.begin for span in steps) * share}
    for kind in HOST_KINDS:
        spent = sum(span.end - span.begin for span in host if span.name == f"dlm:{kind}")
        if spent:
            on_host[kind] = spent * share
    on_host["rest"] = wall - sum(on_host.values())
    on_device: dict[str, float] = collections.defaultdict(float)
    for lanes in devices:
        for name, spent in _busy(segment for lane in lanes for segment in innermost(lane)).items():
            on_device[name] += spent * share / len(devices)
    on_device["idle"] = wall - sum(on_device.values())
    return Breakdown(len(steps), wall, on_host, dict(on_device))


def innermost(lane: Iterable[Span]) -> Iterator[Span]:
    """Cuts the nested spans of one lane (a loop and its body) into pieces that do not overlap."""
    open_spans: list[Span] = []
    now = 0.0

    def until(moment: float) -> Iterator[Span]:
        nonlocal now
        while open_spans and open_spans[-1].end <= moment:
            last = open_spans.pop()
            if last.end > now:
                yield Span(now, last.end, last.name)
                now = last.end
        if open_spans and moment > now:
            yield Span(now, moment, open_spans[-1].name)
        now = max(now, moment)

    for span in sorted(lane, key=lambda s: (s.begin, -s.end)):
        yield from until(span.begin)
        open_spans.append(span)
    yield from until(float("inf"))


def _busy(segments: Iterable[Span]) -> dict[str, float]:
    """Nanoseconds by name; what runs at the same time (on several lanes) shares it equally."""
    changes = []
    for segment in segments:
        changes += [(segment.begin, 1, segment.name), (segment.end, -1, segment.name)]
    spent: dict[str, float] = collections.defaultdict(float)
    running: collections.Counter[str] = collections.Counter()
    before = 0.0
    for moment, change, name in sorted(changes):
        if total := sum(running.values()):
            for other, count in running.items():
                spent[other] += (moment - before) * count / total
        running[name] += change
        before = moment
    return dict(spent)
