# SPDX-License-Identifier: Apache-2.0
"""Gathers and sums along axes of the mesh, as the torus has it: dimension by dimension.

    64 chips in a row, a torus 4 x 4 x 4
    part --gather over the inner 4 x 4, then over the outer 4--> whole
    part <--sum over the inner 4, the middle 4, the outer 4-- each chip's whole

Asked for all of it at once, the TPU's compiler does two things that cost (libtpu 0.0.52):

- A reduce-scatter over more than one dimension becomes an all-reduce, which sends twice as much,
  and a slice of it. Over one dimension after the other the least is sent.
- On chips with sparse cores, collectives over one dimension run there, beside the TensorCore; a
  gather over several is waited for. Over the outermost dimension by itself, most of the bytes go
  beside computation. The inner dimensions are left together: what is small is over soonest so.

Without sparse cores (v5e) gathers stay in one: they run beside computation anyway.

What sends least is not what waits least. An all-reduce over a torus of three dimensions has six
links at once where a sum along a line has two, so `Train.fsdp_sums` may ask for sums "at_once". By
the compiler's estimate, with gathers in two steps:

    ms per step                     by_dimension      at_once
    Llama-2-7B on v5p-128             2,014            1,997
    Llama-2-70B on v5p-512           10,803           10,494
    the same in two microbatches     10,602            9,755
    Llama-3.1-8B on v6e-64            1,125            1,099

The train step is traced so (`train.program`); evaluation gathers in one.
"""

import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# Whose collectives go to sparse cores, with the flags of `hardware.flags`; by `Device.device_kind`.
_SPARSE_CORES = frozenset({"TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e"})

Groups = list[list[int]]
Sums = Literal["by_dimension", "at_once"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torus:
    """How the devices along some axes of a mesh lie.

    Attributes:
      sizes: of the dimensions that the axes run over, the outermost first, as (8, 8, 4); () where
        there are fewer than two, or nobody knows.
      sparse_cores: whether the chips have some that do collectives.
      sums_at_once: all dimensions together, of the gradients.
    """

    sizes: tuple[int, ...] = ()
    sparse_cores: bool = False
    sums_at_once: bool = False

    def gathers(self) -> list[Groups | None]:
        """Places along the axes that gather together, step after step; None for all of them."""
        if not self.sizes or not self.sparse_cores:
            return [None]
        by_plane = np.arange(math.prod(self.sizes)).reshape(self.sizes[0], -1)
        return [by_plane.tolist(), by_plane.T.tolist()]

    def sums(self) -> list[Groups | None]:
        """Places along the axes that sum together, step after step.

        The outermost dimension comes first: what is left for the next is that much less.
        """
        if self.sums_at_once:
            return [None]
        index = np.arange(math.prod(self.sizes)).reshape(self.sizes)
        lines: list[Groups | None] = [
            np.moveaxis(index, i, -1).reshape(-1, size).tolist()
            for i, size in enumerate(self.sizes)
        ]
        return lines or [None]


# Read while a function is traced, where the mesh in force has no devices.
_TORUS: contextvars.ContextVar[Torus] = contextvars.ContextVar("torus", default=Torus())  # noqa: B039


def current() -> Torus:
    """Of what is being traced."""
    return _TORUS.get()


def traced_on(torus: Torus, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose `gathered` arrays go along this torus whenever it is traced."""

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        token = _TORUS.set(torus)
        try:
            return function(*args)
        finally:
            _TORUS.reset(token)

    return traced


def of(jax_mesh: jax.sharding.Mesh, axes: Sequence[str], sums: Sums = "by_dimension") -> Torus:
    """How the devices lie along these axes of the mesh, the first of them outermost.

    The sizes are () where the devices' order is not that of their coordinates, one dimension inside
    of the other, or where it differs between rows of the mesh.
    """
    places = [jax_mesh.axis_names.index(axis) for axis in axes]
    along = np.moveaxis(jax_mesh.devices, places, range(-len(places), 0))
    rows = along.reshape(-1, math.prod(jax_mesh.shape[axis] for axis in axes))
    if any(device.platform != "tpu" for device in rows.flat):
        return Torus()
    found = {_sizes(np.asarray([device.coords for device in row])) for row in rows}
    sizes = found.pop()
    return Torus(
        sizes=sizes if not found and len(sizes) > 1 else (),
        sparse_cores=all(device.device_kind in _SPARSE_CORES for device in rows.flat),
        sums_at_once=sums == "at_once",
    )


def _sizes(places: np.ndarray) -> tuple[int, ...]:
    """Sizes (a, b, c) if place [n, dims] number i b c + j c + k has its coordinates of i, j, k.

    Each of the three is then a dimension of the torus of its own. () if there are no such sizes.
    """
    moving = [i for i, values in enumerate(places.T) if len(set(values)) > 1]
    # Where a coordinate changes first: late for the outermost.
    moving.sort(key=lambda i: -int(np.argmax(places[:, i] != places[0, i])))
    sizes = tuple(len(set(places[:, i])) for i in moving)
    if math.prod(sizes) != len(places):
        return ()
    for axis, i in enumerate(moving):
        lines = np.moveaxis(places[:, i].reshape(sizes), axis, -1).reshape(-1, sizes[axis])
        if (lines != lines[0]).any():
            return ()
    return sizes


def gathered(part: Array, axes: tuple[str, ...], place: int) -> Array:
    """Inside of `jax.shard_map`: `part` of every device along axes of the mesh, side by side.

    The gradient is summed over the devices in the dtype of `part`, and rounded to it after every
    dimension of the torus.

    Args:
      part: of this device.
      axes: of the mesh, the first of them outermost.
      place: the dimension along which the parts lie.
    """
    return _gathered(axes, place, current(), part)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gathered(axes: tuple[str, ...], place: int, torus: Torus, part: Array) -> Array:
    for groups in torus.gathers():
        part = jax.lax.all_gather(part, axes, axis=place, axis_index_groups=groups, tiled=True)
    return part


def _gathered_forward(
    axes: tuple[str, ...], place: int, torus: Torus, part: Array
) -> tuple[Array, None]:
    return _gathered(axes, place, torus, part), None


def _scattered(
    axes: tuple[str, ...], place: int, torus: Torus, _: None, whole: Array
) -> tuple[Array]:
    """The sum over the axes of each device's `whole`, of which every device gets its part."""
    # In front, so that the compiler may keep it there: of 64 numbers in the last dimension, as a
    # 64th of 4,096 are, a TPU pads the stack of all layers' gradients to 128.
    whole = jnp.moveaxis(whole, place, 0)
    for groups in torus.sums():
        whole = jax.lax.psum_scatter(
            whole, axes, scatter_dimension=0, axis_index_groups=groups, tiled=True
        )
    return (jnp.moveaxis(whole, 0, place),)


_gathered.defvjp(_gathered_forward, _scattered)
