# SPDX-License-Identifier: Apache-2.0
"""Operations that the hardware does: of products by their shapes, of kernels by their names.

A multiply and an add are two operations. Products that the compiler writes as convolutions are
counted over the places where the window meets the array and not its padding, as XLA counts them.
"""

import dataclasses
import functools
import math
import re

from midjax.plan import hlo

PRODUCTS = ("dot", "convolution")

_FLASH = re.compile(r"splash|flash|attention", re.IGNORECASE)
_GROUPED = re.compile(r"gmm|megablox|ragged_dot|grouped_matmul", re.IGNORECASE)
_ESTIMATE = re.compile(r'"cost_estimate":\{([^}]*)\}')
_GROUPED_DIMS = 3
_HEAD_DIMS = (64, 96, 128, 192, 256, 512)


def product(computation: hlo.Computation, instruction: hlo.Instruction) -> float:
    """Of a `dot` or a `convolution`; 0 of anything else."""
    if instruction.opcode not in PRODUCTS:
        return 0.0
    left, right = (computation.operand(instruction, place) for place in (0, 1))
    if left is None or right is None:
        return 0.0
    out = math.prod(instruction.shapes[0].dims)
    if instruction.opcode == "dot":
        dims = left.shapes[0].dims
        return 2.0 * out * math.prod(dims[i] for i in _list(instruction, "lhs_contracting_dims"))
    return 2.0 * _convolution(instruction, left.shapes[0].dims, right.shapes[0].dims)


def _list(instruction: hlo.Instruction, name: str) -> list[int]:
    found = re.search(rf"{name}=\{{([\d,]*)\}}", instruction.attributes)
    return [int(i) for i in found[1].split(",") if i] if found else []


