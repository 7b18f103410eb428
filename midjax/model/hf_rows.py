# SPDX-License-Identifier: Apache-2.0
"""Our arrays on any mesh -> rows of the tensors of a checkpoint, a piece at a time.

    parameters --ours--> a slice of a part, on the host --theirs--> rows of a tensor

A piece is cut out of each device's shard on that device, so that no array is ever whole in host
memory: JAX keeps a copy of every array that was once read as a whole, for as long as it lives.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from midjax.model import sharding, transformer
from midjax.model.families import table

# Of a piece, before it is converted.
PIECE_BYTES = 1 << 25


def theirs(tensor: table.Tensor, params: transformer.Params) -> Iterator[np.ndarray]:
    """Pieces of a tensor of theirs along its first axis, in order, in the parameters' dtype."""
    for part in tensor.parts:
        array = leaf(params, part.path)
        for begin, end in steps(part, array.dtype.itemsize):
            piece = ours(array, part, begin, end)
            if part.input_axes:
                yield piece.reshape(part.their_shape[1], -1).T
            else:
                yield piece.reshape(-1, *part.their_shape[1:])


def steps(part: table.Part, item_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of a part's first output axis whose pieces hold about `PIECE_BYTES`."""
    size = part.shape[part.input_axes]
    unit = max(1, math.prod(part.shape) // size * item_bytes)
    step = max(1, PIECE_BYTES // unit)
    for begin in range(0, size, step):
        yield begin, min(begin + step, size)


def index(part: table.Part, begin: int, end: int) -> tuple[slice, ...]:
    """The slice of a part that a step means."""
    whole = [slice(0, size) for size in part.shape]
    whole[part.input_axes] = slice(begin, end)
    return tuple(whole)


def ours(array: Any, part: table.Part, begin: int, end: int) -> np.ndarray:
    """A slice of a part, in our layout.

    Args:
      array: the part's array, with the axes of its stack; on a mesh whose devices are all of this
        process, or on the host.
      part, begin, end: see `steps`.
    """
    first = len(part.index)
    wanted = [range(i, i + 1) for i in part.index]
    wanted += [range(one.start, one.stop) for one in index(part, begin, end)]
    if not isinstance(array, jax.Array):
        return np.asarray(array[tuple(slice(r.start, r.stop) for r in wanted)]).reshape(
            [len(r) for r in wanted[first:]]
        )
    out = np.empty([len(r) for r in wanted], array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        held = [s.indices(n) for s, n in zip(shard.index, array.shape, strict=True)]
        both = [
            range(max(r.start, low), min(r.stop, high))
            for r, (low, high, _) in zip(wanted, held, strict=True)
        ]
        if not all(both):
            continue
        starts = [r.start - low for r, (low, _, _) in zip(both, held, strict=True)]
        with sharding.no_mesh():
            piece = jax.lax.dynamic_slice(shard.data, starts, [len(r) for r in both])
        target = tuple(
            slice(r.start - w.start, r.stop - w.start) for r, w in zip(both, wanted, strict=True)
        )
        out[target] = np.asarray(piece)
    return out.reshape(out.shape[first:])


def leaf(tree: Any, path: tuple[str, ...]) -> Any:
    """The array at a path of a tree of parameters."""
    for name in path:
        tree = tree[name]
    return tree
