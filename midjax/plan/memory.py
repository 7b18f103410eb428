# SPDX-License-Identifier: Apache-2.0
"""What fills a chip's memory in a step, at its fullest moment and over its course.

The arguments of a step are there all the time (those that it gives back are overwritten in place),
and so are constants and new results; beside them lies a heap of everything else, whose places the
compiler has planned. At the fullest moment of the heap each piece that is in use is told by what
lies in it: the parts add up to the peak. What a chip needs beyond that is the program itself, gaps
between arrays, and scratch space of collectives, for which the compiler finds a place last.

The compiler's own peak counts the same, and differs by a few tables of addresses. It is of the
fullest of all memories, though: where VMEM, or the host's with offloaded arrays, is fuller than the
heap, it is theirs, and `other_memory_bytes` says by how much.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from midjax.plan import buffers, dump, hlo, origins

PARAMETERS, MU, NU = "parameters", "optimizer state: mu", "optimizer state: nu"
OPTIMIZER, BATCH, OTHER = "optimizer state: other", "batch", "other arguments"
CONSTANTS, RESULTS = "constants", "new results"

_POINTS = 1000  # of a timeline: more than a plot of it has pixels
_TABLES_BYTES = 1 << 20  # by which the compiler's peak may differ: tables of addresses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the memory at the fullest moment.

    Attributes:
      kind: what it is: of `PARAMETERS` to `RESULTS` here, or of `origins`.
      label: which: the argument's path, or the operation that makes it.
      bytes: with padding.
    """

    kind: str
    label: str
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """One chip's memory in a step.

    Attributes:
      peak_bytes: of HBM in use at the fullest moment: the sum of `parts`.
      parts: largest first.
      fragmentation_bytes: gaps between arrays, and scratch space of collectives.
      program_bytes: of the program itself.
      required_bytes: all of them: what a chip must have free, by the compiler's own figures.
      host_bytes: of the host's memory, for this chip.
      compiler_peak_bytes: what the compiler calls its peak.
      unexplained_bytes: of that, what `parts` don't have; a few tables of addresses.
      other_memory_bytes: by which another memory than HBM is fuller; 0 where HBM is the fullest.
      peak_position, peak_instruction, peak_op_name: the fullest moment.
      timeline: (position, bytes of HBM in use), positions being instructions in their order.
      positions: how many there are.
    """

    peak_bytes: int
    parts: tuple[Part, ...]
    fragmentation_bytes: int
    program_bytes: int
    required_bytes: int
    host_bytes: int
    compiler_peak_bytes: int
    unexplained_bytes: int
    other_memory_bytes: int
    peak_position: int
    peak_instruction: str
    peak_op_name: str
    timeline: tuple[tuple[int, int], ...]
    positions: int

    def by_kind(self) -> dict[str, int]:
        """kind -> bytes at the fullest moment, largest first."""
        sums: collections.Counter[str] = collections.Counter()
        for part in self.parts:
            sums[part.kind] += part.bytes
        return dict(sums.most_common())


class ArgumentsError(ValueError):
    """Names of another number of arguments than the program has."""


def analyse(program: dump.Program, argument_names: Sequence[str] | None = None) -> Memory:
    """The memory of a compiled step.

    Args:
      program: from `dump.compiled`.
      argument_names: paths of the step's arguments, flattened, such as "state.params['embed']",
        without those that the step does not use, which JAX leaves out. None takes the names that
        JAX has written into the program.

    Raises:
      ArgumentsError: there are more or fewer names than arguments.
    """
    return of_texts(
        hlo.parse(program.text),
        buffers.parse(program.buffers, program.live_ranges),
        program.executable.memory_analysis(),
        argument_names,
    )


