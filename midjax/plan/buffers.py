# SPDX-License-Identifier: Apache-2.0
"""Where the compiler puts every array, and from when to when it is needed: libtpu's own texts.

An allocation is a piece of memory; its values are the arrays that lie in it, at their places, and
several that are never needed at once share one. A position counts the instructions of the whole
program in their order, the body of a loop once.
"""

import dataclasses
import re

import numpy as np

_ALLOCATION = re.compile(r"allocation (\d+): size (\d+)(?:, color (\d+))?(?:, page \d+)?, (.*):$")
_VALUE = re.compile(
    r" value: <\d+ (\S+?)(\{[\d,]*\})? (?:\(phi\) )?@\d+> \(size=(\d+),offset=(\d+)\): (.*)$"
)
_RANGE = re.compile(r"\s+(\S+?)(\{[\d,]*\}):(\d+)-(\d+)$")
_ORDER = re.compile(r"\s+(\d+):(\S+)$")
_PARAMETER = re.compile(r"parameter (\d+)\b")


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """One array.

    Attributes:
      name: of the instruction that makes it.
      element: of that instruction's result, where it is a tuple: (2,) of "while.5{2}".
      bytes: with its padding.
      offset: in its allocation.
      type_text: "bf16[4,1024]{1,0:T(8,128)(2,1)}".
      first, last: positions from and to which it is needed; -1 where the compiler doesn't say.
    """

    name: str
    element: tuple[int, ...]
    bytes: int
    offset: int
    type_text: str
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Allocation:
    """One piece of memory.

    Attributes:
      bytes: of all of it.
      space: of memory: 0 is HBM, 1 VMEM, 5 the host's.
      kind: "parameter", "constant", "preallocated-temp", "thread-local", "output", ...
      parameter: its number, of an argument of the program; else -1.
      values: in it.
    """

    bytes: int
    space: int
    kind: str
    parameter: int
    values: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class Buffers:
    """All memory of a program.

    Attributes:
      allocations: of it.
      order: names of its instructions by position.
    """

    allocations: tuple[Allocation, ...]
    order: tuple[str, ...]

    def live_bytes(self, allocation: Allocation) -> np.ndarray:
        """Bytes of an allocation that are in use, by position."""
        edges = _edges(allocation)
        sizes = np.diff(edges)
        changes: dict[int, list[tuple[slice, int]]] = {}
        for value in allocation.values:
            if value.first < 0:
                continue
            start, end = np.searchsorted(edges, (value.offset, value.offset + value.bytes))
            covered = slice(int(start), int(end))
            changes.setdefault(value.first, []).append((covered, 1))
            changes.setdefault(value.last + 1, []).append((covered, -1))
        cover = np.zeros(len(sizes), np.int32)
        found = np.zeros(len(self.order), np.int64)
        now = 0
        for position in range(len(self.order)):
            for covered, change in changes.get(position, ()):
                cover[covered] += change
            if position in changes:
                now = int(sizes[cover > 0].sum())
            found[position] = now
        return found

    def live_pieces(self, allocation: Allocation, position: int) -> list[tuple[int, list[Value]]]:
        """(bytes, values that lie there) of each piece in use at a position."""
        edges = _edges(allocation)
        there = [value for value in allocation.values if value.first <= position <= value.last]
        pieces: dict[int, list[Value]] = {}
        for value in there:
            start, end = np.searchsorted(edges, (value.offset, value.offset + value.bytes))
            for piece in range(int(start), int(end)):
                pieces.setdefault(piece, []).append(value)
        return [(int(edges[i + 1] - edges[i]), values) for i, values in sorted(pieces.items())]


def _edges(allocation: Allocation) -> np.ndarray:
    """Where a value begins or ends, sorted."""
    ends = [value.offset + value.bytes for value in allocation.values]
    return np.unique([0, *(value.offset for value in allocation.values), *ends])


class BuffersError(ValueError):
    """Texts that are no buffer assignment of libtpu's."""


def parse(assignment: str, live_ranges: str) -> Buffers:
    """The memory of a program.

    Args:
      assignment: of buffers, `dump.Program.buffers`.
      live_ranges: of the same program.

    Raises:
      BuffersError: a line is not understood, or there are no allocations or no positions.
    """
    needed, order = _ranges(live_ranges)
    read: list[tuple[re.Match[str], list[Value]]] = []
    for line in assignment.splitlines():
        if found := _ALLOCATION.match(line):
            read.append((found, []))
        elif line.startswith(" value: "):
            found = _VALUE.match(line)
            if found is None or not read:
                raise BuffersError(f"This line of the buffer assignment is not understood: {line}")
            read[-1][1].append(_value(found, needed))
    if not read or not order:
        raise BuffersError(
            f"This is no buffer assignment with live ranges: it has {len(read)} allocations and "
            f"{len(order)} positions. Give the texts of `dump.compiled`."
        )
    allocations = tuple(_allocation(found, tuple(values)) for found, values in read)
    return Buffers(allocations=allocations, order=order)


def _value(found: re.Match[str], needed: dict[tuple[str, str], tuple[int, int]]) -> Value:
    name, element = found[1], found[2] or "{}"
    first, last = needed.get((name, element), (-1, -1))
    return Value(
        name=name,
        element=tuple(int(i) for i in element[1:-1].split(",") if i),
        bytes=int(found[3]),
        offset=int(found[4]),
        type_text=found[5],
        first=first,
        last=last,
    )


def _allocation(found: re.Match[str], values: tuple[Value, ...]) -> Allocation:
    parameter = _PARAMETER.match(found[4])
    kind = re.match(r"[\w-]+", found[4])
    return Allocation(
        bytes=int(found[2]),
        space=int(found[3] or 0),
        kind=kind[0] if kind else "",
        parameter=int(parameter[1]) if parameter else -1,
        values=values,
    )


def _ranges(text: str) -> tuple[dict[tuple[str, str], tuple[int, int]], tuple[str, ...]]:
    """(first and last position of each value, names by position)."""
    needed: dict[tuple[str, str], tuple[int, int]] = {}
    order: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("Live ranges at"):
            break
        if found := _RANGE.match(line):
            needed[found[1], found[2]] = (int(found[3]), int(found[4]))
        elif found := _ORDER.match(line):
            order.append(found[2])
    return needed, tuple(order)
