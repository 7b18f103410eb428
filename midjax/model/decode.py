# SPDX-License-Identifier: Apache-2.0
"""Writing token by token: keys and values of what stands already are kept, not computed again.

    prompts, packed in rows --fill--> logits after each prompt, and a cache of their keys and values
    one token per row, cache --step--> logits after it, and the cache with its keys and values

The layers are those of training; only what their queries look at differs (`layers.Attend`).

A row of the cache is a ring of S slots, and all rows write at the same slot: the newest token of
every row lies there, the one before it in the slot before. So a step writes one slice, whatever the
rows' lengths are, no slot is padding, and a row that ends is filled anew while the others go on:

    slot         0    1    2    3    4    5          newest = 3, S = 6
    row 0        c    d    e    f    a    b          six tokens
    row 1             x    y    z                    three: slots 4, 5 and 0 are older

A key keeps the angle that it was turned by. Where frequencies depend on the document's length
(dynamic_ntk, longrope) a prompt's are those of its length, and those of a token that follows of the
length that it makes; so does transformers. Where longrope changes its list, at L + 1 tokens, all
keys would have other angles: see `longest_row`.

Shape suffixes: B rows of the cache, R packed rows of T places, D model width, L layers, N query
heads, K key and value heads, S slots, H head size, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from midjax.model import architecture, attention, depth, layers, sharding, transformer, window

_KEY_AXES: sharding.Axes = ("batch", "kv_heads", "head_dim", None)
_VALUE_AXES: sharding.Axes = ("batch", "kv_heads", None, "head_dim")
# From [B, S, K, H], as layers make them.
_AS_KEYS, _AS_VALUES = (0, 2, 3, 1), (0, 2, 1, 3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of all layers.

    Attributes:
      keys: [L, B, K, H, S] in the compute dtype, as the product with queries wants them: a CPU
        would turn them over in every step. Of a model whose layers are `apart` a tuple of L arrays.
      values: likewise [L, B, K, S, H].
      newest: the slot that was written last.
    """

    # Not checked: trees of shardings have this structure too.
    keys: Any
    values: Any
    newest: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts packed end to end in rows, and the rows of the cache that they go to.

    Where the mesh splits rows in n parts, the prompts of rows [i B / n, (i + 1) B / n) of the cache
    are in packed rows [i R / n, (i + 1) R / n).

    Attributes:
      tokens, segments, positions: [R, T], as `transformer.forward` has them.
      is_new: [B], which rows of the cache are filled; the others stay as they are.
      begin: [B], place of the prompt's first token within its part, that is 0..(R / n) T - 1.
      tokens_of_row: [B], tokens of the prompt, S at most.
    """

    tokens: Any
    segments: Any
    positions: Any
    is_new: Any
    begin: Any
    tokens_of_row: Any


def cache_bytes(config: architecture.TransformerConfig, rows: int, slots: int) -> int:
    """Bytes of a cache, on all devices together."""
    heads = 2 * config.layers * rows * config.kv_heads * slots
    return heads * config.head_dim * jnp.dtype(config.compute_dtype).itemsize


def empty(config: architecture.TransformerConfig, rows: int, slots: int) -> Cache:
    """A cache without tokens, split over the mesh in force."""

    def zeros(axes: sharding.Axes, *shape: int) -> Any:
        shape = (rows, config.kv_heads, *shape)
        if depth.flat(config):
            one = (sharding.constrain(jnp.zeros(shape, config.compute_dtype), axes),)
            return one * config.layers
        stack = jnp.zeros((config.layers, *shape), config.compute_dtype)
        return sharding.constrain(stack, ("layers", *axes))

    keys = zeros(_KEY_AXES, config.head_dim, slots)
    values = zeros(_VALUE_AXES, slots, config.head_dim)
    return Cache(keys, values, jnp.int32(slots - 1))


def resized(cache: Cache, slots: int) -> Cache:
    """The same cache with more slots, or with fewer: then only the newest of each row are kept."""
    now = _slots(cache)
    kept = min(now, slots)
    newest_S = jnp.mod(cache.newest + 1 - kept + jnp.arange(kept), now)

    def one(x: Array, axis: int, axes: sharding.Axes) -> Array:
        x = jnp.take(x, newest_S, axis=axis)
        room = [(0, 0)] * x.ndim
        room[axis] = (0, slots - kept)
        stacked = () if isinstance(cache.keys, tuple) else ("layers",)
        return sharding.constrain(jnp.pad(x, room), (*stacked, *axes))

    keys = jax.tree.map(lambda x: one(x, x.ndim - 1, _KEY_AXES), cache.keys)
    values = jax.tree.map(lambda x: one(x, x.ndim - 2, _VALUE_AXES), cache.values)
    return Cache(keys, values, jnp.int32(kept - 1))


def some_rows(cache: Cache, rows_C: Int[Array, "C"]) -> Cache:
    """The same cache with these of its rows alone. On one device."""
    axis = 0 if isinstance(cache.keys, tuple) else 1
    keys, values = jax.tree.map(
        lambda x: jnp.take(x, rows_C, axis=axis), (cache.keys, cache.values)
    )
    return Cache(keys, values, cache.newest)


def apart(config: architecture.TransformerConfig, params: transformer.Params) -> transformer.Params:
    """Parameters as `fill` and `step` like them best; to be called once, before a loop of steps.

    Of a model whose layers are written out, each layer by itself: a CPU would cut it out of the
    stack in every step, and copies more then than it multiplies. Others stay as they are.
    """
    if not depth.flat(config):
        return params
    taken = tuple(
        {
            name: params["layers"][name][having.index(layer)]
            for name, having in transformer.layers_of(config).items()
            if layer in having
        }
        for layer in range(config.layers)
    )
    return {**params, "layers": taken}


def _slots(cache: Cache) -> int:
    return jax.tree.leaves(cache.values)[0].shape[-2]


def longest_row(config: architecture.TransformerConfig, tokens: int) -> int | None:
    """How long a row may grow that begins with so many tokens; None: as long as it likes.

    Beyond, all of its keys turn by other angles: `fill` has to begin anew with all that is written
    (so does transformers' Phi-3).
    """
    found = [
        one.scaling.original_context_tokens
        for one in (config.rope, config.window_rope)
        if one is not None and one.scaling.kind == "longrope"
    ]
    return min((length for length in found if length and tokens <= length), default=None)


def fill(
    config: architecture.TransformerConfig,
    params: transformer.Params,
    cache: Cache,
    prompts: Prompts,
) -> tuple[Float32[Array, "B V"], Cache]:
    """Computes prompts and puts them into their rows of the cache.

    Returns:
      The logits of the token after each prompt (of rows that are not new: of anything), and the
      cache.
    """
    context = transformer.shared(config, prompts.segments, prompts.positions)
    slots = _slots(cache)
    age_S = jnp.mod(cache.newest - jnp.arange(slots), slots)
    position_BS = prompts.tokens_of_row[:, None] - 1 - age_S
    from_BS = jnp.where(position_BS >= 0, prompts.begin[:, None] + position_BS, 0)

    def put(cached: Any, layer: Any, new_RTKH: Array, order: Any, axes: sharding.Axes) -> Any:
        new_BSKH = from_packed(new_RTKH, from_BS, ("kv_heads", "head_dim"))
        is_new = prompts.is_new[:, None, None, None]
        filled = jnp.where(is_new, new_BSKH.transpose(order), _layer_of(cached, layer))
        return _write(cached, layer, sharding.constrain(filled, axes), (0, 0))

    def attend(
        layer: Any, cache: Cache, options: attention.Options, q: Array, k: Array, v: Array
    ) -> tuple[Array, Cache]:
        out, _ = layers.within_rows(config, prompts.segments, options, q, k, v)
        keys = put(cache.keys, layer, k, _AS_KEYS, _KEY_AXES)
        values = put(cache.values, layer, v, _AS_VALUES, _VALUE_AXES)
        return out, Cache(keys, values, cache.newest)

    x_RTD = transformer.embedded(config, params, prompts.tokens)
    x_RTD, cache = _through_layers(config, params, context, attend, x_RTD, cache)
    last_B1 = (prompts.begin + prompts.tokens_of_row - 1)[:, None]
    x_B1D = from_packed(x_RTD, last_B1, (None,))
    return _logits(config, params, x_B1D), cache


def step(
    config: architecture.TransformerConfig,
    params: transformer.Params,
    cache: Cache,
    tokens_B: Int[Array, "B"],
    positions_B: Int[Array, "B"],
    valid_B: Bool[Array, "B"],
) -> tuple[Float32[Array, "B V"], Cache]:
    """Writes one token per row.

    Args:
      config, params: the model.
      cache: what stands before, at least `positions_B` tokens of every valid row.
      tokens_B: the tokens.
      positions_B: where they stand, counted from 0; under S.
      valid_B: False for rows that hold nothing of interest: what comes out for them is nothing
        either, and they go through no expert.

    Returns:
      The logits of the tokens after these, and the cache.
    """
    context = transformer.shared(config, valid_B[:, None].astype(jnp.int32), positions_B[:, None])
    slots = _slots(cache)
    newest = jnp.mod(cache.newest + 1, slots)
    age_S = jnp.mod(newest - jnp.arange(slots), slots)
    # The place of a key, as if the query stood at 0.
    place_S = -age_S

    def put(
        cached: Any, layer: Any, new_B1KH: Array, order: Any, axes: sharding.Axes
    ) -> tuple[Any, Array]:
        new = sharding.constrain(new_B1KH.transpose(order), axes)
        slot = (0, newest) if order is _AS_KEYS else (newest, 0)
        cached = _write(cached, layer, new, slot)
        return cached, _layer_of(cached, layer)

    def attend(
        layer: Any, cache: Cache, options: attention.Options, q: Array, k: Array, v: Array
    ) -> tuple[Array, Cache]:
        keys, k_BKHS = put(cache.keys, layer, k, _AS_KEYS, _KEY_AXES)
        values, v_BKSH = put(cache.values, layer, v, _AS_VALUES, _VALUE_AXES)
        seen_BS = (age_S <= positions_B[:, None]) & window.Seen(options.window_tokens)(0, place_S)
        out = attention.look_back(options, q, k_BKHS, v_BKSH, seen_BS)
        return out, Cache(keys, values, cache.newest)

    x_B1D = transformer.embedded(config, params, tokens_B[:, None])
    x_B1D, cache = _through_layers(config, params, context, attend, x_B1D, cache)
    return _logits(config, params, x_B1D), dataclasses.replace(cache, newest=newest)


def _through_layers(
    config: architecture.TransformerConfig,
    params: transformer.Params,
    context: layers.Context,
    attend: Any,
    x: Array,
    cache: Cache,
) -> tuple[Array, Cache]:
    """The depth, with the cache handed from layer to layer: so it is written in place."""

    def each(kind: int, carry: Any, weights: transformer.Params) -> tuple[Any, None]:
        layer, x, cache = carry
        here = dataclasses.replace(context, attend=functools.partial(attend, layer, cache))
        x, _, cache = transformer.apply_layer(config, here, kind, x, weights)
        return (layer + 1, x, cache), None

    if isinstance(params["layers"], tuple):
        carry = (0, x, cache)
        for layer, weights in enumerate(params["layers"]):
            carry, _ = each(layer, carry, weights)
        return carry[1:]
    carry = (jnp.int32(0), x, cache)
    members = transformer.layers_of(config)
    (_, x, cache), _ = depth.fold(config, members, params["layers"], each, carry)
    return x, cache


def _layer_of(cached: Any, layer: Any) -> Array:
    if isinstance(cached, tuple):
        return cached[layer]
    return jax.lax.dynamic_index_in_dim(cached, layer, keepdims=False)


def _write(cached: Any, layer: Any, new: Array, begin: tuple[Any, Any]) -> Any:
    """The cache with some slots of a layer written, from `begin` of its last two axes on."""
    if isinstance(cached, tuple):
        written = jax.lax.dynamic_update_slice(cached[layer], new, (0, 0, *begin))
        return *cached[:layer], written, *cached[layer + 1 :]
    return jax.lax.dynamic_update_slice(cached, new[None], (layer, 0, 0, *begin))


def _logits(
    config: architecture.TransformerConfig,
    params: transformer.Params,
    x_B1D: Float[Array, "B 1 D"],
) -> Float32[Array, "B V"]:
    return transformer.logits(config, params, transformer.normed(config, params, x_B1D))[:, 0]


def from_packed(x: Array, from_BS: Int[Array, "B S"], axes: sharding.Axes) -> Array:
    """[B, S, ...] of what is packed as [R, T, ...]; every part of the mesh takes from its own.

    Args:
      x: what is packed.
      from_BS: places as `Prompts.begin` counts them.
      axes: logical axes of what comes after the first two.
    """

    def take(x: Array, from_BS: Array) -> Array:
        return jnp.take(x.reshape(-1, *x.shape[2:]), from_BS, axis=0, mode="clip")

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return take(x, from_BS)
    split = sharding.spec(("batch", None, *axes), x.shape, mesh.shape)
    rows = sharding.spec(("batch", None))
    return jax.shard_map(take, mesh=mesh, in_specs=(split, rows), out_specs=split)(x, from_BS)
