# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer: pure functions of a frozen config and a plain dict of parameters.

Shape suffixes: B batch, T length, D model width, N query heads, K key and value heads, H head size,
F mlp width, E experts, V vocabulary, L layers.

The nnx modules of `layers` declare parameters and compute one layer; everywhere else parameters are
a plain nested dict. A name under "layers" is stacked along a leading axis over the layers that have
it, in order: over all of them for most, over those with an mlp or with experts for these:

  {"embed": [V, D], "layers": {"attn_norm": [L, D], "wq": [L, D, N, H], "wk": [L, D, K, H],
   "wv": [L, D, K, H], "wo": [L, N, H, D], "mlp_norm": [L, D], "w_gate": [L, D, F],
   "w_up": [L, D, F], "w_down": [L, F, D], ...}, "final_norm": [D], "head": [D, V] unless tied}

and more where the config says so: see `layers.Layer` for their names.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import ad_checkpoint
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from midjax.model import (
    architecture,
    depth,
    documents,
    embedding,
    fsdp,
    layers,
    moe,
    products,
    remat,
    rope,
    sharding,
)

Params = dict[str, Any]


# ---- parameters ----


def init(config: architecture.TransformerConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters; every layer has a key of its own.

    The values depend on the key alone: under `jax.jit(..., out_shardings=...)` they are the same on
    every mesh.
    """
    ends_key, layers_key = jax.random.split(key)
    keys = jax.random.split(layers_key, config.layers)
    made: dict[bool, Params] = {}
    for has_experts, members in _members(config).items():
        pure = functools.partial(_pure, config, layers.Layer, ("full", has_experts))
        made[has_experts] = jax.vmap(pure)(keys[jnp.array(members)])
    return {**_pure(config, layers.Ends, (), ends_key), "layers": _in_order(config, made)}


def _pure(
    config: architecture.TransformerConfig, module: Any, given: tuple[Any, ...], key: PRNGKeyArray
) -> Params:
    made = module(config, *given, keys=layers.Keys(key))
    return nnx.to_pure_dict(nnx.split(made)[1])


def _members(config: architecture.TransformerConfig) -> dict[bool, list[int]]:
    """Layers without (False) and with (True) experts, of the kinds that there are."""
    found: dict[bool, list[int]] = {}
    for layer in range(config.layers):
        found.setdefault(config.has_experts(layer), []).append(layer)
    return found


def _in_order(config: architecture.TransformerConfig, made: dict[bool, Params]) -> Params:
    """Stacks of the two kinds of layers as one dict, the shared names in the order of depth."""
    if len(made) == 1:
        return next(iter(made.values()))
    members = _members(config)
    back = jnp.argsort(jnp.array(members[False] + members[True]))
    merged = made[True] | made[False]
    for name in made[True].keys() & made[False].keys():
        merged[name] = jnp.concatenate([made[False][name], made[True][name]])[back]
    return merged


def abstract(config: architecture.TransformerConfig) -> Params:
    """The parameters' shapes and dtypes: a tree of ShapeDtypeStruct."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


@functools.cache
def _declared(
    config: architecture.TransformerConfig, module: Any, given: tuple[Any, ...] = ()
) -> tuple[nnx.GraphDef, dict[str, tuple[str | None, ...]]]:
    """A module's structure, and the logical axes of its parameters."""
    made = nnx.eval_shape(lambda: module(config, *given, keys=layers.Keys(jax.random.key(0))))
    graph, state = nnx.split(made)
    return graph, {path[0]: leaf.get_metadata("axes") for path, leaf in state.flat_state()}


def logical_axes(config: architecture.TransformerConfig) -> Params:
    """The parameters' logical axes, for `sharding.tree`: a tree of tuples."""
    found: Params = {}
    for has_experts in _members(config):
        axes = _declared(config, layers.Layer, ("full", has_experts))[1]
        found |= {name: ("layers", *of) for name, of in axes.items()}
    return {**_declared(config, layers.Ends)[1], "layers": found}


@functools.cache
def layers_of(config: architecture.TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name under "layers" -> the layers that have it, in the order of the stack."""
    found: dict[str, tuple[int, ...]] = {}
    for has_experts, members in _members(config).items():
        for name in _declared(config, layers.Layer, ("full", has_experts))[1]:
            found[name] = tuple(sorted({*found.get(name, ()), *members}))
    return found


def parameter_count(config: architecture.TransformerConfig) -> int:
    """Number of parameters; a tied head counts once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(config)))