def of_texts(
    module: hlo.Module,
    memory: buffers.Buffers,
    stats: Any,
    argument_names: Sequence[str] | None = None,
) -> Memory:
    """As `analyse`, of what has been read already.

    Args:
      module: the program.
      memory: where its arrays lie.
      stats: `compiled.memory_analysis()`.
      argument_names: see `analyse`.
    """
    names, dims = _arguments(module, argument_names)
    parts: collections.Counter[tuple[str, str]] = collections.Counter()
    for one in memory.allocations:
        if one.space == hlo.HBM and (named := _standing(one, names)):
            parts[named] += one.bytes
    standing = sum(parts.values())
    heaps = [one for one in memory.allocations if one.kind == "preallocated-temp"]
    heaps = [one for one in heaps if one.space == hlo.HBM and one.bytes]
    live = sum((memory.live_bytes(heap) for heap in heaps), np.zeros(len(memory.order), np.int64))
    fullest = int(live.argmax())
    parameters = [dims[i] for i, name in names.items() if kind_of(name) == PARAMETERS]
    where = origins.Origins(module, parameters)
    for heap in heaps:
        for piece, values in memory.live_pieces(heap, fullest):
            parts[_told(where, values)] += piece
    peak = standing + int(live[fullest])
    compiler = int(stats.peak_memory_in_bytes)
    beyond = compiler - peak if compiler - peak > _TABLES_BYTES else 0
    instruction = memory.order[fullest]
    program_bytes = int(stats.generated_code_size_in_bytes)
    # The sum that the compiler refuses by. Its own sum of temporaries has gaps of the heap twice.
    required = int(stats.argument_size_in_bytes) + sum(heap.bytes for heap in heaps)
    required += program_bytes + int(stats.output_size_in_bytes - stats.alias_size_in_bytes)
    return Memory(
        peak_bytes=peak,
        parts=tuple(
            Part(kind=kind, label=label, bytes=size)
            for (kind, label), size in parts.most_common()
            if size
        ),
        fragmentation_bytes=required - program_bytes - peak,
        program_bytes=program_bytes,
        required_bytes=required,
        host_bytes=sum(
            one.bytes
            for one in memory.allocations
            if one.space == hlo.HOST and one.kind != "thread-local"
        ),
        compiler_peak_bytes=compiler,
        unexplained_bytes=compiler - peak - beyond,
        other_memory_bytes=beyond,
        peak_position=fullest,
        peak_instruction=instruction,
        peak_op_name=where.op_name(instruction),
        timeline=_timeline(live + standing),
        positions=len(live),
    )


def kind_of(name: str) -> str:
    """What an argument is, by the words of its path.

    Optimizers that are optax's, and those that keep their moments under the same names, have "mu"
    and "nu"; parameters are in "params" or "model"; a batch's path begins with "batch", "data" or
    "inputs".
    """
    words = re.findall(r"[A-Za-z]\w*", name)
    for word, kind in (("mu", MU), ("nu", NU)):
        if word in words:
            return kind
    if any(word in ("opt_state", "optimizer", "optimizer_state") for word in words):
        return OPTIMIZER
    if any(word in ("params", "parameters", "model") for word in words[:-1]):
        return PARAMETERS
    if words and words[0] in ("batch", "data", "inputs"):
        return BATCH
    return OTHER


def _arguments(
    module: hlo.Module, given: Sequence[str] | None
) -> tuple[dict[int, str], dict[int, tuple[int, ...]]]:
    """(names, dimensions) by number."""
    found = {int(i.operand_text): i for i in module.main.instructions if i.opcode == "parameter"}
    if given is not None and len(given) != len(found):
        raise ArgumentsError(
            f"{len(given)} names are given for {len(found)} arguments of the program. JAX leaves "
            "out what a step does not use; its own names of those that are left are "
            f"{[one.op_name for _, one in sorted(found.items())]}."
        )
    names = {
        number: given[number] if given is not None else one.op_name for number, one in found.items()
    }
    dims = {number: one.shapes[0].dims if one.shapes else () for number, one in found.items()}
    return names, dims


def _standing(one: buffers.Allocation, names: dict[int, str]) -> tuple[str, str] | None:
    """(kind, label) of what is there all the time; None of a heap and of what a kernel keeps."""
    if one.parameter >= 0:
        name = names.get(one.parameter, f"argument {one.parameter}")
        return kind_of(name), name
    if one.kind == "constant":
        return CONSTANTS, "of the program"
    if one.kind in ("output", "maybe-live-out"):
        return RESULTS, "not written over an argument"
    return None


def _told(where: origins.Origins, values: list[buffers.Value]) -> tuple[str, str]:
    """(kind, label) of a piece in which several values lie: the one that says most."""
    found = [where.of(value.name, value.element) for value in values]
    best = min(
        found, key=lambda one: (one.kind in (origins.NAMELESS, origins.UPDATE), not one.label)
    )
    return best.kind, best.label


def _timeline(used: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Where it changes, thinned out to the fullest moment of each stretch."""
    stretch = max(1, -(-len(used) // _POINTS))
    points = []
    for start in range(0, len(used), stretch):
        at = start + int(used[start : start + stretch].argmax())
        points.append((at, int(used[at])))
    return tuple(points)
