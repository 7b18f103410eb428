# SPDX-License-Identifier: Apache-2.0
"""What an array of a program is: by where it comes from, in the words of the traced program.

JAX writes down of every operation whether it is part of the forward pass ("jvp"), the backward pass
("transpose"), or of what is computed again for it ("rematted_computation"). An array that a loop
fills one row at a time and that is as long as the loop runs is what `lax.scan` stacks: of the
forward pass it is kept for the backward pass, of that it is a gradient.
"""

import dataclasses
import re
from collections.abc import Sequence

from midjax.plan import hlo, links, trips

SAVED = "activations kept for the backward pass"
GRADIENTS = "gradients"
COPIES = "copies of parameters"
GATHERED = "results of collectives"
FORWARD = "temporaries of the forward pass"
AGAIN = "temporaries computed again"
BACKWARD = "temporaries of the backward pass"
UPDATE = "temporaries of the update"
NAMELESS = "temporaries without a name"

# What hands on an array, however it lies in memory.
_SAME = {
    *("copy", "bitcast", "convert", "reshape", "transpose", "copy-start", "copy-done"),
    *("opt-barrier", "async-done", "reduce-precision"),
}
# Of an operation's name what says how it was traced, not what it is.
_TRACED = re.compile(
    r"^(jit|pjit|jvp|transpose|vmap|shard_map|checkpoint|remat\w*|while|body|cond|scan|closed_call|"
    r"core_call|eval_jaxpr|custom_jvp_call|custom_vjp_call|rematted_computation|branch_\d+_fun|_\w+)?"
    r"(\(.*\))?$"
)
_DEEPEST = 40


@dataclasses.dataclass(frozen=True)
class Origin:
    """Of an array.

    Attributes:
      kind: one of those above.
      label: the operation that makes it, shortened: "mlp/dot_general"; or its opcode.
    """

    kind: str
    label: str


def short(op_name: str) -> str:
    """The end of an operation's name without what JAX's transformations add.

    "jit(step)/transpose(jvp())/while/body/checkpoint/mlp/dot_general" is "mlp/dot_general".
    """
    kept = [part for part in op_name.split("/") if part and not _TRACED.match(part)]
    return "/".join(kept[-3:])


