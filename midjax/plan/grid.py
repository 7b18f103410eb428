# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run that changes where it computes and not what.

slice, recipe --meshes, parts, policies--> settings, and why the others are none
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from midjax.hardware import slices as slices_lib
from midjax.model import context, fsdp, sharding
from midjax.plan import recipe as recipe_lib
from midjax.plan import rough
from midjax.train import recipe as train_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a search chooses.

    Attributes:
      mesh: axis -> devices, all axes.
      microbatches, remat, state_sharding, state_memory, fsdp_sums: of the recipe.
    """

    mesh: Mapping[str, int]
    microbatches: int
    remat: str
    state_sharding: str
    state_memory: str
    fsdp_sums: str

    def of(self, config: train_lib.Train) -> train_lib.Train:
        """The recipe with this setting."""
        return dataclasses.replace(
            config,
            mesh=sharding.Mesh(**self.mesh),
            microbatches=self.microbatches,
            model=dataclasses.replace(config.model, remat=self.remat),  # type: ignore[arg-type]
            state_sharding=self.state_sharding,  # type: ignore[arg-type]
            state_memory=self.state_memory,  # type: ignore[arg-type]
            fsdp_sums=self.fsdp_sums,  # type: ignore[arg-type]
        )

    def overrides(self) -> str:
        """The setting as arguments of `midjax train` and `midjax plan`."""
        bindings = {f"Mesh.{name}": size for name, size in self.mesh.items()} | {
            "Train.microbatches": self.microbatches,
            "TransformerConfig.remat": self.remat,
            "Train.state_sharding": self.state_sharding,
            "Train.state_memory": self.state_memory,
            "Train.fsdp_sums": self.fsdp_sums,
        }
        return " ".join(f"--gin.{name}={value}" for name, value in bindings.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The settings that there are.

    Attributes:
      settings: with what the rough model says of each.
      left_out: reason -> settings, or meshes with all their settings, that are none.
      size: settings of all meshes that multiply to the chips, before any was left out.
    """

    settings: tuple[tuple[Setting, rough.Rough], ...]
    left_out: Mapping[str, int]
    size: int


def of(
    search: recipe_lib.Search,
    config: train_lib.Train,
    slice_: slices_lib.Slice,
    placeable: Callable[[Sequence[Mapping[str, int]]], Sequence[bool]],
    usable_bytes: int,
) -> Grid:
    """The grid of a recipe on a slice.

    Args:
      search: what may be chosen.
      config: the recipe; its largest batch is what must fit.
      slice_: the chips.
      placeable: whether JAX can lay each of some meshes on the slice's torus.
      usable_bytes: of HBM: what must hold more is left out.
    """
    rows = max(config.data.batch_sizes)
    policies = list(
        itertools.product(
            search.remat, search.state_sharding, search.state_memory, search.fsdp_sums
        )
    )
    left_out: collections.Counter[str] = collections.Counter()
    sizes = rough.Sizes(config)
    fitting = []
    size = 0
    for mesh in meshes(search.axes, slice_.chips):
        parts = _parts(search.microbatches, config, mesh)
        size += max(len(parts), 1) * len(policies)
        reason = _reason(config, sizes, slice_, mesh, rows) or (
            "" if parts else "no number of microbatches leaves each device whole rows"
        )
        if reason:
            left_out[reason] += max(len(parts), 1) * len(policies)
        else:
            fitting.append((mesh, parts))
    settings: list[tuple[Setting, rough.Rough]] = []
    on_torus = placeable([mesh for mesh, _ in fitting]) if fitting else []
    for (mesh, parts), fits in zip(fitting, on_torus, strict=True):
        if not fits:
            left_out[f"the mesh does not lie on the torus {slice_.torus_name}"] += len(parts) * len(
                policies
            )
            continue
        for part, (remat, split, memory, sums) in itertools.product(parts, policies):
            setting = Setting(
                mesh=mesh,
                microbatches=part,
                remat=remat,
                state_sharding=split,
                state_memory=memory,
                fsdp_sums=sums,
            )
            if split == "over_data" and mesh["data"] == 1:
                left_out["there is one copy of the model, and nothing to split over"] += 1
                continue
            if sums != search.fsdp_sums[0] and not _are_ours(config, mesh, remat):
                left_out["the compiler sums the layers' gradients, and not FSDP's own code"] += 1
                continue
            guess = rough.of(setting.of(config), sizes, slice_, mesh, rows)
            if guess.least_bytes > usable_bytes:
                left_out["parameters, moments and what is saved are more than a chip has"] += 1
                continue
            settings.append((setting, guess))
    return Grid(settings=tuple(settings), left_out=dict(left_out), size=size)


def meshes(axes: Sequence[str], chips: int) -> Iterator[dict[str, int]]:
    """Every mesh of so many chips, with 1 on the axes that are not named."""
    names = [name for name in sharding.MESH_AXES if name in axes]

    def split(left: int, names: Sequence[str]) -> Iterator[dict[str, int]]:
        if not names:
            if left == 1:
                yield {}
            return
        for size in range(1, left + 1):
            if left % size == 0:
                for rest in split(left // size, names[1:]):
                    yield {names[0]: size, **rest}

    for found in split(chips, names):
        yield dict.fromkeys(sharding.MESH_AXES, 1) | found


def _are_ours(config: train_lib.Train, mesh: Mapping[str, int], remat: str) -> bool:
    """Whether the layers' gradients are summed by `fsdp`: see `transformer.apply_layer`."""
    model = config.model
    has_dense = not all(model.has_experts(layer) for layer in range(model.layers))
    return fsdp.applies_to(mesh) and has_dense and remat != "none"


def _parts(
    asked: Sequence[int] | None, config: train_lib.Train, mesh: Mapping[str, int]
) -> list[int]:
    """Numbers of microbatches that leave each device whole rows of a batch of any size."""
    shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    each, rest = divmod(max(config.data.batch_sizes), shards)
    if rest:
        return []
    fewest = 1 if config.noise_scale_every_steps is None else 2  # it compares microbatches
    tried = asked if asked is not None else [1 << i for i in range(each.bit_length())]

    def divides(parts: int) -> bool:
        setting = dataclasses.replace(config, microbatches=parts)
        rows = [size // setting.parts(size) for size in config.data.batch_sizes]
        return not any(one % shards for one in rows)

    return [n for n in tried if n >= fewest and each % n == 0 and divides(n)]


def _reason(
    config: train_lib.Train,
    sizes: rough.Sizes,
    slice_: slices_lib.Slice,
    mesh: Mapping[str, int],
    rows: int,
) -> str:
    """Why a mesh is none for this recipe; empty where it is one."""
    model = config.model
    if mesh["data"] % slice_.slices:
        return "the axis data does not hold whole slices"
    if model.experts is None and mesh["expert"] > 1:
        return "the model has no experts"
    if rows % (mesh["data"] * mesh["fsdp"] * mesh["expert"]):
        return "the batch does not divide over data, fsdp and expert"
    try:
        context.order(config.data.row_tokens, context.shards(mesh))
        sizes.on_chip(mesh, config.state_sharding)
        sharding.check_divides("heads", (model.heads,), ("heads",), mesh)
    except ValueError:
        return "heads, widths, experts or rows do not divide over the mesh"
    return ""
