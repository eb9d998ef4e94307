"""What a compiled program sends between devices: by kind, how often, and how many bytes.

A device sends, with n devices in a ring and the whole array of b bytes (Chan et al. 2007,
"Collective communication: theory, practice, and experience"):

    all-gather, reduce-scatter, all-to-all   b·(n-1)/n
    all-reduce                             2·b·(n-1)/n
    collective-permute, send                 b
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from dlm_jax.planning.hlo import Instruction, Module
from dlm_jax.planning.links import Links

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
)
_BYTES = {
    "pred": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "f64": 8,
    "c64": 8,
    "c128": 16,
    "token": 0,
}
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\]")
_IOTA = re.compile(r"replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_LISTED = re.compile(r"replica_groups=\{((?:\{[0-9,]*\},?)+)\}")
_MESH = re.compile(
    r"replica_groups=(?:@\w+|mesh)\[([^\]]*)\]"
    r"(?:,\s*device_ids=\((\[[0-9,]+\](?:T\([0-9,]+\))?|[0-9,\s]+)\))?\s*\{([^}]*)\}"
)
_ORDER = re.compile(r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?:=(\d+)|:\((\d+)\)(\d+))?")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{[0-9]+,[0-9]+\},?)+)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All transfers of one kind, group size and spread in one run of the program.

    Attributes:
        kind: one of `KINDS`.
        group: devices that take part together.
        directions: link directions of a chip that they keep busy inside a slice.
        count: how often it runs.
        bytes: size of the whole arrays, of all runs together.
        local_bytes: what a device sends over the links inside a slice or a host.
        network_bytes: what a device sends between slices or hosts.
    """

    kind: str
    group: int
    directions: int
    count: float
    bytes: float
    local_bytes: float
    network_bytes: float


def collectives(text: str, links: Links, *, unknown_trips: float = 1.0) -> list[Collective]:
    """Adds up the transfers of a compiled program.

    Args:
        text: `compiled.as_text()`.
        links: places of the devices, in the order of the mesh.
        unknown_trips: rounds of loops whose number is only known when the program runs.

    Returns:
        The sums, the most expensive first.
    """
    domains = links.domains
    sums: dict[tuple[str, int, int], list[float]] = {}
    chains: set[str] = set()
    module = Module.parse(text)
    for instruction, computation, times in module.executed(unknown_trips):
        kind = _kind(instruction, computation)
        if kind is None or _seen_before(instruction, chains):
            continue
        groups = _groups(instruction, len(domains))
        size = len(groups[0]) if kind not in ("send", "collective-permute") else 2
        whole = _whole_bytes(instruction, kind, size)
        local, network = _sent(kind, whole, groups, domains)
        if not local + network:
            continue
        if kind == "collective-permute":
            ways = 1 + _goes_both_ways(groups, module.computations[computation])
        else:
            ways = _directions(groups, links) if local else 1
        key = kind, size, ways
        entry = sums.setdefault(key, [0.0, 0.0, 0.0, 0.0])
        for place, value in enumerate((1.0, whole, local, network)):
            entry[place] += times * value
    found = [Collective(*key, *entry) for key, entry in sums.items()]
    return sorted(found, key=lambda item: -(item.local_bytes + item.network_bytes))


