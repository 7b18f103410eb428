# SPDX-License-Identifier: Apache-2.0
"""Where arrays live: one table from logical axes to mesh axes.

    ("embed", "heads", "head_dim"), shape, mesh  --spec-->  PartitionSpec("fsdp", "tensor", None)

Model code names logical axes only; None means "not split". `data` copies the model and splits the
batch, `fsdp` splits the batch and the parameters, `context` splits the length of rows, `expert`
splits experts and, outside of them, the batch; `tensor` splits heads, mlp and vocabulary.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "context", "expert", "tensor")

TABLE: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "copy_batch": ("data",),
    "length": ("context",),
    "vocab": ("tensor",),
    # Every axis that has no other use for the array: what is not split is copied.
    "embed": ("fsdp", "context", "expert"),
    "experts": ("expert",),
    "expert_embed": ("fsdp", "context"),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "layers": (),
    "norm": (),
}
# Left whole where they do not divide: sizes that a checkpoint has fixed, of arrays that every
# device can hold a copy of.
MAY_BE_WHOLE = frozenset({"vocab", "kv_heads"})

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices per mesh axis; one of them may be -1: all that are left.

    Attributes:
      data: copies of the model.
      fsdp: shards of batch and parameters (ZeRO-3).
      tensor: shards of heads, mlp and vocabulary.
      context: shards of each row's length.
      expert: shards of the experts; elsewhere the batch and the parameters are split over it.
    """

    data: int
    fsdp: int
    tensor: int
    context: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise ValueError(f"Mesh.{name} must be 1 or more, or -1 (fill), got {size}.")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"Only one axis of a Mesh may be -1 (fill), got {sizes}.")


