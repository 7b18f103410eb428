# SPDX-License-Identifier: Apache-2.0
"""A recipe of `train` + a slice -> its train step, lowered for TPUs that are not there.

Only shapes are needed: no token folder, checkpoint or tokenizer is read, so that a run can be
planned before its data exist. The step, its shardings and what is donated are those of `train`.

Runs in a process of its own (`worker`): libtpu must be told before jax is imported that there is no
TPU, and may end the process.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from midjax.hardware import slices as slices_lib
from midjax.model import sharding
from midjax.train import prepare, recipe
from midjax.train import program as program_lib
from midjax.train import start as start_lib
from midjax.train import timeline as timeline_lib
from midjax.train.optimizers import optimizer as optimizer_lib
from midjax.train.schedules import curve as curve_lib

# Stands for a learning rate that a checkpoint would tell: a constant in the program, whose value
# changes neither its size nor its time. As high as any, so that every schedule falls from it.
_ANY_LR = 1.0
_SUMS = (
    "peak_memory_in_bytes",
    "argument_size_in_bytes",
    "output_size_in_bytes",
    "alias_size_in_bytes",
    "temp_size_in_bytes",
    "generated_code_size_in_bytes",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
    """A step, ready to be compiled.

    Attributes:
      step: what jax lowered.
      arguments: name of each array that the compiled step takes, in order:
        "state/params/layers/wq", "state/opt_state/moments/mu/...", "batch/tokens".
      mesh: size of each axis.
      places: of the mesh's devices, row by row: slice, and coordinates in its torus.
      argument_bytes: of each array on one chip, padding of the device aside.
      checkpoint_bytes: of what a checkpoint holds, over all chips.
    """

    step: Any
    arguments: tuple[str, ...]
    mesh: dict[str, int]
    places: list[tuple[int, list[int]]]
    argument_bytes: dict[str, int]
    checkpoint_bytes: int


def timeline(config: recipe.Train) -> timeline_lib.Timeline:
    """The updates of a run that keeps nothing of another's count: all of `train_tokens`."""
    return timeline_lib.of(config.data, config.train_tokens, start_lib.FRESH)


def schedule(config: recipe.Train) -> curve_lib.Curve:
    """The learning rates of such a run, as long as nothing is known of a checkpoint.

    Raises:
      ValueError: the phases do not fit the run, or there is no rate to take over.
    """
    manifest = {"lr": {"next": _ANY_LR}} if config.start.kind != "fresh" else {}
    origin = dataclasses.replace(start_lib.FRESH, manifest=manifest)
    return prepare.schedule(config, origin, timeline(config))


def updates(config: recipe.Train) -> dict[int, int]:
    """Rows of a batch -> updates of the run that have them, in the order of the ramp."""
    line = timeline(config)
    firsts = sorted(line.sizes().items())
    ends = [first for first, _ in firsts[1:]] + [line.total_steps + 1]
    found: dict[int, int] = {}
    for (first, rows), end in zip(firsts, ends, strict=True):
        found[rows] = found.get(rows, 0) + end - first
    return found


def devices(slice_: slices_lib.Slice) -> list[jax.Device]:
    """The devices of a slice as the compiler knows them, one for each chip.

    Raises:
      ValueError: libtpu has no such topology.
    """
    options: dict[str, Any] = {"wrap": (*slice_.rings, False)[:3]}
    if slice_.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # else there are two devices to a chip
    if slice_.slices > 1:
        options["num_slices"] = slice_.slices
    if slice_.chips_per_slice == 1:
        options["chips_per_host_bounds"] = (1,) * 3
    try:
        described = topologies.get_topology_desc(
            topology_name=slice_.topology_name, platform="tpu", **options
        )
        found = list(described.devices)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"libtpu describes no topology {slice_.topology_name} for {slice_.name}: {error}"
        ) from error
    if len(found) != slice_.chips:
        raise ValueError(
            f"{slice_.name} has {slice_.chips} chips, and libtpu describes {len(found)} devices."
        )
    return found


def placeable(meshes: Sequence[Mapping[str, int]], slice_: slices_lib.Slice) -> list[bool]:
    """Whether JAX lays each mesh on the slice's torus: an axis is a product of its dimensions."""
    there = devices(slice_)

    def fits(mesh: Mapping[str, int]) -> bool:
        try:
            sharding.make(sharding.Mesh(**mesh), there)
        except (ValueError, NotImplementedError):
            return False
        return True

    return [fits(mesh) for mesh in meshes]


def lower(config: recipe.Train, slice_: slices_lib.Slice, rows: int) -> Lowered:
    """The train step for a batch of `rows`, with the shardings that it would have on the slice.

    Raises:
      ValueError: the mesh does not fit the slice, the batch the mesh, or the schedule the run.
    """
    mesh = sharding.make(config.mesh, devices(slice_))
    program_lib.check(config, mesh, (rows,))
    optimizer = optimizer_lib.make(config.optimizer)
    state = program_lib.state(config, optimizer, mesh)
    step = program_lib.steps(config, optimizer, schedule(config), state, mesh, (rows,))[rows]
    batch = program_lib.batch(mesh, rows, config.data.row_tokens)
    with jax.set_mesh(mesh):
        lowered = step.lower(state, batch)
    names = _names(state, batch)
    leaves = jax.tree.leaves((state, batch))
    sizes = {name: _local_bytes(leaf) for name, leaf in zip(names, leaves, strict=True)}
    saved = (state.params, state.opt_state, state.ema, state.guard)
    return Lowered(
        step=lowered,
        arguments=names,
        mesh=dict(mesh.shape),
        places=[(getattr(d, "slice_index", 0), list(d.coords)) for d in mesh.devices.flat],
        argument_bytes=sizes,
        checkpoint_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(saved)),
    )


def memory(compiled: Any) -> dict[str, int]:
    """The compiler's own sums of memory, in bytes on each chip, under its own names."""
    found = compiled.memory_analysis()
    return {name: int(getattr(found, name)) for name in _SUMS}


def forget() -> None:
    """Lets go of traces and programs, of which a search makes many."""
    jax.clear_caches()


def _names(state: Any, batch: Any) -> tuple[str, ...]:
    def of(tree: Any, name: str) -> list[str]:
        found = jax.tree_util.tree_flatten_with_path(tree)[0]
        return [f"{name}/{jax.tree_util.keystr(p, simple=True, separator='/')}" for p, _ in found]

    return (*of(state, "state"), *of(batch, "batch"))


def _local_bytes(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
