# SPDX-License-Identifier: Apache-2.0
"""Which devices a collective joins -> the axes of the mesh it runs over, and the links it has.

    replica_groups=[4,2]<=[2,4]T(1,0)   mesh {"data": 2, "fsdp": 4}   -->  axis "data"

Device i of the program is the mesh's device i, row by row: JAX numbers them so.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from midjax.hardware import slices
from midjax.plan import hlo

OTHER = "other"  # groups that follow no axis of the mesh

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_TURNED = re.compile(r"^\[([\d,]+)\](?:T\(([\d,]+)\))?$")
_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:,?\s*device_ids=\(([^()]*(?:\([^()]*\))?[^()]*)\))?"
    r"\s*\{([^}]*)\}"
)
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_MEGASCALE = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a device of the mesh stands.

    Attributes:
      slice_index: of the slice it belongs to.
      coordinates: in that slice's torus.
    """

    slice_index: int
    coordinates: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The devices of one collective.

    Attributes:
      axis: of the mesh, several joined by "+", in the mesh's order; `OTHER` if none fits.
      size: devices that take part together.
      slices: over which they are spread; with 2 or more they talk over the data centre's network.
      torus_dims: dimensions of the torus along which they are spread; None if places aren't known.
      closed: every one of these is a ring.
    """

    axis: str
    size: int
    slices: int = 1
    torus_dims: int | None = None
    closed: bool = True


def places(devices: Sequence[Any]) -> tuple[Place, ...]:
    """Places of `jax_mesh.devices.flat`, for `Mesh`."""
    return tuple(
        Place(
            slice_index=int(getattr(device, "slice_index", 0) or 0),
            coordinates=tuple(device.coords),
        )
        for device in devices
    )


class Mesh:
    """The mesh a program was compiled for.

    Args:
      one: the slices it runs on.
      sizes: of the mesh's axes, in the mesh's order.
      where: of its devices, in the mesh's order, or None: slices then follow one another, and how
        an axis lies in a torus is guessed from its size.

    Raises:
      ValueError: the axes don't multiply to the chips of the slices, or `where` is of others.
    """

    def __init__(
        self, one: slices.Slice, sizes: Mapping[str, int], where: Sequence[Place] | None = None
    ) -> None:
        self.slice, self.sizes, self.where = one, dict(sizes), where
        self.devices = math.prod(self.sizes.values())
        if self.devices != one.chips:
            text = " x ".join(f"{name} {size}" for name, size in self.sizes.items())
            raise ValueError(
                f"The mesh ({text}) has {self.devices} devices, {one.name} has {one.chips} chips. "
                "Give the mesh that the program was compiled for."
            )
        if where is not None and len(where) != self.devices:
            raise ValueError(f"{len(where)} places are given for {self.devices} devices.")
        per_slice = one.chips_per_slice
        spots = [place.slice_index for place in where] if where else None
        self._slice_of = spots or [i // per_slice for i in range(self.devices)]
        first = min(self._slice_of)
        # A program for several slices numbers the devices of its own.
        self._own = [i for i, at in enumerate(self._slice_of) if at == first]

    def group(self, instruction: hlo.Instruction) -> Group:
        """Of a collective instruction."""
        joined = _members(instruction.attributes)
        if joined is None:
            return Group(axis=OTHER, size=len(self._own))
        if not joined:
            joined = (tuple(range(len(self._own))),)
        if len(self._own) < self.devices and max(map(max, joined)) < len(self._own):
            joined = tuple(tuple(self._own[i] for i in group) for group in joined)
        return self._described(joined, pairs="source_target_pairs" in instruction.attributes)

    def across_slices(self, instruction: hlo.Instruction) -> Group:
        """Of a transfer between slices, whose target lists them: "{1,2}x{0:7}"."""
        found = _MEGASCALE.search(instruction.attributes)
        count = len(set(self._slice_of))
        if found and ":" not in found[1]:
            count = len(found[1].split(","))
        varying = [
            name for name, line in self._lines.items() if len({self._slice_of[i] for i in line}) > 1
        ]
        return Group(axis="+".join(varying) or OTHER, size=count, slices=count)

    @functools.cached_property
    def _lines(self) -> dict[str, list[int]]:
        """Of each axis the devices along it, from the first one."""
        grid = np.arange(self.devices).reshape(tuple(self.sizes.values()))
        return {
            name: np.moveaxis(grid, place, 0).reshape(size, -1)[:, 0].tolist()
            for place, (name, size) in enumerate(self.sizes.items())
        }

    def _described(self, joined: tuple[tuple[int, ...], ...], pairs: bool) -> Group:
        size = len(joined[0])
        if any(i >= self.devices for group in joined for i in group):
            return Group(axis=OTHER, size=size)
        shape = tuple(self.sizes.values())
        varying: list[set[int]] = []
        for group in joined:
            spots = np.stack(np.unravel_index(np.array(group), shape), axis=-1)
            varying.append({i for i in range(len(shape)) if len(set(spots[:, i].tolist())) > 1})
        # Pairs of a permutation that stay where they are say nothing; groups are all alike.
        axes = set.union(*varying) if pairs else varying[0]
        fits = pairs or all(one == axes for one in varying)
        names = [name for i, name in enumerate(self.sizes) if i in axes]
        across = max(len({self._slice_of[i] for i in group}) for group in joined)
        dims, closed = self._torus(joined)
        axis = "+".join(names) if fits and names else OTHER
        return Group(axis=axis, size=size, slices=across, torus_dims=dims, closed=closed)

    def _torus(self, joined: tuple[tuple[int, ...], ...]) -> tuple[int | None, bool]:
        """(dimensions that a group is spread over, all of them rings)."""
        torus, rings = self.slice.torus, self.slice.rings
        if self.where is None:
            return None, all(ring for ring, edge in zip(rings, torus, strict=True) if edge > 1)
        dims, closed = 1, True
        for group in joined:
            spots = [self.where[i].coordinates for i in group]
            spread = [len({spot[d] for spot in spots}) for d in range(len(torus))]
            dims = max(dims, sum(extent > 1 for extent in spread))
            for extent, edge, ring in zip(spread, torus, rings, strict=True):
                closed &= extent == 1 or (extent == edge and ring)
        return dims, closed


@functools.lru_cache(maxsize=4096)
def _members(attributes: str) -> tuple[tuple[int, ...], ...] | None:
    """Devices of each group; of a permutation the pairs; none where all are meant, or None."""
    if found := _PAIRS.search(attributes):
        return _lists(found[1])
    if found := _MESH.search(attributes):
        return _of_mesh(found[1], found[2], found[3])
    if found := re.search(r"replica_groups=(\[[^\s]*)", attributes):
        iota = _IOTA.match(found[1])
        return tuple(map(tuple, _iota(iota).tolist())) if iota else None
    if found := _LISTS.search(attributes):
        return _lists(found[1])
    return None if "replica_groups=" in attributes else ()


def _lists(text: str) -> tuple[tuple[int, ...], ...]:
    """`{0,1},{2,3}` -> ((0, 1), (2, 3))."""
    inner = re.findall(r"\{([\d,]*)\}", text)
    return tuple(tuple(int(i) for i in one.split(",")) for one in inner if one)


def _iota(found: re.Match[str]) -> np.ndarray:
    """`[2,4]<=[4,2]T(1,0)` -> the array of that shape."""
    shape, source = (tuple(map(int, found[i].split(","))) for i in (1, 2))
    order = tuple(map(int, found[3].split(","))) if found[3] else tuple(range(len(source)))
    return np.arange(math.prod(source)).reshape(source).transpose(order).reshape(shape)


def _order(ids: str) -> np.ndarray | None:
    """The order of a mesh's devices: a list, `[4,2]<=[2,4]T(1,0)`, or `[2,4]T(1,0)` for short."""
    if iota := _IOTA.match(ids):
        return _iota(iota).reshape(-1)
    if turned := _TURNED.match(ids):
        source = tuple(map(int, turned[1].split(",")))
        order = tuple(map(int, turned[2].split(","))) if turned[2] else range(len(source))
        return np.arange(math.prod(source)).reshape(source).transpose(tuple(order)).reshape(-1)
    if re.fullmatch(r"[\d,\s]+", ids):
        return np.array([int(i) for i in ids.split(",")])
    return None


def _of_mesh(sizes: str, ids: str | None, axes: str) -> tuple[tuple[int, ...], ...] | None:
    """`mesh['a'=2,'b'=4] {'b'}`: the compiler's own mesh, a part of an axis as 'b':(2)2."""
    named = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    count = math.prod(named.values())
    flat = np.arange(count) if ids is None else _order(ids)
    if flat is None or len(flat) != count:
        return None
    wanted = {name: (int(pre or 1), int(size or 0)) for name, pre, size in _AXIS.findall(axes)}
    # Each axis is split in the part before, the part that is meant, and the rest.
    split: list[int] = []
    chosen: list[int] = []
    for name, whole in named.items():
        before, size = wanted.get(name, (1, 1))
        size = size or whole
        if name in wanted:
            chosen.append(len(split) + 1)
        split += [before, size, whole // (before * size)]
    grid = flat.reshape(split)
    rest = [i for i in range(len(split)) if i not in chosen]
    width = math.prod(split[i] for i in chosen)
    return tuple(map(tuple, grid.transpose(rest + chosen).reshape(-1, width).tolist()))
