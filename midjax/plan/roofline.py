# SPDX-License-Identifier: Apache-2.0
"""Operations per byte of the instructions that take the longest, and the rate they are judged at.

Bytes are those of arrays in HBM that an instruction reads and writes; of an array that a fusion
only takes slices of, or writes a part of, they are the slice's. What lies in VMEM costs none.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from midjax.plan import cost, hlo, origins

_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """All runs of an instruction in a step, on one chip.

    Attributes:
      label: the traced operation that it comes from, or its own name.
      part: of `cost.Cost.parts`.
      seconds, flops, hbm_bytes: of all its runs.
    """

    label: str
    part: str
    seconds: float
    flops: float
    hbm_bytes: float


def points(module: hlo.Module, judged: cost.Cost) -> list[Point]:
    """Of the instructions listed in `judged` that compute: products, kernels, elementwise work."""
    where = _found(module, {one.name for one in judged.most_expensive})
    made = []
    for one in judged.most_expensive:
        if one.name not in where or one.part not in ("matrix", "vector", "kernels"):
            continue
        bytes_ = one.runs * hbm_bytes(module, *where[one.name])
        if not bytes_ or not one.seconds:
            continue
        made.append(
            Point(
                label=origins.short(one.op_name) or one.name,
                part=one.part,
                seconds=one.seconds,
                flops=one.flops,
                hbm_bytes=bytes_,
            )
        )
    return made


def hbm_bytes(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> float:
    """Read from and written to HBM by one run of an instruction."""
    fused = _fused(module, instruction)
    total = 0.0
    for place in range(len(instruction.operands)):
        operand = computation.operand(instruction, place)
        if operand is None:
            continue
        whole = _in_hbm(operand.shapes)
        total += min(whole, _sliced(fused, place, whole))
    written = _in_hbm(instruction.shapes)
    root = fused.root if fused is not None else instruction
    if root.opcode == "dynamic-update-slice":
        owner = fused if fused is not None else computation
        update = owner.operand(root, 1)
        # Its first operand is the array that is written over: neither read nor written whole.
        total -= min(total, written)
        written = min(written, _bytes(update.shapes) if update is not None else written)
    return total + written


def _fused(module: hlo.Module, instruction: hlo.Instruction) -> hlo.Computation | None:
    if instruction.opcode != "fusion" or not instruction.called:
        return None
    return module.computations.get(instruction.called[0])


def _sliced(fused: hlo.Computation | None, place: int, whole: float) -> float:
    """Bytes of a fusion's parameter that it looks at, where it only takes slices of it."""
    if fused is None:
        return whole
    parameter = next(
        (
            one
            for one in fused.instructions
            if one.opcode == "parameter" and one.operand_text.strip() == str(place)
        ),
        None,
    )
    if parameter is None:
        return whole
    users = [one for one in fused.instructions if parameter.name in one.operands]
    if not users or any(one.opcode not in _SLICES for one in users):
        return whole
    return sum(_bytes(one.shapes) for one in users)


def _found(
    module: hlo.Module, names: set[str]
) -> Mapping[str, tuple[hlo.Computation, hlo.Instruction]]:
    return {
        one.name: (computation, one)
        for computation in module.computations.values()
        for one in computation.instructions
        if one.name in names
    }


def _in_hbm(shapes: Iterable[hlo.Shape]) -> float:
    return _bytes(shape for shape in shapes if shape.space == hlo.HBM)


def _bytes(shapes: Iterable[Any]) -> float:
    return float(sum(shape.bytes for shape in shapes))