def head_names(config: architecture.TransformerConfig) -> tuple[str, ...]:
    """Which parameters `logits` reads."""
    weights = "embed" if config.tied_head else "head"
    return (weights, "head_bias") if config.head_bias else (weights,)


def head_axes(config: architecture.TransformerConfig) -> dict[str, sharding.Axes]:
    """Their logical axes."""
    axes = _declared(config, layers.Ends)[1]
    return {name: axes[name] for name in head_names(config)}


def placed(config: architecture.TransformerConfig, params: Params, name: str) -> Array:
    """A parameter outside the layers, held to its sharding.

    A constraint on a parameter is one on its gradient: without it the compiler leaves every device
    the whole gradient, summed over the mesh, instead of the device's share of it.
    """
    return sharding.constrain(params[name], _declared(config, layers.Ends)[1][name])


# ---- one layer ----


def apply_layer(
    config: architecture.TransformerConfig,
    shared: layers.Context,
    layer: int,
    x_BTD: Array,
    weights: Params,
) -> tuple[Array, moe.Aux | None, Any]:
    """One layer, what its router did, and what `shared.attend` kept.

    Args:
      config: the model.
      shared: from `shared`.
      layer: counted from 0; stands for every layer of its kind.
      x_BTD: the stream.
      weights: of this layer, by name.
    """
    given = (config.layer_type(layer), config.has_experts(layer))
    graph, axes = _declared(config, layers.Layer, given)

    def compute(x_BTD: Array, weights: Params) -> tuple[Array, moe.Aux | None, Any]:
        x_BTD = ad_checkpoint.checkpoint_name(x_BTD, "layer_input")
        # For the gradient's sake: see `placed`.
        weights = {name: sharding.constrain(leaf, axes[name]) for name, leaf in weights.items()}
        return nnx.merge(graph, weights)(x_BTD, shared)

    def on_rows(x_BTD: Array, weights: Params, arrays: Any) -> Array:
        def of_rows(x_BTD: Array, weights: Params) -> Array:
            x_BTD = ad_checkpoint.checkpoint_name(x_BTD, "layer_input")
            made = nnx.merge(graph, fsdp.whole(weights, axes, config.compute_dtype))
            return made(x_BTD, layers.Context(*arrays))[0]

        return remat.wrap(of_rows, config.remat)(x_BTD, weights)

    # Experts send tokens to one another; what a caller keeps of attention has its own places; and
    # without remat whole weights would be kept for the backward pass.
    alone = shared.attend is None and not config.has_experts(layer) and config.remat != "none"
    if alone and fsdp.applies():
        arrays = (shared.segments_BT, shared.turns)
        return fsdp.on_rows(on_rows, axes, x_BTD, weights, arrays), None, None
    return remat.wrap(compute, config.remat)(x_BTD, weights)


# ---- the forward pass ----


def forward(
    config: architecture.TransformerConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
) -> tuple[Float[Array, "B T D"], moe.Aux | None]:
    """The stream after the last layer and the final norm, and what the routers did.

    Args:
      config, params: the model.
      tokens_BT: token ids.
      segments_BT: 1.. per document; tokens see their own document only. 0 is padding.
      positions_BT: position within the document.

    Returns:
      The stream in the compute dtype; sums over tokens for the routers' losses, with an axis of
      the layers that have experts in front, None where no layer has.
    """
    x_BTD = embedded(config, params, tokens_BT)
    of_all = shared(config, segments_BT, positions_BT)

    def each(layer: int, x_BTD: Array, weights: Params) -> tuple[Array, moe.Aux | None]:
        return apply_layer(config, of_all, layer, x_BTD, weights)[:2]

    x_BTD, aux = depth.fold(config, layers_of(config), params["layers"], each, x_BTD)
    return normed(config, params, x_BTD), aux


