# SPDX-License-Identifier: Apache-2.0
"""Lookup, layers and head on each device's own tokens, with what FSDP has to send written out.

    weights in parts --cast--> --all_gather--> whole --function, this device's tokens--> its tokens
    their gradients  <--reduce-scatter, as the torus has it (`torus`)-- partial sums

Left to itself, the compiler may split a product with a split matrix into a ring of small products,
each beside the sending of a part of the matrix. By its own estimate that costs more than it hides:
when this was written, a 1B model's step on v5e-16 took 436 ms with them, 287 with whole matrices.
And where `context` splits rows it sums gradients in full on every device, which sends twice as much
as to give each its part.

It is for meshes that split nothing but tokens (`data`, `fsdp`, `context`): there a layer needs of
the other devices weights, and keys and values, which `attention` gathers by itself. What splits a
matrix for good is left to the compiler.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array

from midjax.model import architecture, sharding, torus

# Of the mesh, over which weights are split: as `sharding.TABLE` has them, the first outermost.
AXES = ("fsdp", "context")


def applies() -> bool:
    """Whether the mesh in force splits weights by their tokens' axes, and nothing else."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and not mesh.manual_axes and applies_to(mesh.shape)


def applies_to(sizes: Mapping[str, int]) -> bool:
    """Whether a mesh of these axes does."""
    split = {name for name, size in sizes.items() if size > 1} - {"data"}
    return bool(split) and split <= set(AXES)


def on_rows(
    function: Callable[[Array, dict[str, Array], Any], Any],
    axes: Mapping[str, sharding.Axes],
    x_BTD: Array,
    weights: Mapping[str, Array],
    shared: Any,
) -> Any:
    """function(x_BTD, weights, shared) on every device: of its part of B and T, and of the weights.

    Args:
      function: calls `whole` on its weights, where its remat policy can gather them again. What it
        returns has B and T in front.
      axes: logical axes of the weights.
      x_BTD: the stream, or tokens [B, T].
      weights: by name.
      shared: arrays with B and T in front, in a tree.
    """
    rows = sharding.spec(("batch", "length"))
    return jax.shard_map(
        function,
        in_specs=(rows, {name: sharding.spec(axes[name]) for name in weights}, rows),
        out_specs=rows,
        # Pallas calls don't say over which axes their results vary.
        check_vma=False,
    )(x_BTD, dict(weights), shared)


def whole(
    weights: Mapping[str, Array], axes: Mapping[str, sharding.Axes], dtype: architecture.Dtype
) -> dict[str, Array]:
    """Inside of `on_rows`: the weights, those that are split gathered in the dtype of products.

    Their gradients travel back in that dtype, too.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    over = tuple(name for name in AXES if sizes[name] > 1)
    found = {}
    for name, leaf in weights.items():
        split = [i for i, axis in enumerate(axes[name]) if axis and AXES[0] in sharding.TABLE[axis]]
        for place in split:
            leaf = torus.gathered(leaf.astype(dtype), over, place)
        found[name] = leaf
    return found