def array_bytes(type_text: str) -> int:
    """Bytes of the arrays in a shape as HLO writes it, such as '(f32[8]{0}, bf16[2,2]{1,0})'."""
    total = 0
    for name, dimensions in _ARRAY.findall(type_text):
        bits = re.fullmatch(r"[suf](\d+)[a-z0-9]*", name)
        width = _BYTES.get(name, max(1, int(bits[1]) // 8) if bits else 0)
        total += width * int(np.prod([int(size) for size in dimensions.split(",") if size] or [1]))
    return total


def _kind(instruction: Instruction, computation: str) -> str | None:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in KINDS:
        return None
    if opcode == "send" and "is_host_transfer=true" not in instruction.arguments:
        return None
    # The TPU compiler writes a reduce-scatter as an all-reduce and a slice, fused into one kernel.
    if opcode == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return opcode


def _seen_before(instruction: Instruction, chains: set[str]) -> bool:
    """Whether this is another piece of a transfer that is already counted.

    The TPU compiler spreads one transfer over several fusions (start, beside products, done), and
    each of them repeats the instruction with the same channel.
    """
    channel = _CHANNEL.search(instruction.arguments)
    if channel is None or "async_collective_fusion_config" not in instruction.arguments:
        return False
    known = channel[1] in chains
    chains.add(channel[1])
    return known


def _whole_bytes(instruction: Instruction, kind: str, size: int) -> int:
    """Bytes of the array before it is split, or after it is put together."""
    text = instruction.type
    if instruction.opcode.endswith("-start") or kind == "send":
        parts = _top_level(text)
        if instruction.opcode == "all-reduce-start":
            return array_bytes(text)
        # (operands, results, contexts…) of an asynchronous pair; (buffer, context, token) of send.
        text = parts[1] if kind != "send" and len(parts) > 1 else parts[0]
        return array_bytes(text) * (size if kind == "reduce-scatter" else 1)
    scattered = kind == "reduce-scatter" and instruction.opcode == "reduce-scatter"
    return array_bytes(text) * (size if scattered else 1)


def _top_level(text: str) -> list[str]:
    """Members of a tuple shape; the shape itself where it is none."""
    if not text.startswith("("):
        return [text]
    members, depth, start = [], 0, 1
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or depth == 0:
            members.append(text[start:place].strip())
            start = place + 1
        if depth == 0:
            break
    return members


def _groups(instruction: Instruction, devices: int) -> np.ndarray:
    """Device numbers [groups, devices of a group]."""
    arguments = instruction.arguments
    if instruction.opcode.startswith("collective-permute"):
        pairs = _PAIRS.search(arguments)
        listed_pairs = re.findall(r"\{([0-9,]+)\}", pairs[1]) if pairs else []
        return np.array([_numbers(pair) for pair in listed_pairs]).reshape(-1, 2)
    iota = _IOTA.search(arguments)
    if iota:
        shape, dimensions = _numbers(iota[1]), _numbers(iota[2])
        order = np.arange(np.prod(dimensions)).reshape(dimensions)
        if iota[3]:
            order = order.transpose(_numbers(iota[3]))
        return order.reshape(shape)
    mesh = _MESH.search(arguments)
    if mesh:
        return _mesh_groups(mesh[1], mesh[2], mesh[3], devices)
    listed = _LISTED.search(arguments)
    if listed:
        return np.array([_numbers(group) for group in re.findall(r"\{([0-9,]+)\}", listed[1])])
    return np.arange(devices)[None]


def _mesh_groups(axes: str, order: str | None, members: str, devices: int) -> np.ndarray:
    """Groups along axes of a mesh, written `mesh['a'=4,'b'=16] {'b'}`: one group for each 'a'.

    A part of an axis is written `'b':(4)2`: 2 of its devices, 4 being the product of the sizes of
    the parts before it. Between the two may stand the devices of the mesh, where they are not in
    ascending order: `device_ids=([16,4]T(1,0))`, or one after the other.
    """
    parts = {match[1]: match for match in _AXIS.finditer(members)}
    shape: list[int] = []
    chosen: list[int] = []
    for axis in _AXIS.finditer(axes):
        size, part = int(axis[2]), parts.get(axis[1])
        if part is not None and part[3] is not None:
            before, inside = int(part[3]), int(part[4])
            chosen.append(len(shape) + 1)
            shape += [before, inside, size // before // inside]
            continue
        if part is not None:
            chosen.append(len(shape))
        shape.append(size)
    others = [number for number in range(len(shape)) if number not in chosen]
    grid = _ordered(order, devices).reshape(shape).transpose(*others, *chosen)
    return grid.reshape(-1, math.prod(shape[number] for number in chosen))


def _ordered(order: str | None, devices: int) -> np.ndarray:
    """Device numbers [devices] in the order that `device_ids=` gives."""
    if order is None:
        return np.arange(devices)
    iota = _ORDER.fullmatch(order)
    if iota is None:
        return np.array(_numbers(order))
    grid = np.arange(devices).reshape(_numbers(iota[1]))
    return (grid.transpose(_numbers(iota[2])) if iota[2] else grid).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _goes_both_ways(pairs: np.ndarray, computation: list[Instruction]) -> bool:
    """Whether another permutation of the same round goes the opposite way, as rings of a product
    that is cut into pieces do."""
    there = {(int(source), int(target)) for source, target in pairs}
    back = {(target, source) for source, target in there}
    # Two devices that swap send one way each, over the one link between them.
    return back != there and any(
        {(int(source), int(target)) for source, target in _groups(other, 0)} == back
        for other in computation
        if other.opcode.startswith("collective-permute") and "done" not in other.opcode
    )


def _directions(groups: np.ndarray, links: Links) -> int:
    """Link directions inside a domain that the slowest group keeps busy."""
    domains = links.domains
    inside = [[device for device in g if domains[device] == domains[g[0]]] for g in groups]
    return min(links.directions(np.array(group)) for group in inside)


def _sent(
    kind: str, whole: int, groups: np.ndarray, domains: tuple[int, ...]
) -> tuple[float, float]:
    """Bytes that a device sends within its domain and out of it.

    A group over several domains works in two levels: a ring inside each domain, and rings across
    them that move each device's own part only.
    """
    if kind == "send":
        return 0.0, float(whole)
    if not groups.size:  # a permutation without pairs, a stub of one on other devices
        return 0.0, 0.0
    if kind == "collective-permute":
        crossing = any(domains[source] != domains[target] for source, target in groups)
        return (0.0, float(whole)) if crossing else (float(whole), 0.0)
    across = max(len({domains[device] for device in group}) for group in groups)
    inside = max(1, groups.shape[1] // across)
    factor = 2.0 if kind == "all-reduce" else 1.0
    local = factor * whole * (inside - 1) / inside
    network = factor * whole * (across - 1) / across / inside
    return local, network