def _convolution(
    instruction: hlo.Instruction, left: tuple[int, ...], right: tuple[int, ...]
) -> float:
    """Multiplications: batch x output features x input features of a group x places that meet."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0.0
    out = instruction.shapes[0].dims
    of_left, of_right, of_out = labels[1], labels[2], labels[3]
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    written = dict(item.split("=") for item in window[1].split()) if window else {}
    spatial = sorted(label for label in of_left if label.isdigit())
    many = len(spatial)
    places = 1
    for place, label in enumerate(spatial):
        low = _per_dim(written.get("pad"), many, "0_0")[place].split("_")[0]
        places *= _meetings(
            left[of_left.index(label)],
            right[of_right.index(label)],
            out[of_out.index(label)],
            int(low),
            int(_per_dim(written.get("stride"), many, "1")[place]),
            int(_per_dim(written.get("lhs_dilate"), many, "1")[place]),
            int(_per_dim(written.get("rhs_dilate"), many, "1")[place]),
        )
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    batch = left[of_left.index("b")] / batch_groups
    return batch * out[of_out.index("f")] * right[of_right.index("i")] * places


def _per_dim(text: str | None, many: int, default: str) -> list[str]:
    return text.split("x") if text else [default] * many


@functools.lru_cache(maxsize=4096)
def _meetings(
    length: int, window: int, out: int, low: int, stride: int, dilate: int, spread: int
) -> int:
    """Pairs of a place of the output and one of the window that meet a number of the array."""
    wide = (length - 1) * dilate + 1
    met = 0
    for step in range(window):
        # Output o meets the array at o * stride + at, which must be in 0 .. wide - 1.
        at = step * spread - low
        first = max(0, -(at // stride))
        last = min(out - 1, (wide - 1 - at) // stride)
        if dilate == 1:
            met += max(0, last - first + 1)
        else:
            met += sum((o * stride + at) % dilate == 0 for o in range(first, last + 1))
    return met


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """What a hand-written kernel does.

    Attributes:
      flops: 0 where nothing tells.
      bytes: read and written.
      how: where the figures come from.
      is_grouped: it multiplies groups of rows with a matrix each, as experts do.
    """

    flops: float
    bytes: float
    how: str
    is_grouped: bool = False


def kernel(
    computation: hlo.Computation, instruction: hlo.Instruction, attention_share: float
) -> Kernel:
    """Of a custom call.

    Args:
      computation: that it stands in.
      instruction: the call.
      attention_share: of all pairs of query and key those that attention looks at, 0.5 if causal.
    """
    operands = computation.operand_shapes(instruction)
    moved = float(instruction.bytes + sum(shape.bytes for shape in operands))
    said = _ESTIMATE.search(instruction.attributes)
    text = f"{instruction.name} {instruction.op_name}"
    is_grouped = _GROUPED.search(text) is not None
    if said:
        numbers = dict(re.findall(r'"(\w+)":"?(\d+)', said[1]))
        return Kernel(
            flops=float(numbers.get("flops", 0)),
            bytes=float(numbers.get("bytes_accessed", moved)),
            how="the kernel's own estimate",
            is_grouped=is_grouped,
        )
    floats = [shape for shape in operands if shape.dtype in ("bf16", "f16", "f32")]
    if _FLASH.search(text):
        found = _attention(instruction, floats, operands, attention_share)
        if found:
            return Kernel(flops=found[0], bytes=moved, how=found[1])
    if is_grouped and (grouped := _grouped(instruction, floats)):
        how = "grouped product, every row once"
        return Kernel(flops=grouped, bytes=moved, how=how, is_grouped=True)
    return Kernel(flops=0.0, bytes=moved, how="bytes only")


def _attention(
    instruction: hlo.Instruction,
    floats: list[hlo.Shape],
    operands: tuple[hlo.Shape, ...],
    share: float,
) -> tuple[float, str] | None:
    """(operations, how) of a splash or flash kernel: its first arrays are queries and keys.

    Products of the size queries x keys x head: forward 2 (scores, outputs); gradient of queries 3
    (scores, and of probabilities, queries); of keys and values 4; both in one 5.
    """
    arrays = [s for s in floats if len(s.dims) >= 3 and s.dims[-1] in _HEAD_DIMS]
    arrays = [s for s in arrays if s.dims[-2] >= 128]
    if not arrays:
        return None
    queries, keys = arrays[0], arrays[min(1, len(arrays) - 1)]
    products = 2
    if "dkv" in instruction.name:
        # Beside the gradients of keys and values it writes partial ones of the queries.
        gradients = [s for s in instruction.shapes if len(s.dims) >= 3 and s.dims[-1] in _HEAD_DIMS]
        products = 5 if len(gradients) > 2 else 4
    elif re.search(r"_dq|dq_", instruction.name):
        products = 3
    looked_at = min(share, _window_share(instruction, operands, queries, keys))
    pairs = math.prod(queries.dims[:-1]) * keys.dims[-2] * looked_at
    return 2.0 * products * pairs * queries.dims[-1], f"attention x{products}, {looked_at:.3g}"


def _window_share(
    instruction: hlo.Instruction,
    operands: tuple[hlo.Shape, ...],
    queries: hlo.Shape,
    keys: hlo.Shape,
) -> float:
    """Blocks that a splash kernel's table lists, of all: a sliding window leaves most out."""
    tables = [s for s in operands if s.dtype in ("s8", "s16", "s32") and len(s.dims) == 3]
    blocks = dict(re.findall(r'(block_q|block_kv)\w*\\*": (\d+)', instruction.attributes))
    if not tables or len(blocks) < 2:
        return 1.0
    whole = (queries.dims[-2] / int(blocks["block_q"])) * (keys.dims[-2] / int(blocks["block_kv"]))
    return min(1.0, tables[0].dims[-2] * tables[0].dims[-1] / whole)


def _grouped(instruction: hlo.Instruction, floats: list[hlo.Shape]) -> float:
    """Rows [m, k] times one of several matrices [g, k, n], or [m, k] and [m, n] to [g, k, n]."""
    if len(floats) < 2:
        return 0.0
    left, right, out = floats[0].dims, floats[1].dims, instruction.shapes[0].dims
    if len(left) == 2 and len(right) == _GROUPED_DIMS:
        k = left[1]
        n = right[2] if right[1] == k else right[1]
        return 2.0 * left[0] * k * n
    if len(left) == 2 and len(right) == 2 and len(out) == _GROUPED_DIMS:
        return 2.0 * math.prod(left) * out[2]
    return 0.0
