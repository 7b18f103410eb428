# SPDX-License-Identifier: Apache-2.0
"""Trees of arrays: their names, what they are, and summaries that tell whether they arrived.

tree --named_leaves--> ("layers/wq", array) ...  --describe, norms, digests--> what a manifest keeps
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def describe(tree: Any) -> dict[str, str]:
    """Path -> dtype and shape of every array, such as "float32[2, 32, 16]"."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(tree)}


def mismatches(saved: Mapping[str, str], targets: Mapping[str, Any]) -> list[str]:
    """What differs between arrays as a manifest describes them and those that are wanted.

    Args:
      saved: "arrays" of a manifest.
      targets: item -> tree of arrays or their shapes; items that are not named are not compared.
    """
    theirs = {name: what for name, what in saved.items() if name.split("/", 1)[0] in targets}
    ours = describe(dict(targets))
    return [
        f"{name}: checkpoint {theirs.get(name, 'absent')}, recipe {ours.get(name, 'absent')}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]


def as_saved(saved: Mapping[str, str], targets: Mapping[str, Any]) -> dict[str, Any]:
    """`targets` with the dtypes of a manifest's arrays, where both are floating point numbers."""

    def one(path: Any, target: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        dtype = saved.get(name, "").partition("[")[0]
        if not dtype or not (_is_float(dtype) and _is_float(target.dtype)):
            return target
        return jax.ShapeDtypeStruct(target.shape, jnp.dtype(dtype), sharding=target.sharding)

    return jax.tree_util.tree_map_with_path(one, dict(targets))


def _is_float(dtype: Any) -> bool:
    return bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))


def casts(saved: Mapping[str, str], targets: Mapping[str, Any]) -> dict[str, str]:
    """Path -> "float32 -> bfloat16", of arrays that a manifest and `targets` have in two dtypes."""
    found = {}
    for name, leaf in named_leaves(dict(targets)):
        theirs, ours = saved.get(name, "").partition("[")[0], str(leaf.dtype)
        if theirs and theirs != ours:
            found[name] = f"{theirs} -> {ours}"
    return found


def grouped(found: Mapping[str, str]) -> list[str]:
    """Sentences such as "float32 -> bfloat16: 12 arrays, first params/embed"."""
    groups: dict[str, list[str]] = {}
    for name, what in found.items():
        groups.setdefault(what, []).append(name)
    return [f"{what}: {len(names)} arrays, first {names[0]}" for what, names in groups.items()]


def cast(arrays: Any, targets: Any) -> Any:
    """Arrays in the dtypes and shardings of `targets`, one at a time.

    Each array that changes is given up before the next is made: beside the tree there is never
    more than one array twice.
    """

    def one(array: jax.Array, target: Any) -> jax.Array:
        if array.dtype == target.dtype:
            return array
        change = jax.jit(lambda x: near(x).astype(target.dtype), out_shardings=target.sharding)
        made = change(array)
        made.block_until_ready()
        array.delete()
        return made

    return jax.tree.map(one, arrays, targets)


def listed(wrong: list[str]) -> str:
    """The first of many findings, for a message."""
    rest = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    return "; ".join(wrong[:4]) + rest


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """("layers/wq", array) for every leaf of a tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of dicts whose `named_leaves` these are."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return tree


def norms(arrays: Mapping[str, Any]) -> dict[str, float]:
    """L2 norms of params, mu and nu: the summary that a restore is checked against."""
    return _plain_norms(_norms(_normed(arrays)))


def digests(tree: Any) -> dict[str, str]:
    """Path -> 32-bit digest of each array's bits, the same on every mesh."""
    return _plain_digests(_digests(dict(named_leaves(tree))))


def summary(arrays: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    """Begins summing on the devices; what it gives waits for {"norms": ..., "digests": ...}.

    The arrays may be donated before that is called.
    """
    of_norms = alone(_norms(_normed(arrays)))
    of_digests = _digests(dict(named_leaves(dict(arrays))))
    return lambda: {"norms": _plain_norms(of_norms), "digests": _plain_digests(of_digests)}


def _normed(arrays: Mapping[str, Any]) -> dict[str, Any]:
    trees = {}
    if "params" in arrays:
        trees["params"] = arrays["params"]
    if "opt_state" in arrays:
        trees |= arrays["opt_state"]["moments"]
    return trees


@jax.jit
def _norms(trees: dict[str, Any]) -> dict[str, jax.Array]:
    return {
        name: optax.tree.norm(jax.tree.map(lambda x: near(x).astype(jnp.float32), tree))
        for name, tree in trees.items()
    }


def _plain_norms(found: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(norm) for name, norm in jax.device_get(found).items()}


def _digests(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Array by array: one program of all of them runs five times as long on a CPU."""
    return {name: alone(_near_digest(leaf)) for name, leaf in leaves.items()}


@jax.jit
def _near_digest(leaf: jax.Array) -> jax.Array:
    return _digest(near(leaf))


def _plain_digests(found: dict[str, jax.Array]) -> dict[str, str]:
    return {name: f"{int(digest):08x}" for name, digest in jax.device_get(found).items()}


def alone(computed: Any) -> Any:
    """What was computed on all devices together, before more is: only CPUs need it.

    Where CPUs run two programs with sums over devices at a time, each may hold the threads that the
    other one waits for, for ever. TPUs run one after the other.
    """
    for x in jax.tree.leaves(computed):
        devices = x.sharding.device_set
        if len(devices) > 1 and next(iter(devices)).platform == "cpu":
            x.block_until_ready()
    return computed


def near(x: jax.Array) -> jax.Array:
    """In the device's memory: what lies in the host's cannot be computed with."""
    return jax.device_put(x, jax.memory.Space.Device)


def _digest(x: jax.Array) -> jax.Array:
    """Sum over places of mix(bits + hash of the place), modulo 2^32.

    Integer sums do not depend on their order, so sharding does not change the digest. The mixing
    (the finalizer of MurmurHash3) keeps changes from cancelling, as two flipped signs would in a
    plain weighted sum.
    """
    bits = jax.lax.bitcast_convert_type(x, _UINT[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place = _mix(place + index + np.uint32(0x9E3779B9))
    mixed = _mix(bits + place)
    if x.ndim > 1:  # row by row first: a loop that XLA vectorizes, unlike one sum of everything
        mixed = jax.lax.optimization_barrier(jnp.sum(mixed, axis=-1, dtype=jnp.uint32))
    return jnp.sum(mixed, dtype=jnp.uint32)


def unordered_digest(x: jax.Array) -> jax.Array:
    """32-bit digest of an array's numbers in any order and shape: a rearrangement keeps it."""
    bits = jax.lax.bitcast_convert_type(x, _UINT[x.dtype.itemsize]).astype(jnp.uint32)
    return jnp.sum(_mix(bits + np.uint32(0x9E3779B9)), dtype=jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


_UINT = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
