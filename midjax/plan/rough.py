# SPDX-License-Identifier: Apache-2.0
"""A rough model of a step, which orders a search and is never reported.

`least_bytes` is a bound: a step that must hold more than a chip has is not compiled. `seconds` is a
guess that puts likely settings first; it leaves out all that the compiler knows better.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from midjax.hardware import slices as slices_lib
from midjax.model import architecture, flops, sharding, transformer
from midjax.train import recipe as train_lib
from midjax.train.optimizers import optimizer as optimizer_lib

_BYTES = {"float32": 4, "bfloat16": 2}
# Policy -> whether products with weights, and attention, are made again.
_AGAIN = {
    "none": (False, False),
    "dots": (False, True),
    "full": (True, True),
    "save_attention": (True, False),
    "save_projections": (False, False),
    "offload_inputs": (True, True),
    "offload_attention": (True, False),
    "offload_projections": (False, False),
    "offload_all_but_mlp": (False, False),
}
# Of the peak, in a product; of the links.
_PRODUCTS, _ATTENTION, _LINKS = 0.7, 0.4, 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rough:
    """One setting.

    Attributes:
      least_bytes: of HBM, on a chip.
      seconds: of a step.
    """

    least_bytes: float
    seconds: float


class Sizes:
    """The arrays of a recipe's state, looked up once for all of its settings.

    Args:
      config: the recipe; mesh, parts and policies are not looked at.
    """

    def __init__(self, config: train_lib.Train) -> None:
        shapes = transformer.abstract(config.model)
        axes = transformer.logical_axes(config.model)
        moments = jax.eval_shape(optimizer_lib.make(config.optimizer).init, shapes)
        moment_axes = optimizer_lib.logical_axes(config.optimizer, axes, shapes)
        self._params, self._moments = _arrays(shapes, axes), _arrays(moments, moment_axes)
        self.numbers = sum(math.prod(one.shape) for one in self._params)

    def on_chip(self, mesh: Mapping[str, int], split: str) -> dict[str, float]:
        """Bytes on a chip of "params" and "moments", padding aside.

        Args:
          mesh: axis -> devices.
          split: `Train.state_sharding`.

        Raises:
          ValueError: an array does not divide over the mesh.
        """
        over = mesh["data"] if split == "over_data" else 1
        return {
            "params": sum(one.on_chip(mesh) for one in self._params),
            "moments": sum(one.on_chip(mesh) for one in self._moments) / over,
        }


@dataclasses.dataclass(frozen=True)
class _Array:
    """One array of the state."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    axes: sharding.Axes

    def on_chip(self, mesh: Mapping[str, int]) -> float:
        sharding.check_divides(self.name, self.shape, self.axes, mesh)
        spec = sharding.spec(self.axes, self.shape, mesh)
        names = [n for entry in spec for n in ((entry,) if isinstance(entry, str) else entry or ())]
        whole = math.prod(self.shape) * self.itemsize
        return whole / math.prod(mesh[name] for name in names)


def _arrays(shapes: Any, axes: Any) -> list[_Array]:
    found: list[_Array] = []

    def add(path: Any, leaf_axes: sharding.Axes, leaf: Any) -> None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found.append(_Array(name, tuple(leaf.shape), leaf.dtype.itemsize, leaf_axes))

    def is_axes(node: Any) -> bool:
        return isinstance(node, tuple)

    jax.tree_util.tree_map_with_path(add, axes, shapes, is_leaf=is_axes)
    return found


