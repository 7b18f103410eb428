# SPDX-License-Identifier: Apache-2.0
"""Names of TPU slices -> chips, hosts, tori, and what gcloud and JAX call them.

Sizes and tori are those of cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "Configurations". A v5p
slice of more than one cube of 4 x 4 x 4 chips may have any whole number of them, up to 96; its
default torus is the most compact one, which is what xpk takes too.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import re
from collections.abc import Sequence

from midjax.hardware import chips as chips_lib

_NAME = re.compile(r"(?:(\d+)x)?(v\d+[a-z]*)(?:-(\d+)|:(\d+(?:x\d+)*))")
_CUBE = 4
_POD_EDGE = 16
# chip -> tori that are smaller than a cube, or all of those of a chip with a flat torus.
_TORI: dict[str, tuple[tuple[int, ...], ...]] = {
    "v4": ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)),
    "v5e": ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    "v5p": ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)),
    "v6e": ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
}
# Sizes in cubes: v4 has names for powers of two up to v4-4096, v5p for all up to v5p-12288.
_CUBES: dict[str, tuple[int, ...]] = {
    "v4": (1, 2, 4, 8, 16, 32),
    "v5p": tuple(range(1, 97)),
}
# gcloud's and people's names of the same chip.
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}
# One host has eight chips where that is the whole slice, and four in a larger one.
_WHOLE_HOST_CHIPS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """One or several equal slices.

    Attributes:
      name: "v5p-128", "2xv5e-256"; "v5p:4x4x32" where the torus is not the default of its size.
      chip: of all of them.
      slices: how many, joined by the data centre's network.
      torus: chips of one slice by dimension, (4, 4, 4) of v5p-128.
    """

    name: str
    chip: chips_lib.Chip
    slices: int
    torus: tuple[int, ...]

    @property
    def chips_per_slice(self) -> int:
        return math.prod(self.torus)

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * self.chips_per_slice

    @property
    def chips_per_host(self) -> int:
        """Chips that one virtual machine of this slice has."""
        flat = self.chip.torus_dims == 2
        whole = self.chips_per_slice <= _WHOLE_HOST_CHIPS and flat
        return self.chips_per_slice if whole else self.chip.chips_per_host

    @property
    def hosts_per_slice(self) -> int:
        return self.chips_per_slice // self.chips_per_host

    @property
    def hosts(self) -> int:
        """Virtual machines, and processes, of all slices."""
        return self.slices * self.hosts_per_slice

    @property
    def torus_name(self) -> str:
        return "x".join(map(str, self.torus))

    @property
    def rings(self) -> tuple[bool, ...]:
        """Whether the chips along each dimension of the torus close to a ring; see `rings`."""
        return rings(self.torus)

    @property
    def topology_name(self) -> str:
        """What jax.experimental.topologies calls one slice: "v5p:4x4x4".

        Of v4 that has a device for each of a chip's two cores, of the others one for each chip.
        """
        return f"{self.chip.name}:{self.torus_name}"

    @property
    def accelerator_type(self) -> str:
        """What gcloud calls one slice: "v5litepod-256", "v6e-256", "v5p-128".

        It says the size alone: of another torus than the default it gives the default one.
        """
        family = "v5litepod" if self.chip.name == "v5e" else self.chip.name
        return f"{family}-{self.chips_per_slice * self.chip.cores_per_chip_in_name}"

    @property
    def has_default_torus(self) -> bool:
        return self.torus == _default_tori(self.chip.name).get(self.chips_per_slice)


def rings(torus: Sequence[int]) -> tuple[bool, ...]:
    """Whether the chips along each dimension of a torus close to a ring.

    Those of a flat one do where it is as long as the pod; those of a solid one where it is made of
    whole cubes (jax-ml.github.io/scaling-book, chapter 2). The compiler must be told: for a cube
    without rings it makes all-gathers of all-reduces, which send twice as much.
    """
    if len(torus) == 2:
        return tuple(edge == _POD_EDGE for edge in torus)
    return (all(edge % _CUBE == 0 for edge in torus),) * len(torus)


class NoSuchSliceError(ValueError):
    """A name of no slice."""


def parse(name: str) -> Slice:
    """The slice of a name.

    Args:
      name: "v5p-128", "v5e-16", "v5litepod-16", "2xv5e-256"; or with its torus, "v5p:4x4x4", in
        whichever order.

    Raises:
      NoSuchSliceError: there is no such slice; names the nearest there are.
    """
    found = _NAME.fullmatch(name.strip().lower())
    family = _ALIASES.get(found[2], found[2]) if found else ""
    if not found or family not in chips_lib.CHIPS or found[1] == "0":
        raise NoSuchSliceError(f"There is no TPU slice {name!r}. {_nearest(name)}")
    chip, slices = chips_lib.CHIPS[family], int(found[1] or 1)
    if found[4]:
        torus = tuple(map(int, found[4].split("x")))
        if sorted(torus) not in map(sorted, _legal_tori(family)):
            raise NoSuchSliceError(
                f"{name}: a slice of {family} has no torus {found[4]}. {_tori_text(chip)}"
            )
    else:
        cores, per_chip = int(found[3]), chip.cores_per_chip_in_name
        named = _default_tori(family).get(cores // per_chip) if cores % per_chip == 0 else None
        if named is None:
            raise NoSuchSliceError(f"There is no TPU slice {name!r}. {_nearest(name)}")
        torus = named
    return _named(chip, slices, torus)


def names(chip_name: str) -> tuple[str, ...]:
    """Every named size of a chip, smallest first.

    Raises:
      KeyError: no such chip.
    """
    per_chip = chips_lib.CHIPS[chip_name].cores_per_chip_in_name
    return tuple(f"{chip_name}-{size * per_chip}" for size in sorted(_default_tori(chip_name)))


def _named(chip: chips_lib.Chip, slices: int, torus: tuple[int, ...]) -> Slice:
    size = math.prod(torus)
    if torus == _default_tori(chip.name).get(size):
        one = f"{chip.name}-{size * chip.cores_per_chip_in_name}"
    else:
        one = f"{chip.name}:{'x'.join(map(str, torus))}"
    name = one if slices == 1 else f"{slices}x{one}"
    return Slice(name=name, chip=chip, slices=slices, torus=torus)


@functools.cache
def _legal_tori(chip_name: str) -> tuple[tuple[int, ...], ...]:
    found = list(_TORI[chip_name])
    most = max(_CUBES.get(chip_name, (0,)))
    for a, b in itertools.combinations_with_replacement(range(1, most + 1), 2):
        found += [(a * _CUBE, b * _CUBE, c * _CUBE) for c in range(b, most // (a * b) + 1)]
    return tuple(found)


@functools.cache
def _default_tori(chip_name: str) -> dict[int, tuple[int, ...]]:
    """Chips of a slice -> its torus: of equal sizes the one with the shortest edges."""
    found: dict[int, tuple[int, ...]] = {}
    named = {cubes * _CUBE**3 for cubes in _CUBES.get(chip_name, ())}
    for torus in sorted(_legal_tori(chip_name), key=lambda t: (sum(t), t)):
        size = math.prod(torus)
        if size in named or torus in _TORI[chip_name]:
            found.setdefault(size, torus)
    return found


def _nearest(name: str) -> str:
    """A sentence with names that may be meant."""
    given = re.fullmatch(r"(?:\d+x)?(v\d+[a-z]*?)-(\d+)", name.strip().lower())
    family = _ALIASES.get(given[1], given[1]) if given else ""
    if given and family in chips_lib.CHIPS:
        wanted, known = int(given[2]), names(family)
        size = {one: int(one.rpartition("-")[2]) for one in known}
        close = sorted(known, key=lambda one: abs(size[one] - wanted))[:3]
        close.sort(key=size.__getitem__)
        counted = "cores, 2 a chip" if chips_lib.CHIPS[family].torus_dims == 3 else "chips"
        return f"Nearest: {', '.join(close)} (the number counts {counted}), up to {known[-1]}."
    every = [one for chip in chips_lib.CHIPS for one in names(chip)]
    close = difflib.get_close_matches(name.strip().lower(), every, n=3, cutoff=0.5)
    hint = f"Nearest: {', '.join(close)}. " if close else ""
    return (
        f"{hint}Write CHIP-SIZE, several as 2xCHIP-SIZE, or CHIP:TORUS, such as v5e-16, v6e-256, "
        f"2xv5p-128, v5p:4x4x4; chips: {', '.join(chips_lib.CHIPS)}."
    )


def _tori_text(chip: chips_lib.Chip) -> str:
    small = ", ".join("x".join(map(str, torus)) for torus in _TORI[chip.name])
    if chip.name in _CUBES:
        most = max(_CUBES[chip.name])
        return f"It has {small}, or multiples of 4 in each dimension, up to {most} cubes of 4x4x4."
    return f"It has {small}."
