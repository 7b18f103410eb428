# SPDX-License-Identifier: Apache-2.0
"""The order of a row's tokens where the mesh axis `context` splits its length.

With n shards a row is cut in 2n chunks, and shard i holds the chunks i and 2n - 1 - i:

    natural   0 1 2 3 4 5 6 7          n = 4
    placed    0 7 | 1 6 | 2 5 | 3 4

Under a causal mask a chunk costs what stands before it, so every shard has the same work. The host
puts rows into this order (`arrange`) before they go to the devices; what comes back per position is
put back (`restore`). In between only attention knows of it: all else treats positions alike.

Shape suffixes: T tokens of a row.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AXIS = "context"


def shards(mesh_shape: Mapping[str, int]) -> int:
    """n: into how many parts a mesh splits the length of rows."""
    return mesh_shape.get(AXIS, 1)


def split_here() -> int:
    """Into how many parts the mesh in force splits the length of the arrays that are traced.

    One inside of `jax.shard_map`, where arrays are a device's own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.manual_axes else shards(mesh.shape)


@functools.cache
def order(tokens: int, shards: int) -> np.ndarray:
    """Place in the natural row of each place in the placed row: placed = row[order]. int32 [T].

    Raises:
      ValueError: the row can't be cut in 2 * shards chunks.
    """
    if shards == 1:
        return _frozen(np.arange(tokens, dtype=np.int32))
    if tokens % (2 * shards):
        raise ValueError(
            f"A row of {tokens} tokens does not divide over mesh context {shards}: every shard "
            f"holds two chunks of equal length. Choose a multiple of {2 * shards}, such as "
            f"{-(-tokens // (2 * shards)) * 2 * shards}, or a smaller context axis."
        )
    chunks = np.arange(tokens, dtype=np.int32).reshape(2 * shards, -1)
    return _frozen(np.stack((chunks[:shards], chunks[: shards - 1 : -1]), axis=1).reshape(-1))


@functools.cache
def natural(tokens: int, shards: int) -> np.ndarray:
    """Place in the placed row of each place in the natural row: row = placed[natural]. int32 [T].

    Raises:
      ValueError: as `order`.
    """
    return _frozen(np.argsort(order(tokens, shards)).astype(np.int32))


def arrange(rows: Any, mesh_shape: Mapping[str, int]) -> Any:
    """Rows on the host, a tree of arrays [..., T], in the order that a mesh wants.

    Raises:
      ValueError: as `order`.
    """
    count = shards(mesh_shape)
    if count == 1:
        return rows
    return jax.tree.map(lambda x: x[..., order(x.shape[-1], count)], rows)


def restore(array: np.ndarray, mesh_shape: Mapping[str, int]) -> np.ndarray:
    """One number per position, [..., T], back in natural order."""
    count = shards(mesh_shape)
    return array if count == 1 else array[..., natural(array.shape[-1], count)]


def gathered(x: jax.Array, axis: int, shards: int) -> jax.Array:
    """A shard's part of an array -> all of it in natural order; inside `jax.shard_map`.

    Args:
      x: the part of this shard.
      axis: that of the row's places.
    """
    if shards == 1:
        return x
    # The second chunks change places first, so that what is gathered needs no sorting: a shard's
    # part is small, the whole is not.
    first, second = jnp.split(x, 2, axis=axis)
    second = jax.lax.ppermute(second, AXIS, [(i, shards - 1 - i) for i in range(shards)])
    halves = jnp.stack((first, second), axis=axis)
    whole = jax.lax.all_gather(halves, AXIS, axis=axis + 1)  # [..., half, shard, place, ...]
    return whole.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False  # one array for all callers
    return array