def of(
    config: train_lib.Train,
    sizes: Sizes,
    slice_: slices_lib.Slice,
    mesh: Mapping[str, int],
    rows: int,
) -> Rough:
    """The setting that a recipe is, on a mesh whose axes are all there."""
    model = config.model
    parts = config.parts(rows)
    shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    tokens = rows * config.data.row_tokens / shards / mesh["context"]  # of a chip and step
    state = sizes.on_chip(mesh, config.state_sharding)
    saved, offloaded = _saved(model, mesh["tensor"])
    held = tokens / parts * model.layers * saved
    sums = state["params"] if parts > 1 else 0.0  # gradients summed over the parts
    moments = 0.0 if config.state_memory == "pinned_host" else state["moments"]
    # The products of a chip are those of its share of the batch over its share of each matrix.
    entries = flops.matrix_entries(model)
    head = model.vocab_size * model.dim
    products_again, attention_again = _AGAIN[model.remat]
    # Products in 8 bits are none of the "dots" that are kept.
    products_again |= model.remat == "dots" and model.quantization is not None
    per_token = 6 * entries + 2 * products_again * (entries - head)
    pairs = config.data.row_tokens / 2
    attention = (12 + 4 * attention_again) * model.heads * model.head_dim * model.layers * pairs
    peak = slice_.chip.bf16_flops_per_second * mesh["tensor"]
    compute = tokens * (per_token / _PRODUCTS + attention / _ATTENTION) / peak
    host = 2 * tokens * model.layers * offloaded / slice_.chip.host_bytes_per_second
    if config.state_memory == "pinned_host":
        host += 2 * state["moments"] / slice_.chip.host_bytes_per_second
    transfers = _transfers(config, sizes.numbers, slice_, mesh, tokens, parts)
    return Rough(
        least_bytes=state["params"] + moments + sums + held,
        seconds=max(compute, host) + transfers,
    )


def _saved(model: architecture.TransformerConfig, tensor: int) -> tuple[float, float]:
    """Bytes of a token and layer that the forward pass leaves: (on the chip, in the host)."""
    size = _BYTES[model.compute_dtype]
    stream = model.dim
    heads = model.heads * model.head_dim / tensor
    keys = 2 * model.kv_heads * model.head_dim / tensor
    mlp = 0 if model.experts is not None else 2 * model.ffn_dim / tensor
    projections = 2 * heads + keys + mlp
    # Products with weights, those in 8 bits aside: attention is none, its output projection is.
    eight_bits = model.quantization.parts if model.quantization is not None else ()
    dots = (heads + keys + stream) * ("attention" not in eight_bits)
    dots += mlp * ("mlp" not in eight_bits)
    on_chip, in_host = {
        "none": (projections + 2 * stream, 0.0),
        "dots": (dots + stream, 0.0),
        "full": (stream, 0.0),
        "save_attention": (stream + heads, 0.0),
        "save_projections": (projections + stream, 0.0),
        "offload_inputs": (0.0, stream),
        "offload_attention": (0.0, stream + heads),
        "offload_projections": (0.0, projections + stream),
        "offload_all_but_mlp": (mlp, projections + stream - mlp),
    }[model.remat]
    return size * on_chip, size * in_host


def _transfers(
    config: train_lib.Train,
    whole: int,
    slice_: slices_lib.Slice,
    mesh: Mapping[str, int],
    tokens: float,
    parts: int,
) -> float:
    """Seconds of collectives over all dimensions of the torus at once, none hidden.

    What goes dimension by dimension (`model.torus`) takes longer, most of it beside computation.
    """
    model, chip = config.model, slice_.chip
    link = 2 * chip.link_bytes_per_second * _LINKS
    gathered = mesh["fsdp"] * mesh["context"] * mesh["expert"]
    size = _BYTES[model.compute_dtype]
    total = 0.0
    if gathered > 1:  # forward, backward, and gradients, of each part
        total += 3 * parts * size * whole / mesh["tensor"] / (link * _dims(slice_, gathered))
    if (tensor := mesh["tensor"]) > 1:
        reduces = 4 if model.remat in ("none", "dots", "save_projections") else 6
        share = 2 * (tensor - 1) / tensor
        moved = reduces * share * tokens * model.dim * size * model.layers
        total += moved / (link * _dims(slice_, tensor))
    if mesh["context"] > 1:
        keys = 2 * model.kv_heads * model.head_dim * tokens * mesh["context"] * size
        total += 3 * keys * model.layers / (link * _dims(slice_, mesh["context"]))
    copies = mesh["data"] // slice_.slices
    own = 4 * whole / gathered / mesh["tensor"]
    if copies > 1:
        total += 2 * own / (link * _dims(slice_, copies))
    if slice_.slices > 1:
        total += 2 * own * slice_.chips_per_host / chip.dcn_bytes_per_second
    return total


def _dims(slice_: slices_lib.Slice, group: int) -> int:
    """Dimensions of the torus that a group of this size is likely to have."""
    found, size = 0, 1
    for edge in sorted(slice_.torus, reverse=True):
        if size >= group:
            break
        found, size = found + 1, size * edge
    return max(found, 1)
