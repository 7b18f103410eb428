# SPDX-License-Identifier: Apache-2.0
"""Norms of each parameter of each layer, on request: where in the model something grows."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from midjax import trees


def measure(due: jax.Array, of: Mapping[str, Any]) -> dict[str, Any]:
    """L2 norms of the leaves of some trees, if they are due; zeros otherwise, at no cost.

    Args:
      due: bool scalar.
      of: kind -> tree like the parameters.

    Returns:
      kind -> {"embed": scalar, "layers/wq": [layers that have it], ...}.
    """

    def norms(of: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
        return {
            kind: {name: _norm(name, leaf) for name, leaf in trees.named_leaves(tree)}
            for kind, tree in of.items()
        }

    def nothing(of: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
        shapes = jax.eval_shape(norms, of)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(due, norms, nothing, dict(of))


def row(
    step: int, found: Mapping[str, Any], layers_of: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """A row of `layer_norms.jsonl`: {"step": 3, "grad_norm/layers/0/wq": 0.1, ...}.

    Args:
      step: of the update.
      found: what `measure` returned, on the host.
      layers_of: `transformer.layers_of`.
    """
    made: dict[str, Any] = {"step": step}
    for kind, norms in found.items():
        for name, values in norms.items():
            if not name.startswith("layers/"):
                made[f"{kind}_norm/{name}"] = float(values)
                continue
            leaf = name.removeprefix("layers/")
            for layer, value in zip(layers_of[leaf], values.tolist(), strict=True):
                made[f"{kind}_norm/layers/{layer}/{leaf}"] = value
    return made


def _norm(name: str, leaf: jax.Array) -> jax.Array:
    stacked = name.startswith("layers/")
    squares = jnp.square(leaf.astype(jnp.float32))
    return jnp.sqrt(squares.sum(tuple(range(int(stacked), leaf.ndim))))
