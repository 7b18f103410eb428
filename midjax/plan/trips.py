# SPDX-License-Identifier: Apache-2.0
"""How often a loop of a program runs: the TPU's compiler doesn't write it down, the loop says it.

The condition compares an element of the loop's state with a number; the loop's argument says where
that element begins, and the result of its body how far it gets each time. A loop that the compiler
has unrolled counts in steps of two.
"""

import dataclasses
import math
import re

from midjax.plan import hlo

_KNOWN = re.compile(r'known_trip_count"?:?\s*\{"?n"?:"?(\d+)')
# What hands a number on as it is.
_SAME = {"copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "opt-barrier"}
_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}
_DEEPEST = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trips:
    """How often a loop's body runs.

    Attributes:
      count: 1 where the loop doesn't say.
      how: "from 0 by 2 while < 8"; what was assumed, in brackets.
      known: False where the count is a guess.
    """

    count: int
    how: str
    known: bool = True


@dataclasses.dataclass(frozen=True)
class _Linear:
    """An element of a loop's state plus a number, or the number alone."""

    element: int | None
    offset: int


@dataclasses.dataclass(frozen=True)
class _Place:
    """An instruction's computation, and where the arguments of that one come from."""

    computation: hlo.Computation
    call: "tuple[hlo.Instruction, _Place] | None" = None


def count(module: hlo.Module, computation: hlo.Computation, loop: hlo.Instruction) -> Trips:
    """Trips of a `while`.

    Args:
      module: the program.
      computation: the one that the loop stands in.
      loop: the instruction.
    """
    known = _KNOWN.search(loop.attributes)
    if known:
        return Trips(count=int(known[1]), how="as the compiler says")
    found = _condition(module, loop)
    if found is None:
        return Trips(count=1, how="(its condition is no comparison with a number)", known=False)
    direction, element, bound = found
    initial = _initial(module, computation, loop, element)
    step = _step(module, loop, element)
    assumed = [f"{initial or 0} assumed"] if initial is None else []
    assumed += ["step assumed"] if step is None else []
    first = initial or 0
    by = step if step is not None else (1 if direction in ("LT", "LE", "NE") else -1)
    how = f"from {first} by {by} while {direction} {bound}"
    if assumed:
        how += f" ({', '.join(assumed)})"
    return Trips(count=_times(direction, first, bound, by), how=how)


def _times(direction: str, first: int, bound: int, by: int) -> int:
    distance = bound - first
    if direction in ("LE", "GE"):
        distance += 1 if direction == "LE" else -1
    if by == 0 or distance * by < 0:
        return 0
    return math.ceil(distance / by)


def _condition(module: hlo.Module, loop: hlo.Instruction) -> tuple[str, int, int] | None:
    """(direction, element of the state, bound)."""
    computation = module.computations.get(loop.attribute("condition") or "")
    if computation is None:
        return None
    place, root = _Place(computation), computation.root
    while root.opcode in ("fusion", "call") and root.called:
        inner = module.computations[root.called[0]]
        place, root = _Place(inner, (root, place)), inner.root
    if root.opcode != "compare":
        return None
    left, right = (_resolve(module, place, name) for name in root.operands[:2])
    direction = root.attribute("direction") or "LT"
    if left is None or right is None or direction not in _MIRRORED:
        return None
    if left.element is None and right.element is not None:
        left, right, direction = right, left, _MIRRORED[direction]
    if left.element is None or right.element is not None:
        return None
    return direction, left.element, right.offset - left.offset


def _initial(
    module: hlo.Module, computation: hlo.Computation, loop: hlo.Instruction, element: int
) -> int | None:
    state = computation.operand(loop, 0)
    if state is None or state.opcode != "tuple" or element >= len(state.operands):
        return None
    found = _resolve(module, _Place(computation), state.operands[element])
    return found.offset if found is not None and found.element is None else None


def _step(module: hlo.Module, loop: hlo.Instruction, element: int) -> int | None:
    body = module.computations.get(loop.attribute("body") or "")
    if body is None or body.root.opcode != "tuple" or element >= len(body.root.operands):
        return None
    found = _resolve(module, _Place(body), body.root.operands[element])
    return found.offset if found is not None and found.element == element else None


def _resolve(module: hlo.Module, place: _Place, name: str, depth: int = 0) -> _Linear | None:
    """What a scalar is, through copies, sums with constants and fusions."""
    at = place.computation.by_name.get(name)
    if at is None or depth > _DEEPEST:
        return None
    if at.opcode == "constant":
        text = at.operand_text.strip()
        return _Linear(None, int(text)) if text.lstrip("-").isdigit() else None
    if at.opcode in _SAME:
        return _resolve(module, place, at.operands[0], depth + 1)
    if at.opcode in ("add", "subtract"):
        left, right = (_resolve(module, place, one, depth + 1) for one in at.operands)
        return _sum(left, right, -1 if at.opcode == "subtract" else 1)
    if at.opcode == "parameter" and place.call is not None:
        caller, outer = place.call
        return _resolve(module, outer, caller.operands[int(at.operand_text)], depth + 1)
    if at.opcode in ("fusion", "call") and at.called:
        inner = module.computations[at.called[0]]
        return _resolve(module, _Place(inner, (at, place)), inner.root.name, depth + 1)
    if at.opcode == "get-tuple-element":
        return _element(module, place, at, depth)
    return None


def _element(module: hlo.Module, place: _Place, at: hlo.Instruction, depth: int) -> _Linear | None:
    index = int(at.attribute("index") or 0)
    source = place.computation.operand(at, 0)
    if source is None:
        return None
    if source.opcode == "parameter" and place.call is None:
        return _Linear(index, 0)
    if source.opcode == "tuple":
        return _resolve(module, place, source.operands[index], depth + 1)
    if source.opcode in ("fusion", "call") and source.called:
        inner = module.computations[source.called[0]]
        if inner.root.opcode == "tuple":
            into = _Place(inner, (source, place))
            return _resolve(module, into, inner.root.operands[index], depth + 1)
    return None


def _sum(left: _Linear | None, right: _Linear | None, sign: int) -> _Linear | None:
    if left is None or right is None:
        return None
    if right.element is not None and (left.element is not None or sign < 0):
        return None
    element = left.element if left.element is not None else right.element
    return _Linear(element, left.offset + sign * right.offset)
