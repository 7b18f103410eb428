# SPDX-License-Identifier: Apache-2.0
"""The text of a scheduled XLA program -> computations of instructions, in the order they run.

A line is taken apart only as far as the walk over the program needs, the rest when it is asked
for: a training step has 30 MB of text, most of it kernels' code.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

# The whole bytes of a number; numbers of four bits share one.
_BITS: dict[str, int] = {
    **dict.fromkeys(("s1", "u1"), 1),
    **dict.fromkeys(("s2", "u2"), 2),
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 4),
    **dict.fromkeys(("pred", "s8", "u8", "f8e5m2", "f8e4m3", "f8e4m3fn", "f8e4m3b11fnuz"), 8),
    **dict.fromkeys(("f8e5m2fnuz", "f8e4m3fnuz", "f8e3m4", "f8e8m0fnu"), 8),
    **dict.fromkeys(("s16", "u16", "bf16", "f16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    "c128": 128,
}
HBM, VMEM, HOST = 0, 1, 5  # memory spaces; others are scalar memories and flags

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s([a-z][a-z0-9\-]*)\(")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_NAME = re.compile(r"%([\w.\-]+(?:#\d+)*)")
_COMMENT = re.compile(r"/\*.*?\*/")
_SPACE = re.compile(r"S\((\d+)\)")
_TILE = re.compile(r"\(([\d,*]+)\)")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_CALLED_LISTS = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """One array of a result.

    Attributes:
      dtype: as XLA writes it, "bf16".
      dims: sizes.
      minor_to_major: order of the dimensions in memory, fastest first; empty where not written.
      tiles: of the layout, the outermost tile first: (8, 128), then (2, 1) of packed bfloat16.
      space: `HBM`, `VMEM`, `HOST`, or a number of a scalar memory.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tiles: tuple[tuple[int, ...], ...] = ()
    space: int = HBM

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without padding."""
        return math.ceil(self.size * _BITS[self.dtype] / 8)

    @property
    def padded_bytes(self) -> int:
        """As it lies in memory, its minor dimensions filled up to whole tiles."""
        if not self.tiles:
            return self.bytes
        tile = self.tiles[0]
        major = self.minor_to_major or tuple(range(len(self.dims)))[::-1]
        sizes = [self.dims[place] for place in major] or [1]
        sizes += [1] * (len(tile) - len(sizes))
        for place, edge in enumerate(reversed(tile)):
            sizes[place] = math.ceil(sizes[place] / edge) * edge
        return math.ceil(math.prod(sizes) * _BITS[self.dtype] / 8)


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays in a type, tuples opened up; tokens and contexts have none."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        if dtype not in _BITS:
            continue
        order, _, rest = layout.partition(":")
        space = _SPACE.search(rest)
        found.append(
            Shape(
                dtype=dtype,
                dims=_ints(dims.replace("<=", "")),
                minor_to_major=_ints(order),
                tiles=_tiles(rest),
                space=int(space[1]) if space else HBM,
            )
        )
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


@functools.lru_cache(maxsize=4096)
def _tiles(layout: str) -> tuple[tuple[int, ...], ...]:
    """`T(8,128)(2,1)S(1)` -> ((8, 128), (2, 1))."""
    start = layout.find("T(")
    if start < 0:
        return ()
    found, place = [], start + 1
    while match := _TILE.match(layout, place):
        found.append(tuple(int(n) if n != "*" else 1 for n in match[1].split(",")))
        place = match.end()
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: without "%".
      opcode: "fusion", "all-gather-start".
      type_text: its result's type, as it is written.
      operand_text: between its brackets.
      attributes: everything after them.
      is_root: its result is its computation's.
    """

    name: str
    opcode: str
    type_text: str
    operand_text: str
    attributes: str
    is_root: bool = False

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the result, a tuple opened up."""
        return shapes(self.type_text)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of its arguments."""
        return tuple(_NAME.findall(self.operand_text))

    @property
    def bytes(self) -> int:
        """Of the result, without padding."""
        return sum(shape.bytes for shape in self.shapes)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it calls."""
        found = _CALLED.findall(self.attributes)
        for names in _CALLED_LISTS.findall(self.attributes):
            found += [name.strip().lstrip("%") for name in names.split(",") if name.strip()]
        return tuple(found)

    @functools.cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate; None where it has none."""
        found = _CYCLES.search(self.attributes)
        return int(found[1]) if found else None

    @property
    def op_name(self) -> str:
        """The traced operations it comes from: "jit(step)/while/body/mlp/dot_general"."""
        found = _OP_NAME.search(self.attributes)
        return found[1].replace("\\'", "'") if found else ""

    @property
    def base(self) -> str:
        """The opcode of an asynchronous pair without "-start", "-done" or "-update"."""
        for end in ("-start", "-done", "-update"):
            if self.opcode.endswith(end):
                return self.opcode.removesuffix(end)
        return self.opcode

    def attribute(self, name: str) -> str | None:
        """A plain attribute: `attribute("body")` of `body=%region.3` is "region.3"."""
        found = re.search(rf"\b{name}=%?(\"[^\"]*\"|[\w.\-]+)", self.attributes)
        return found[1].strip('"') if found else None

    @functools.cached_property
    def backend_config(self) -> Mapping[str, Any]:
        """The compiler's notes; empty where there are none or they are no JSON."""
        start = self.attributes.find("backend_config={")
        if start < 0:
            return {}
        try:
            return json.JSONDecoder().raw_decode(self.attributes, start + 15)[0]
        except json.JSONDecodeError:
            return {}


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions in the order in which they run."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    def operand(self, instruction: Instruction, place: int) -> Instruction | None:
        """Where its argument comes from; None if it has fewer."""
        names = instruction.operands
        return self.by_name.get(names[place]) if place < len(names) else None

    def operand_shapes(self, instruction: Instruction) -> tuple[Shape, ...]:
        found = (self.by_name.get(name) for name in instruction.operands)
        return tuple(shape for one in found if one is not None for shape in one.shapes)


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      header: its first line, with what of its arguments is given back.
      computations: by name.
      entry: the name of the one that runs.
    """

    header: str
    computations: Mapping[str, Computation]
    entry: str

    @property
    def main(self) -> Computation:
        return self.computations[self.entry]

    def inside(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """What a fusion or an asynchronous call holds, fusions in it opened up, too."""
        for name in instruction.called:
            computation = self.computations.get(name)
            for inner in computation.instructions if computation else ():
                yield computation, inner  # type: ignore[misc]
                if inner.opcode in ("fusion", "call"):
                    yield from self.inside(inner)


class NotScheduledError(ValueError):
    """Text that is no scheduled program."""


def parse(text: str) -> Module:
    """The program of a text.

    Args:
      text: `compiled.as_text()`, or what libtpu dumps after generating code.

    Raises:
      NotScheduledError: the text has no entry computation, or its instructions are in no order.
    """
    header = text.partition("\n")[0]
    if "is_scheduled=true" not in header:
        raise NotScheduledError(
            f"This is no scheduled XLA program, it begins {header[:80]!r}. "
            "Give the text of a compiled one: jax.jit(f).lower(...).compile().as_text()."
        )
    computations: dict[str, Computation] = {}
    entry = ""
    for name, is_entry, lines in _blocks(text):
        found = (_instruction(line) for line in lines)
        written = [one for one in found if one is not None]
        computations[name] = Computation(name, tuple(_opened(written)))
        entry = name if is_entry else entry
    if not entry:
        raise NotScheduledError("The program has no ENTRY computation: its text is cut off.")
    return Module(header, computations, entry)


def _blocks(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """(name, is it the entry, lines of instructions) of each computation.

    A string in an attribute may hold line breaks: what begins no instruction goes on with the last.
    """
    name, is_entry, lines = "", False, []  # type: tuple[str, bool, list[str]]
    for line in text.splitlines():
        if name and line.startswith("}") and not line.startswith("}}"):
            yield name, is_entry, lines
            name, lines = "", []
        elif name and _HEAD.match(line):
            lines.append(line)
        elif name and lines:
            lines[-1] += line
        elif not line.startswith(" ") and (found := _COMPUTATION.match(line)):
            name, is_entry, lines = found[2], bool(found[1]), []


def _instruction(line: str) -> Instruction | None:
    head = _HEAD.match(line)
    opcode = _OPCODE.search(line, head.end() - 1) if head else None
    if head is None or opcode is None:
        return None
    end = _closing(line, opcode.end())
    return Instruction(
        name=head[2],
        opcode=opcode[1],
        type_text=line[head.end() : opcode.start()],
        operand_text=line[opcode.end() : end],
        attributes=line[end + 1 :],
        is_root=bool(head[1]),
    )


def _opened(written: list[Instruction]) -> Iterator[Instruction]:
    """With a get-tuple-element for each element that is written "%name#2" where it is used."""
    known: dict[str, Instruction] = {}
    for one in written:
        for name in one.operands if "#" in one.operand_text else ():
            base, *places = name.split("#")
            for place in places:
                whole, base = base, f"{base}#{place}"
                if base not in known and whole in known:
                    known[base] = Instruction(
                        name=base,
                        opcode="get-tuple-element",
                        type_text=_element(known[whole].type_text, int(place)),
                        operand_text=f"%{whole}",
                        attributes=f", index={place}",
                    )
                    yield known[base]
        known[one.name] = one
        yield one


def _element(type_text: str, place: int) -> str:
    """The type of an element of a tuple."""
    depth, found, start = 0, [], 1
    type_text = _COMMENT.sub("", type_text)
    for at, sign in enumerate(type_text):
        depth += (sign in "([{") - (sign in ")]}")
        if (sign == "," and depth == 1) or depth == 0:
            found.append(type_text[start:at].strip())
            start = at + 1
    return found[place] if place < len(found) else ""


def _closing(line: str, start: int) -> int:
    """Where the bracket that was opened before `start` closes."""
    depth, place = 1, start
    while True:
        close = line.find(")", place)
        if close < 0:
            return len(line)
        depth += line.count("(", place, close) - 1
        if depth == 0:
            return close
        place = close + 1
