# SPDX-License-Identifier: Apache-2.0
"""A forward pass that needs room for one layer beside the parameters, wherever they lie.

    embedding's rows, by the host -> layer after layer, on the mesh -> head, a piece at a time

Under `transformer.apply` the compiler may gather and convert all layers before the first begins.
Here each layer is a program of its own, and the two tables of the vocabulary pass through the host
in pieces. Slower; for checks.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from midjax.model import architecture, hf_rows, transformer
from midjax.model.families import table

Rows = Int[Array, "B T"] | Int[np.ndarray, "B T"]


def hidden(
    config: architecture.TransformerConfig,
    params: transformer.Params,
    tokens_BT: Int[np.ndarray, "B T"],
    segments_BT: Rows,
    positions_BT: Rows,
    mesh: jax.sharding.Mesh,
) -> Float[np.ndarray, "B T D"]:
    """`transformer.hidden`, on the host.

    Args:
      config, params: the model; params on `mesh`, all of whose devices are of this process.
      tokens_BT: on the host.
      segments_BT, positions_BT: as `transformer.forward`; for a `context` axis all three in its
        order.
      mesh: from `sharding.make`.
    """
    with jax.set_mesh(mesh):
        few_VD, ids_BT = _few_rows(params["embed"], np.asarray(tokens_BT))
        x_BTD = _begin(config, few_VD, ids_BT)
        members, kinds = transformer.layers_of(config), dict[Any, int]()
        for layer in range(config.layers):
            weights = {
                name: _taken(params["layers"][name], np.int32(having.index(layer)))
                for name, having in members.items()
                if layer in having
            }
            # One program for all layers of a kind.
            kind = config.layer_type(layer), config.has_experts(layer)
            alike = kinds.setdefault(kind, layer)
            x_BTD = _layer(config, alike, segments_BT, positions_BT, x_BTD, weights)
            # Otherwise the host would run ahead, and the weights of many layers would be copied.
            x_BTD.block_until_ready()
        ends = {name: leaf for name, leaf in params.items() if name != "layers"}
        return np.asarray(_end(config, ends, x_BTD))


def logits(
    config: architecture.TransformerConfig,
    params: transformer.Params,
    hidden_BTD: Float[np.ndarray, "B T D"],
) -> Iterator[tuple[int, Float[np.ndarray, "B T n"]]]:
    """Pieces of `transformer.logits` along the vocabulary: (first token, scores of n tokens)."""
    name, *bias = transformer.head_names(config)
    part = table.Part((name,), (), params[name].shape)
    for begin, end in hf_rows.steps(part, params[name].dtype.itemsize):
        piece = {name: hf_rows.ours(params[name], part, begin, end)}
        if bias:
            piece["head_bias"] = np.asarray(params["head_bias"])[begin:end]
        yield begin, np.asarray(_score(config, piece, hidden_BTD))


@functools.partial(jax.jit, static_argnums=0)
def _begin(config: Any, few_VD: Any, ids_BT: Any) -> Any:
    return transformer.embedded(config, {"embed": few_VD}, ids_BT)


@jax.jit
def _taken(stack: Any, at: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(stack, at, keepdims=False)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _layer(
    config: Any, layer: int, segments_BT: Any, positions_BT: Any, x_BTD: Any, weights: Any
) -> Any:
    shared = transformer.shared(config, segments_BT, positions_BT)
    return transformer.apply_layer(config, shared, layer, x_BTD, weights)[0]


@functools.partial(jax.jit, static_argnums=0)
def _end(config: Any, ends: Any, x_BTD: Any) -> Any:
    return transformer.normed(config, ends, x_BTD)


@functools.partial(jax.jit, static_argnums=0)
def _score(config: Any, head: Any, hidden_BTD: Any) -> Any:
    return transformer.logits(config, head, hidden_BTD)


def _few_rows(embed: Any, tokens_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The embedding's rows that some tokens need, and the tokens as numbers of these rows."""
    wanted, ids = np.unique(tokens_BT, return_inverse=True)
    part = table.Part(("embed",), (), embed.shape)
    few_VD = np.empty((len(wanted), embed.shape[1]), embed.dtype)
    for begin, end in hf_rows.steps(part, embed.dtype.itemsize):
        here = (begin <= wanted) & (wanted < end)
        if here.any():
            few_VD[here] = hf_rows.ours(embed, part, begin, end)[wanted[here] - begin]
    return few_VD, ids.reshape(tokens_BT.shape).astype(np.int32)
