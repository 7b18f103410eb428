# SPDX-License-Identifier: Apache-2.0
"""Tensors of a checkpoint -> our arrays on their devices, a part at a time.

A part is one of our arrays, or a layer or an expert of it. Its rows are read once, in pieces, and
dealt out to the slices that this process's devices hold.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from midjax.model import sharding, tensor_files, transformer
from midjax.model.families import table

# Rows are read in pieces of this size, so that a tensor and its conversion are never both whole.
_PIECE_BYTES = 1 << 25

Index = tuple[slice, ...]
Key = tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a part of ours lies: the first row of a tensor of theirs."""

    name: str
    first_row: int
    part: table.Part


def filled(
    tensors: Sequence[table.Tensor], targets: transformer.Params, reader: tensor_files.Reader
) -> transformer.Params:
    """Parameters with the shapes, dtypes and shardings of `targets`."""
    found = places(tensors)
    return jax.tree_util.tree_map_with_path(
        lambda path, target: _one(found[tuple(key.key for key in path)], target, reader), targets
    )


def places(tensors: Sequence[table.Tensor]) -> dict[tuple[str, ...], list[Place]]:
    """Path of each of our arrays -> where its parts lie."""
    found: dict[tuple[str, ...], list[Place]] = {}
    for tensor in tensors:
        row = 0
        for part in tensor.parts:
            found.setdefault(part.path, []).append(Place(tensor.name, row, part))
            row += part.their_shape[0]
    return found


def _one(parts: list[Place], target: Any, reader: tensor_files.Reader) -> jax.Array:
    """One of our arrays, stacked over its parts."""
    first, dtype = parts[0].part, target.dtype
    if not first.index:
        return _on_devices(target, lambda indices: slices(parts[0], indices, dtype, reader))
    axes = len(first.index)
    by_index = {place.part.index: place for place in parts}
    if _splits(target, axes):
        with sharding.no_mesh():
            return _by_device(by_index, axes, target, reader)

    def empty() -> jax.Array:
        return jnp.zeros(target.shape, dtype)

    put = jax.jit(_put, donate_argnums=0, out_shardings=target.sharding)
    stack = jax.jit(empty, out_shardings=target.sharding)()
    for index, place in sorted(by_index.items()):

        def make(indices: list[Index], place: Place = place) -> list[np.ndarray]:
            return slices(place, indices, dtype, reader)

        part = _on_devices(_inner(target, axes), make)
        stack = put(stack, part, tuple(np.int32(i) for i in index))
        # Otherwise the host would run ahead and hold many parts at a time.
        stack.block_until_ready()
    return stack


def _put(stack: jax.Array, part: jax.Array, index: tuple[Any, ...]) -> jax.Array:
    whole = part.reshape((1,) * len(index) + part.shape)
    return jax.lax.dynamic_update_slice(stack, whole, (*index, *(0,) * part.ndim))


def _by_device(
    by_index: dict[tuple[int, ...], Place], axes: int, target: Any, reader: tensor_files.Reader
) -> jax.Array:
    """An array whose experts are split: each device's share is filled there, expert by expert."""
    held = target.sharding.addressable_devices_indices_map(target.shape)
    share = target.sharding.shard_shape(target.shape)
    put = jax.jit(_put, donate_argnums=0)
    stacks = {
        device: jnp.zeros(share, target.dtype, device=jax.sharding.SingleDeviceSharding(device))
        for device in held
    }
    for index, place in sorted(by_index.items()):
        wanted: dict[Any, tuple[tuple[np.int32, ...], Key]] = {}
        distinct: dict[Key, Index] = {}
        for device, of_all in held.items():
            key = _key(of_all, target.shape)
            if all(low <= i < high for i, (low, high, _) in zip(index, key[:axes], strict=True)):
                local = tuple(np.int32(i - low) for i, (low, _, _) in zip(index, key, strict=False))
                wanted[device] = local, key[axes:]
                distinct[key[axes:]] = of_all[axes:]
        found = slices(place, list(distinct.values()), target.dtype, reader)
        made = dict(zip(distinct, found, strict=True))
        for device, (local, key) in wanted.items():
            stacks[device] = put(stacks[device], jax.device_put(made[key], device), local)
        jax.block_until_ready([stacks[device] for device in wanted])
        del found, made  # before the next one is read
    return jax.make_array_from_single_device_arrays(
        target.shape, target.sharding, list(stacks.values())
    )