def embedded(
    config: architecture.TransformerConfig, params: Params, tokens_BT: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """The stream before the first layer, in the compute dtype."""
    x_BTD = _looked_up(config, params, tokens_BT)
    if config.embed_scale is not None:
        x_BTD = x_BTD * jnp.asarray(config.embed_scale, x_BTD.dtype)
    return sharding.constrain(x_BTD, ("batch", "length", None))


def _looked_up(
    config: architecture.TransformerConfig, params: Params, tokens_BT: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """The table's rows of the tokens, in the compute dtype.

    Rows of the batch and the table's width are split over one mesh axis, and the two can't be in
    one array: one of them has to travel, and its gradient back. A table that travels does so as the
    layers' weights do, in the compute dtype, and so does its gradient.
    """
    dtype, axes = config.compute_dtype, {"embed": ("vocab", "embed")}
    if sharding.only_splits(("batch", "embed"), "fsdp"):
        # Every device looks up its part of the width for all rows, and what it found travels.
        table_VD = placed(config, params, "embed")
        tokens_BT = sharding.constrain(tokens_BT, ("copy_batch", None))
        x_BTD = embedding.rows(table_VD, tokens_BT).astype(dtype)
        return sharding.constrain(x_BTD, ("copy_batch", None, "embed"))
    if fsdp.applies():

        def on_rows(tokens_BT: Array, part: Params, _: Any) -> Array:
            return embedding.rows(fsdp.whole(part, axes, dtype)["embed"], tokens_BT)

        return fsdp.on_rows(on_rows, axes, tokens_BT, {"embed": params["embed"]}, ())
    table_VD = sharding.constrain(placed(config, params, "embed"), ("vocab", None))
    return jnp.take(table_VD, tokens_BT, axis=0).astype(dtype)


def shared(
    config: architecture.TransformerConfig,
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
) -> layers.Context:
    """What all layers read besides the stream."""
    return layers.Context(segments_BT, _turns(config, segments_BT, positions_BT))


def normed(
    config: architecture.TransformerConfig, params: Params, x_BTD: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """The stream after the last layer, through the final norm."""
    graph, axes = _declared(config, layers.Ends)
    ends = {name: placed(config, params, name) for name in axes}
    return nnx.merge(graph, ends).normed(x_BTD)


def _turns(
    config: architecture.TransformerConfig,
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
) -> dict[str, tuple[Float32[Array, "B T 1 R"], Float32[Array, "B T 1 R"]]]:
    """Kind of layer -> cos and sin; made once for kinds that share a rotary embedding."""
    made: dict[rope.Rope, Any] = {}
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(config.layer_pattern):
        turning = config.rope_of(kind)
        if turning is None:
            continue
        if turning not in made:
            lengths_BT = None
            if rope.needs_lengths(turning):
                lengths_BT = documents.lengths_on_mesh(segments_BT, positions_BT)
            # Behind a barrier, or the TPU's compiler makes them in every layer, forward and back.
            made[turning] = jax.lax.optimization_barrier(
                rope.angles(turning, config.head_dim, positions_BT, lengths_BT)
            )
        found[kind] = made[turning]
    return found


def hidden(
    config: architecture.TransformerConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
    """`forward` without what the routers did."""
    return forward(config, params, tokens_BT, segments_BT, positions_BT)[0]


def logits(
    config: architecture.TransformerConfig, params: Params, hidden_BTD: Float[Array, "B T D"]
) -> Float32[Array, "B T V"]:
    """The head's scores of every next token, float32."""
    weights_DV = placed(config, params, head_names(config)[0])
    if config.tied_head:
        weights_DV = weights_DV.T
    weights_DV = weights_DV.astype(config.head_dtype or config.compute_dtype)
    dtype = jnp.promote_types(hidden_BTD.dtype, weights_DV.dtype)
    logits_BTV = layers.by_token(
        hidden_BTD.astype(dtype),
        weights_DV.astype(dtype),
        functools.partial(products.wide, jnp.matmul),
    )
    if config.logits_scale is not None:
        logits_BTV *= config.logits_scale
    if config.head_bias:
        logits_BTV += placed(config, params, "head_bias").astype(jnp.float32)
    if config.logits_softcap is not None:
        logits_BTV = config.logits_softcap * jnp.tanh(logits_BTV / config.logits_softcap)
    return sharding.constrain(logits_BTV, ("batch", "length", "vocab"))


def apply(
    config: architecture.TransformerConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
) -> Float32[Array, "B T V"]:
    """Logits [B, T, V] in float32: `hidden`, then `logits`. Holds all of them in memory."""
    return logits(config, params, hidden(config, params, tokens_BT, segments_BT, positions_BT))