class Origins:
    """Of the arrays of one program.

    Args:
      module: the program.
      parameters: dimensions of the model's parameters on one chip.
    """

    def __init__(self, module: hlo.Module, parameters: Sequence[tuple[int, ...]]) -> None:
        self.module = module
        self._parameters = {_plain(dims) for dims in parameters}
        self._where: dict[str, tuple[hlo.Computation, hlo.Instruction]] = {}
        self._loops: dict[str, tuple[hlo.Computation, hlo.Instruction]] = {}
        for computation in module.computations.values():
            for one in computation.instructions:
                self._where[one.name] = (computation, one)
                if one.opcode == "while":
                    for name in one.called:
                        self._loops[name] = (computation, one)

    def of(self, name: str, element: tuple[int, ...]) -> Origin:
        """Of an instruction's result, or of an element of it.

        Args:
          name: of the instruction.
          element: as in `buffers.Value`.
        """
        if name not in self._where:  # the compiler has renamed or replaced it since
            return Origin(NAMELESS, name)
        computation, one = self._where[name]
        if one.opcode == "parameter" and computation.name in self._loops:
            computation, one = self._loops[computation.name]
        if one.opcode == "while" and element:
            return self._of_loop(computation, one, element[0])
        flat = one.shapes
        at = element[0] if len(element) == 1 and element[0] < len(flat) else 0
        source = self._follow(computation, one, element).made_by
        return self._named(source, one, flat[at] if flat else None)

    def op_name(self, name: str) -> str:
        """The traced operation of an instruction; nothing of one that has none."""
        return self._where[name][1].op_name if name in self._where else ""

    def _of_loop(self, computation: hlo.Computation, loop: hlo.Instruction, element: int) -> Origin:
        shape = loop.shapes[element] if element < len(loop.shapes) else None
        found = self._written(loop, element)
        if found is None:  # the loop only reads it: it is what it was before
            state = computation.operand(loop, 0)
            given = computation.operand(state, element) if state is not None else None
            if state is None or state.opcode != "tuple" or given is None:
                return self._named(loop, loop, shape)
            return self._named(self._follow(computation, given, ()).made_by, loop, shape)
        source = found.made_by
        if found.carried is not None:  # a row of what the loop hands from round to round
            before = self._written(loop, found.carried)
            source = before.made_by if before is not None else source
        origin = self._named(source, loop, shape)
        times = trips.count(self.module, computation, loop).count
        # The compiler may have taken the first or the last round out of the loop.
        stacked = shape is not None and bool(shape.dims) and shape.dims[0] in (times, times + 1)
        if found.in_place and stacked and origin.kind != COPIES:
            phase = _phase(source.op_name or loop.op_name)
            return Origin(SAVED if phase == FORWARD else GRADIENTS, origin.label)
        return origin

    def _written(self, loop: hlo.Instruction, element: int) -> "_Source | None":
        """What a loop's body puts into an element of its state; None if it leaves it as it is."""
        body = self.module.computations[loop.attribute("body") or ""]
        written = body.operand(body.root, element) if body.root.opcode == "tuple" else None
        if written is None:
            return None
        found = self._follow(body, written, ())
        return None if found.carried == element and not found.in_place else found

    def _follow(
        self, computation: hlo.Computation, one: hlo.Instruction, element: tuple[int, ...]
    ) -> "_Source":
        """Back over copies and updates in place to what made the numbers."""
        in_place = False
        for _ in range(_DEEPEST):
            source = computation.operand(one, 0)
            if one.opcode == "get-tuple-element" and source is not None:
                index = int(one.attribute("index") or 0)
                if source.opcode in ("parameter", "while"):
                    carried = index if source.opcode == "parameter" else None
                    return _Source(one, in_place, carried)
                one, element = source, (index,)
            elif one.opcode in _SAME and source is not None and not _speaks(one):
                one = source
            elif one.opcode == "tuple" and element and element[0] < len(one.operands):
                one, element = computation.by_name[one.operands[element[0]]], ()
            elif one.opcode == "dynamic-update-slice" and len(one.operands) > 1:
                in_place = True
                one = computation.operand(one, 1) or one
            elif one.opcode == "fusion" and one.called:
                made_by, placed = self._in_fusion(one, element)
                in_place |= placed
                if made_by is None or made_by.opcode != "parameter":
                    named = made_by is not None and made_by.op_name
                    return _Source(made_by if made_by and named else one, in_place)
                given = computation.operand(one, int(made_by.operand_text))
                if given is None:
                    return _Source(one, in_place)
                one, element = given, ()
            else:
                break
        return _Source(one, in_place)

    def _in_fusion(
        self, fusion: hlo.Instruction, element: tuple[int, ...]
    ) -> tuple[hlo.Instruction | None, bool]:
        """(what makes a fusion's result, or the parameter that it hands on; is it put in place)."""
        inner = self.module.computations[fusion.called[0]]
        root: hlo.Instruction | None = inner.root
        if root is not None and root.opcode == "tuple":
            root = inner.operand(root, element[0] if element else 0)
        in_place = False
        for _ in range(_DEEPEST):
            if root is not None and root.opcode == "dynamic-update-slice":
                in_place, root = True, inner.operand(root, 1)
            elif root is not None and root.opcode in _SAME:
                root = inner.operand(root, 0)
            else:
                break
        return root, in_place

    def _named(
        self, source: hlo.Instruction, at: hlo.Instruction, shape: hlo.Shape | None
    ) -> Origin:
        op_name = source.op_name or at.op_name
        label = short(op_name) or source.attribute("custom_call_target") or source.opcode
        phase = _phase(op_name)
        if shape is not None and len(shape.dims) > 1 and _plain(shape.dims) in self._parameters:
            return Origin(GRADIENTS if phase in (BACKWARD, AGAIN) else COPIES, label)
        if source.base in links.KINDS:
            named = short(op_name)
            return Origin(GATHERED, f"{source.base} of {named}" if named else source.base)
        return Origin(phase, label)


@dataclasses.dataclass(frozen=True)
class _Source:
    """What made an array.

    Attributes:
      made_by: the instruction.
      in_place: it made only a part, which was put into the array.
      carried: it is that element of its loop's state, as it was when the round began.
    """

    made_by: hlo.Instruction
    in_place: bool
    carried: int | None = None


def _plain(dims: Sequence[int]) -> tuple[int, ...]:
    """Dimensions without those of size one, in any order."""
    return tuple(sorted(size for size in dims if size != 1))


def _phase(op_name: str) -> str:
    if "rematted_computation" in op_name:
        return AGAIN
    if "transpose(" in op_name:
        return BACKWARD
    if "jvp(" in op_name:
        return FORWARD
    return UPDATE if op_name else NAMELESS


def _speaks(one: hlo.Instruction) -> bool:
    """A conversion or copy that the traced program itself asks for."""
    return one.opcode in ("convert",) and bool(one.op_name)