def _splits(target: Any, axes: int) -> bool:
    """Whether one of the first axes of an array is split over devices."""
    part = target.sharding.shard_shape(target.shape)
    return any(part[axis] != target.shape[axis] for axis in range(axes))


def _inner(target: Any, axes: int) -> Any:
    """The target without its first axes, which are not split."""
    place = target.sharding
    if isinstance(place, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(*tuple(place.spec)[axes:])
        place = jax.sharding.NamedSharding(place.mesh, spec)
    return jax.ShapeDtypeStruct(target.shape[axes:], target.dtype, sharding=place)


def _on_devices(target: Any, make: Callable[[list[Index]], list[np.ndarray]]) -> jax.Array:
    """An array of slices that are made together, each once however many devices hold it."""
    held = target.sharding.addressable_devices_indices_map(target.shape)
    keys = {device: _key(index, target.shape) for device, index in held.items()}
    distinct = {keys[device]: index for device, index in held.items()}
    made = dict(zip(distinct, make(list(distinct.values())), strict=True))
    arrays = [jax.device_put(made[keys[device]], device) for device in held]
    jax.block_until_ready(arrays)
    return jax.make_array_from_single_device_arrays(target.shape, target.sharding, arrays)


def _key(index: Index, shape: tuple[int, ...]) -> Key:
    """A slice as something to look up."""
    return tuple(s.indices(n) for s, n in zip(index, shape, strict=True))


def slices(
    place: Place, indices: Sequence[Index], dtype: Any, reader: tensor_files.Reader
) -> list[np.ndarray]:
    """Slices of one part, in a dtype; every row that any of them needs is read once."""
    part = place.part
    ranges = [
        [range(*s.indices(n)) for s, n in zip(index, part.shape, strict=True)] for index in indices
    ]
    out = [np.empty([len(r) for r in each], dtype) for each in ranges]
    if not part.input_axes and part.path != ("embed",):  # vectors, which are flat there
        whole = reader.rows(place.name, place.first_row, place.first_row + part.their_shape[0])
        for array, index in zip(out, indices, strict=True):
            array[...] = whole.reshape(part.shape)[index]
        return out
    wanted = [_matrix(part, each, array) for each, array in zip(ranges, out, strict=True)]
    first = min(rows.start for rows, _, _ in wanted)
    last = max(rows.stop for rows, _, _ in wanted)
    step = max(1, _PIECE_BYTES // (4 * part.their_shape[1]))
    for begin in range(first, last, step):
        end = min(begin + step, last)
        piece = reader.rows(place.name, place.first_row + begin, place.first_row + end)
        for rows, columns, view in wanted:
            low, high = max(begin, rows.start), min(end, rows.stop)
            if low < high:
                view[low - rows.start : high - rows.start] = piece[
                    low - begin : high - begin, columns
                ]
    return out


def _matrix(
    part: table.Part, ranges: list[range], out: np.ndarray
) -> tuple[range, slice, np.ndarray]:
    """(rows, columns) of a slice in their matrix, and the slice as a view laid out as they are."""
    inner = part.input_axes
    if not inner:
        return ranges[0], slice(ranges[1].start, ranges[1].stop), out
    # Rows there are our last axes, columns our first: of each group only the first may be split.
    assert all(len(ranges[i]) == part.shape[i] for i in range(len(ranges)) if i not in (0, inner))
    rows_per = math.prod(part.shape[inner + 1 :])
    columns_per = math.prod(part.shape[1:inner])
    rows = range(ranges[inner].start * rows_per, ranges[inner].stop * rows_per)
    across = slice(ranges[0].start * columns_per, ranges[0].stop * columns_per)
    return rows, across, out.reshape(across.stop - across.start, len(rows)).T