def sizes(mesh: Mesh, devices: int) -> tuple[int, ...]:
    """Sizes in the order of `MESH_AXES`, with -1 filled in.

    Raises:
      ValueError: the axes don't multiply to the number of devices.
    """
    asked = tuple(getattr(mesh, name) for name in MESH_AXES)
    fixed = math.prod(size for size in asked if size != -1)
    filled = tuple(devices // fixed if size == -1 else size for size in asked)
    if math.prod(filled) != devices:
        text = " x ".join(
            f"{name} {size}"
            for name, size in zip(MESH_AXES, asked, strict=True)
            if size != 1 or name in ("data", "fsdp", "tensor")
        )
        raise ValueError(
            f"The mesh ({text}) does not fit {devices} devices: the axes must multiply to "
            f"{devices}. Change one of them, or set one to -1."
        )
    return filled


def make(mesh: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh of these devices (all devices of all hosts, unless given).

    TPU slices lie on the outer part of `data`: between them there is only the network of the data
    centre, which carries the gradients of copies of the model once per step and nothing else.

    Raises:
      ValueError: the axes do not multiply to the devices, or `data` does not to the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = sizes(mesh, len(devices))
    # Auto: JAX's own default has become Explicit, under which a lookup in a sharded table and
    # a product over a sharded axis are errors.
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform == "tpu" and shape[:2] == (slices, len(devices) // slices):
        return jax.sharding.Mesh(_by_place(devices).reshape(shape), MESH_AXES, axis_types=types)
    if slices == 1 or devices[0].platform != "tpu":
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    if shape[0] % slices:
        raise ValueError(
            f"Mesh.data is {shape[0]}, and there are {slices} slices: each must hold whole copies "
            f"of the model. Set Mesh.data to a multiple of {slices}."
        )
    per_slice = (shape[0] // slices, *shape[1:])
    across = (slices, *(1,) * (len(shape) - 1))
    placed = mesh_utils.create_hybrid_device_mesh(per_slice, across, devices)
    return jax.sharding.Mesh(placed, MESH_AXES, axis_types=types)


def _by_place(devices: Sequence[Any]) -> np.ndarray:
    """TPUs in the order of their coordinates, slice by slice, the longest dimension outermost.

    For an axis that is a whole slice JAX has an order of its own on 4, 8 and 16 chips: a ring that
    winds through the torus. What travels dimension by dimension (`torus`) wants lines, and the
    longest first: what it leaves for the others is least. A gather over all of a v5e-16 takes as
    long in either order, by `plan.cost`.
    """
    dims = range(len(devices[0].coords))
    lengths = [len({device.coords[i] for device in devices}) for i in dims]
    order = sorted(dims, key=lambda i: -lengths[i])

    def place(device: Any) -> tuple[int, ...]:
        coordinates = (device.coords[i] for i in order)
        return (getattr(device, "slice_index", 0), *coordinates, device.core_on_chip)

    return np.asarray(sorted(devices, key=place), dtype=object)


def without_context(jax_mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The same devices, with `context` as the inner part of `fsdp`.

    For rows too short to be split. Parameters stay where they are: what they are split over is
    ("fsdp", "context") in this order, or neither.
    """
    data, fsdp, shards, *rest = jax_mesh.devices.shape
    devices = jax_mesh.devices.reshape(data, fsdp * shards, 1, *rest)
    return jax.sharding.Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def platform() -> str:
    """What is computed on, or compiled for: that of the mesh in force, else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """Of what is computed on, or compiled for, as `jax.Device.device_kind` says it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def no_mesh() -> Any:
    """A context for work on single devices: under `jax.set_mesh` JAX refuses it."""
    return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))


def spec(
    axes: Axes, shape: Sequence[int] | None = None, mesh_shape: Mapping[str, int] | None = None
) -> PartitionSpec:
    """The mesh axes of an array with these logical axes.

    Args:
      axes: of the array.
      shape, mesh_shape: of the array and of the mesh. With them, axes of `MAY_BE_WHOLE` that do
        not divide are not split.

    Raises:
      ValueError: an unknown logical axis, or two that want the same mesh axis.
    """
    found: list[Any] = []
    owner: dict[str, str] = {}
    for place, axis in enumerate(axes):
        if axis is not None and axis not in TABLE:
            raise ValueError(f"Unknown logical axis {axis!r}; known: {', '.join(TABLE)}.")
        wanted = () if axis is None else TABLE[axis]
        for name in wanted:
            if name in owner:
                raise ValueError(
                    f"Logical axes {axes} collide: {owner[name]!r} goes to {TABLE[owner[name]]} "
                    f"and {axis!r} to {wanted}, and both hold mesh axis {name!r}. "
                    "An array can use a mesh axis once: leave one of the two unsplit (None)."
                )
            owner[name] = str(axis)
        if shape is not None and mesh_shape is not None and axis in MAY_BE_WHOLE:
            if shape[place] % math.prod(mesh_shape[name] for name in wanted):
                wanted = ()
        found.append(wanted[0] if len(wanted) == 1 else (wanted or None))
    return PartitionSpec(*found)


def check_divides(
    what: str, shape: Sequence[int], axes: Axes, mesh_shape: Mapping[str, int]
) -> None:
    """Refuses an array whose dimensions don't divide over their mesh axes, `MAY_BE_WHOLE` aside.

    Args:
      what: its name, for the message.
      shape, axes: of the array.
      mesh_shape: size of each mesh axis.
    """
    if len(shape) != len(axes):
        raise ValueError(f"{what} has {len(shape)} dimensions {tuple(shape)}, its axes are {axes}.")
    for size, axis in zip(shape, axes, strict=True):
        wanted = () if axis is None or axis in MAY_BE_WHOLE else TABLE[axis]
        parts = math.prod(mesh_shape[name] for name in wanted)
        if size % parts:
            raise ValueError(
                f"{what}: axis {axis!r} of size {size} does not divide over mesh "
                f"{' x '.join(f'{name} {mesh_shape[name]}' for name in wanted)} = {parts}. "
                f"Choose a size that is a multiple of {parts}, or a smaller mesh."
            )


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple) and all(axis is None or isinstance(axis, str) for axis in node)


def tree(jax_mesh: jax.sharding.Mesh, axes_tree: Any, shapes: Any) -> Any:
    """NamedShardings for a tree of logical axes.

    Args:
      jax_mesh: from `make`.
      axes_tree: tuples of logical axes, as `transformer.logical_axes` gives.
      shapes: the same tree of arrays or ShapeDtypeStructs. Every dimension is checked before any
        device work.
    """

    def one(path: Any, axes: Axes, array: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        check_divides(name, array.shape, axes, jax_mesh.shape)
        return NamedSharding(jax_mesh, spec(axes, array.shape, jax_mesh.shape))

    return jax.tree_util.tree_map_with_path(one, axes_tree, shapes, is_leaf=_is_axes)


def over_data(place: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """`place`, with one dimension split over the mesh axis `data` too: ZeRO's stage 1 (1910.02054).

    It is the dimension with the most numbers on each device, of those that divide; an array of
    which none does stays as it is.
    """
    sizes_of, data = place.mesh.shape, place.mesh.shape["data"]
    axes = [*place.spec, *[None] * (len(shape) - len(place.spec))]
    split = [(axis,) if isinstance(axis, str) else tuple(axis or ()) for axis in axes]
    whole = [math.prod(sizes_of[name] for name in names) for names in split]
    able = [i for i, size in enumerate(shape) if size % (whole[i] * data) == 0]
    if data == 1 or not able:
        return place
    widest = max(able, key=lambda i: shape[i] // whole[i])
    # Axes of one device split nothing, and would only make two equal shardings look different.
    there = tuple(name for name in split[widest] if sizes_of[name] > 1)
    axes[widest] = (*there, "data") if there else "data"
    return place.update(spec=PartitionSpec(*axes))


def batch(jax_mesh: jax.sharding.Mesh, rows: int | None = None) -> NamedSharding:
    """The sharding of a batch [B, T].

    Args:
      jax_mesh: from `make`.
      rows: B. With it, a batch that doesn't divide is refused here.
    """
    if rows is not None:
        check_divides("The batch", (rows,), ("batch",), jax_mesh.shape)
    return NamedSharding(jax_mesh, spec(("batch", "length")))


def everywhere(tree: Any) -> Any:
    """Inside of a jitted function: arrays that are whole on every device of the mesh in force.

    That is what the host reads, and what would else be laid out anew from call to call.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def only_splits(names: Sequence[str], axis: str) -> bool:
    """Whether these logical axes, and the mesh in force but for its `data`, have one mesh axis."""
    shape = jax.sharding.get_abstract_mesh().shape
    split = {name for name, size in shape.items() if size > 1 and name != "data"}
    return split == {axis} and all(axis in TABLE[name] for name in names)


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Tells the compiler how an activation is split.

    Does nothing outside `jax.set_mesh`, nor inside `jax.shard_map`, where arrays are the device's.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return x
    check_divides("An activation", x.shape, axes, mesh.shape)
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh.shape))
