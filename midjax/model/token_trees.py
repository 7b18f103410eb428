# SPDX-License-Identifier: Apache-2.0
"""Hidden states of many texts that begin alike: what they share is computed once.

A row holds trees of tokens, laid out so that a token comes before its continuations. `ends` says
where the last of these ends, which is all that attention has to know: a query sees the keys whose
range it is in, those are the tokens that lead to it.

    the sky is blue     row     the  sky  is  blue  grey  cat
    the sky is grey     ends      6    5   5     4     5    6
    the cat             position  0    1   2     3     3    1

What all trees of a row begin with need not lie in it: it is a prefix, whose keys and values are
made once (`prefixes`) and looked at by many rows.

    prefix tokens --prefixes--> keys and values of every layer --+
    rows of trees -----------------------------------------------+--hidden--> [B, T, D]

Shape suffixes: B rows, T places of a row, S of them that a block of queries looks at, C prefixes,
P places of a prefix, D model width, L layers, N query heads, K key and value heads, G = N / K,
H head size.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from midjax.model import architecture, attention, depth, layers, products, sharding, transformer

# Finite, so that no row can turn into NaN.
_MASKED = -1e30
# Queries that look back together, at no key that is later than all of them.
_BLOCK_TOKENS = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Trees, laid out in rows, int32 [B, T] each.

    Attributes:
      tokens: ids.
      segments: 1.. per tree; 0 is padding.
      positions: places in the text, those of the row's prefix counted.
      ends: where in the row the tokens end that continue this one; of a token without any, and of
        padding, the place after it.
      prefix: [B], which prefix the row's trees continue. Not read without prefixes.
    """

    # Not checked: trees of shardings have this structure too.
    tokens: Any
    segments: Any
    positions: Any
    ends: Any
    prefix: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Keys and values of C prefixes.

    Attributes:
      keys, values: [L, C, K, P, H] in the compute dtype; a head's lie together.
      tokens: [C], how long each is; what lies behind is padding.
    """

    keys: Any
    values: Any
    tokens: Any


def prefix_bytes(config: architecture.TransformerConfig, tokens: int) -> int:
    """Bytes of one prefix, on all devices that hold a copy of it together."""
    numbers = 2 * config.layers * config.kv_heads * config.head_dim * tokens
    return numbers * jnp.dtype(config.compute_dtype).itemsize


def prefixes(
    config: architecture.TransformerConfig,
    params: transformer.Params,
    tokens_CP: Array,
    tokens_C: Array,
) -> Prefixes:
    """Computes prefixes, one in a row.

    Args:
      config, params: the model.
      tokens_CP: ids, then padding. C divides over the mesh's batch axes.
      tokens_C: tokens of each, 0 for a row that is padding only.
    """
    places_P = jnp.arange(tokens_CP.shape[1])
    segments_CP = (places_P < tokens_C[:, None]).astype(jnp.int32)
    positions_CP = jnp.broadcast_to(places_P, tokens_CP.shape)
    context = transformer.shared(config, segments_CP, positions_CP)

    def attend(
        options: attention.Options, q: Array, k: Array, v: Array
    ) -> tuple[Array, tuple[Array, Array]]:
        out, _ = layers.within_rows(config, segments_CP, options, q, k, v)
        return out, (_everywhere(k), _everywhere(v))

    context = dataclasses.replace(context, attend=attend)

    def each(kind: int, x: Array, weights: transformer.Params) -> tuple[Array, Any]:
        x, _, kept = transformer.apply_layer(config, context, kind, x, weights)
        return x, kept

    x_CPD = transformer.embedded(config, params, tokens_CP)
    members = transformer.layers_of(config)
    _, (keys, values) = depth.fold(config, members, params["layers"], each, x_CPD)
    return Prefixes(keys, values, tokens_C)


def _everywhere(x_CPKH: Array) -> Array:
    """[C, K, P, H], all prefixes on every device: each has rows that continue any of them."""
    return sharding.constrain(x_CPKH.swapaxes(1, 2), (None, "kv_heads", None, "head_dim"))


def hidden(
    config: architecture.TransformerConfig,
    params: transformer.Params,
    rows: Rows,
    given: Prefixes | None,
) -> Float[Array, "B T D"]:
    """The stream after the last layer and the final norm: of each token the same as if its text
    were alone in a row, but for float rounding.

    On one device or under a mesh whose `context` is 1 (see `sharding.without_context`).

    Where frequencies depend on a text's length (dynamic_ntk, longrope), that of a tree is its
    longest text's: put texts beyond the original length into trees of their own.

    Args:
      config, params: the model.
      rows: the texts.
      given: what they continue; None where they begin in their row.
    """
    context = transformer.shared(config, rows.segments, rows.positions)
    members, stacks = transformer.layers_of(config), params["layers"]
    if given is not None:
        every = tuple(range(config.layers))
        members = {**members, "prefix_keys": every, "prefix_values": every}
        stacks = {**stacks, "prefix_keys": given.keys, "prefix_values": given.values}

    def attend(
        seen: tuple[Array, Array] | None,
        options: attention.Options,
        q: Array,
        k: Array,
        v: Array,
    ) -> tuple[Array, None]:
        before = None
        if given is not None and seen is not None:
            taken = [jnp.take(x, rows.prefix, axis=0) for x in seen]
            keys, values = (
                sharding.constrain(x, ("batch", "kv_heads", None, "head_dim")) for x in taken
            )
            before = keys, values, given.tokens[rows.prefix]
        return _attend(options, rows, before, q, k, v), None

    def each(kind: int, x: Array, weights: transformer.Params) -> tuple[Array, None]:
        weights = dict(weights)
        seen = None
        if given is not None:
            seen = weights.pop("prefix_keys"), weights.pop("prefix_values")
        here = dataclasses.replace(context, attend=functools.partial(attend, seen))
        x, _, _ = transformer.apply_layer(config, here, kind, x, weights)
        return x, None

    x_BTD = transformer.embedded(config, params, rows.tokens)
    x_BTD, _ = depth.fold(config, members, stacks, each, x_BTD)
    return transformer.normed(config, params, x_BTD)


def _attend(
    options: attention.Options,
    rows: Rows,
    before: tuple[Array, Array, Array] | None,
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
) -> Float[Array, "B T N H"]:
    """Attention of trees; `before` is keys and values [B, K, P, H] of prefixes and their tokens."""
    batch, length, heads, head_dim = q_BTNH.shape
    kv_heads = k_BTKH.shape[2]
    q_BTNH = (q_BTNH.astype(jnp.float32) * options.scale).astype(q_BTNH.dtype)
    q_BTKGH = q_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    out = []
    for first in range(0, length, _BLOCK_TOKENS):
        last = min(first + _BLOCK_TOKENS, length)
        q, here = q_BTKGH[:, first:last], slice(first, last)
        scores = [_einsum("BTKGH,BSKH->BKGTS", q, k_BTKH[:, :last])]
        allowed = [_sees_row(options, rows, here)]
        if before is not None:
            keys, _, tokens_B = before
            scores.append(_einsum("BTKGH,BKPH->BKGTP", q, keys))
            allowed.append(_sees_prefix(options, rows, here, tokens_B, keys.shape[2]))
        scores = [
            jnp.where(seen[:, None, None], options.capped(x), _MASKED)
            for x, seen in zip(scores, allowed, strict=True)
        ]
        top = functools.reduce(jnp.maximum, [x.max(axis=-1, keepdims=True) for x in scores])
        raised = [jnp.exp(x - top) for x in scores]
        total = functools.reduce(jnp.add, [x.sum(axis=-1, keepdims=True) for x in raised])
        seen_BKGTH = _einsum("BKGTS,BSKH->BKGTH", raised[0].astype(v_BTKH.dtype), v_BTKH[:, :last])
        if before is not None:
            values = before[1]
            seen_BKGTH += _einsum("BKGTP,BKPH->BKGTH", raised[1].astype(values.dtype), values)
        out.append((seen_BKGTH / total).astype(v_BTKH.dtype).transpose(0, 3, 1, 2, 4))
    return jnp.concatenate(out, axis=1).reshape(batch, length, heads, head_dim)


def _sees_row(options: attention.Options, rows: Rows, here: slice) -> Bool[Array, "B T S"]:
    """Which keys of their row the queries `here` see: those that lead to them."""
    place_S = jnp.arange(here.stop)
    place_T = place_S[here]
    inside_BTS = place_T[:, None] < rows.ends[:, None, : here.stop]
    seen_BTS = inside_BTS & (place_S <= place_T[:, None])
    if options.window_tokens is not None:
        position_BT, position_BS = rows.positions[:, here], rows.positions[:, : here.stop]
        seen_BTS &= position_BT[:, :, None] - position_BS[:, None] < options.window_tokens
    return seen_BTS


def _sees_prefix(
    options: attention.Options, rows: Rows, here: slice, tokens_B: Array, length: int
) -> Bool[Array, "B T P"]:
    """Which keys of their prefix the queries `here` see."""
    place_P = jnp.arange(length)
    seen_BTP = (place_P < tokens_B[:, None])[:, None]
    if options.window_tokens is not None:
        seen_BTP = seen_BTP & (
            rows.positions[:, here, None] - place_P[None, None] < options.window_tokens
        )
    return seen_BTP


def _einsum(spec: str, a: Array, b: Array) -> Array:
    """In float32, of operands in any dtype."""
    return products.wide(functools.partial(jnp.einsum, spec), a, b)
