# SPDX-License-Identifier: Apache-2.0
"""Attention: causal, within a document, grouped queries; windows, soft caps, rows split over chips.

    attend(kernel, q, k, v, segments)  --reference-->  the definition, all scores in memory
                                       --blocked---->  blocks of queries, on any platform
                                       --splash----->  the TPU's kernel
    look_back(q, k, v, seen)           one query per row, over keys of a cache

`attend` is what the model calls, and `look_back` where it writes token by token. Under a mesh every
device attends for its own rows, heads and queries; where `context` splits the length, keys and
values are gathered over it, and the queries are those of `context.order`.

Shape suffixes: B batch, T query length, S key length, N query heads, K key and value heads,
G = N / K query heads per key head, H head size.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from midjax.model import architecture, context, products, sharding, window

# Remat policies that save this name keep what the backward pass needs of the forward pass.
NAME = "attention"

# Finite, so that no row can turn into NaN.
_MASKED = -1e30

# Blocks of queries: enough to skip most of the upper triangle, few enough to unroll.
_MOST_BLOCKS = 4
_LEAST_BLOCK_TOKENS = 128


def attend(
    kernel: architecture.AttentionKernel,
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
    *,
    scale: float,
    window_tokens: int | None,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """softmax(cap(scale q k^T)) v, over the keys that a query may see: see `reference`.

    Uses the mesh in force (`jax.set_mesh`): rows are split over its batch axes, heads over
    `tensor`, and T over `context`; then all inputs are in the order of `context.order`, and so is
    the result.

    Args:
      kernel: "blocked"; "splash", for TPU; "splash_interpret", the same as plain JAX, slow, for
        tests; "auto", splash where the mesh in force (or else JAX's default backend) is of TPUs,
        and blocked elsewhere. So "auto" is right too for a TPU that is only compiled for.
      q_BTNH, k_BTKH, v_BTKH: queries, keys and values. K divides N; query head i uses key head
        i // (N / K). K need not divide over `tensor`.
      segments_BT: document of each token; 0 is padding, which sees padding.
      scale: on the products of queries and keys.
      window_tokens: a query sees so many of the newest tokens, its own included; None for all.
      softcap: c in c * tanh(score / c); None for none.

    Raises:
      ValueError: the length does not divide over `context`, or splash has no blocks for the heads.
    """
    made = Options(scale=scale, window_tokens=window_tokens, softcap=softcap)
    kernel = chosen(kernel)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        shards = context.shards(mesh.shape)  # 1 but inside of `jax.shard_map`
        return _of_shard(kernel, made, shards, q_BTNH, k_BTKH, v_BTKH, segments_BT)
    return _on_mesh(kernel, made, mesh, q_BTNH, k_BTKH, v_BTKH, segments_BT)


def chosen(kernel: architecture.AttentionKernel) -> architecture.AttentionKernel:
    """What "auto" means here, see `attend`; any other is itself."""
    if kernel != "auto":
        return kernel
    return "splash" if sharding.platform() == "tpu" else "blocked"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What `attend` is told beside its arrays; see there."""

    scale: float
    window_tokens: int | None
    softcap: float | None

    def capped(self, scores: Array) -> Array:
        """Scores after the soft cap."""
        if self.softcap is None:
            return scores
        return self.softcap * jnp.tanh(scores / self.softcap)


def options(config: architecture.TransformerConfig, kind: architecture.LayerType) -> Options:
    """Those of a kind of layers."""
    return Options(
        scale=config.attention_scale or 1 / math.sqrt(config.head_dim),
        window_tokens=config.window_of(kind),
        softcap=config.attention_softcap,
    )


def mask(
    segments_BT: Int[Array, "B T"],
    segments_BS: Int[Array, "B S"],
    places_T: Int[Array, "T"],
    places_S: Int[Array, "S"],
    window_tokens: int | None,
) -> Bool[Array, "B T S"]:
    """True where a query may look at a key: of the same segment, and where `window.Seen` says so.

    Padding is a segment of its own (0), so every query sees at least itself.

    Args:
      segments_BT, segments_BS: segments of queries and keys.
      places_T, places_S: where they stand in the row.
      window_tokens: see `attend`.
    """
    seen_TS = window.Seen(window_tokens)(places_T[:, None], places_S[None, :])
    return seen_TS & (segments_BT[:, :, None] == segments_BS[:, None, :])


def reference(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
    *,
    scale: float,
    window_tokens: int | None,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """The measure for every faster kernel: whole rows in natural order, on one device.

    The softmax is in float32. Materialises [B, N, T, T] scores.
    """
    group = q_BTNH.shape[2] // k_BTKH.shape[2]
    k_BTNH, v_BTNH = (jnp.repeat(x, group, axis=2) for x in (k_BTKH, v_BTKH))
    scores_BNTS = scale * jnp.einsum(
        "BTNH,BSNH->BNTS", q_BTNH, k_BTNH, preferred_element_type=jnp.float32
    )
    if softcap is not None:
        scores_BNTS = softcap * jnp.tanh(scores_BNTS / softcap)
    places_T = jnp.arange(q_BTNH.shape[1])
    allowed_BTS = mask(segments_BT, segments_BT, places_T, places_T, window_tokens)
    share_BNTS = jax.nn.softmax(jnp.where(allowed_BTS[:, None], scores_BNTS, _MASKED), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", share_BNTS.astype(v_BTNH.dtype), v_BTNH)


def _of_shard(
    kernel: architecture.AttentionKernel,
    options: Options,
    shards: int,
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """One device's queries over the keys of whole rows, of which it gathers what others have.

    Args:
      kernel: what was chosen.
      options: see `attend`.
      shards: of the context axis; more than one inside of `jax.shard_map` only.
      q_BTNH, k_BTKH, v_BTKH, segments_BT: of this device.
    """
    k_BSKH, v_BSKH, segments_BS = (
        context.gathered(x, 1, shards) for x in (k_BTKH, v_BTKH, segments_BT)
    )
    arrays = (q_BTNH, k_BSKH, v_BSKH, segments_BT, segments_BS)
    length = k_BSKH.shape[1]
    here = 0 if shards == 1 else jax.lax.axis_index(context.AXIS)
    if kernel == "blocked":
        places_nT = jnp.asarray(context.order(length, shards)).reshape(shards, -1)
        return _blocked(options, shards, places_nT[here], *arrays)
    from midjax.model import splash  # Pallas takes a while to import, which a CPU has no need of

    made = splash.kernel(
        tokens=length,
        shards=shards,
        heads=q_BTNH.shape[2],
        kv_heads=k_BSKH.shape[2],
        head_dim=q_BTNH.shape[3],
        itemsize=q_BTNH.dtype.itemsize,
        window_tokens=options.window_tokens,
        softcap=options.softcap,
        device_kind=sharding.device_kind(),
        name=NAME,
        interpret=kernel == "splash_interpret",
    )
    return splash.attend(splash.of_shard(made, here, shards), *arrays, options.scale)


def _on_mesh(
    kernel: architecture.AttentionKernel,
    options: Options,
    mesh: jax.sharding.AbstractMesh,
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """Every device for itself, with the key heads that its query heads use."""
    shards, tensor = context.shards(mesh.shape), mesh.shape["tensor"]
    heads = q_BTNH.shape[2]
    context.order(q_BTNH.shape[1], shards)  # or is refused

    def split(axes: sharding.Axes, x: Array) -> PartitionSpec:
        sharding.check_divides("Attention", x.shape, axes, mesh.shape)
        return sharding.spec(axes, x.shape, mesh.shape)

    queries = split(("batch", "length", "heads", "head_dim"), q_BTNH)
    keys = split(("batch", "length", "kv_heads", "head_dim"), k_BTKH)
    rows = split(("batch", "length"), segments_BT)
    whole = keys[2] is None and tensor > 1

    def part(q_BTNH, k_BTKH, v_BTKH, segments_BT):  # type: ignore[no-untyped-def]
        if whole:
            k_BTKH, v_BTKH = (_used_heads(x, heads, tensor, 2) for x in (k_BTKH, v_BTKH))
        return _of_shard(kernel, options, shards, q_BTNH, k_BTKH, v_BTKH, segments_BT)

    return jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(queries, keys, keys, rows),
        out_specs=queries,
        # Pallas calls don't say over which axes their results vary.
        check_vma=False,
    )(q_BTNH, k_BTKH, v_BTKH, segments_BT)


def look_back(
    made: Options,
    q_BTNH: Float[Array, "B T N H"],
    k_BKHS: Float[Array, "B K H S"],
    v_BKSH: Float[Array, "B K S H"],
    seen_BS: Bool[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """`attend` for T = 1: of each row one query, over keys that lie in a cache.

    Uses the mesh in force: rows are split over its batch axes, heads over `tensor`.

    Args:
      made: scale and soft cap. The window is the caller's, who knows how old a key is.
      q_BTNH: queries.
      k_BKHS, v_BKSH: keys and values, each as its product wants it: no copy of the cache in another
        order is needed, which on a CPU would take longer than the products do.
      seen_BS: which keys the query sees; one at least.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _look_back(made, q_BTNH, k_BKHS, v_BKSH, seen_BS)
    heads, tensor = q_BTNH.shape[2], mesh.shape["tensor"]
    queries = sharding.spec(("batch", None, "heads", "head_dim"), q_BTNH.shape, mesh.shape)
    keys = sharding.spec(("batch", "kv_heads", "head_dim", None), k_BKHS.shape, mesh.shape)
    values = sharding.spec(("batch", "kv_heads", None, "head_dim"), v_BKSH.shape, mesh.shape)
    whole = keys[1] is None and tensor > 1

    def part(q_BTNH, k_BKHS, v_BKSH, seen_BS):  # type: ignore[no-untyped-def]
        if whole:
            k_BKHS, v_BKSH = (_used_heads(x, heads, tensor, 1) for x in (k_BKHS, v_BKSH))
        return _look_back(made, q_BTNH, k_BKHS, v_BKSH, seen_BS)

    return jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(queries, keys, values, sharding.spec(("batch", None))),
        out_specs=queries,
    )(q_BTNH, k_BKHS, v_BKSH, seen_BS)


def _look_back(
    made: Options,
    q_BTNH: Float[Array, "B T N H"],
    k_BKHS: Float[Array, "B K H S"],
    v_BKSH: Float[Array, "B K S H"],
    seen_BS: Bool[Array, "B S"],
) -> Float[Array, "B T N H"]:
    batch, _, heads, head_dim = q_BTNH.shape
    kv_heads = k_BKHS.shape[1]
    q_BTNH = (q_BTNH.astype(jnp.float32) * made.scale).astype(q_BTNH.dtype)
    q_BKGH = q_BTNH.reshape(batch, kv_heads, heads // kv_heads, head_dim)
    scores_BKGS = made.capped(_einsum("BKGH,BKHS->BKGS", q_BKGH, k_BKHS))
    share_BKGS = jax.nn.softmax(jnp.where(seen_BS[:, None, None], scores_BKGS, _MASKED), axis=-1)
    out_BKGH = _einsum("BKGS,BKSH->BKGH", share_BKGS.astype(v_BKSH.dtype), v_BKSH)
    return out_BKGH.astype(v_BKSH.dtype).reshape(q_BTNH.shape)


def _used_heads(x: Array, heads: int, tensor: int, axis: int) -> Array:
    """Of key heads that every device holds, those that this device's query heads use.

    Device j has the query heads [j * N / t, (j + 1) * N / t). Every run of gcd(N / t, G) of them
    shares a key head, so that keys are repeated only where a device's share cuts through groups.
    """
    share, group = heads // tensor, heads // x.shape[axis]
    run = math.gcd(share, group)
    first = jax.lax.axis_index("tensor") * share + jnp.arange(0, share, run)
    return jnp.take(x, first // group, axis=axis)


def _spans(length: int, shards: int) -> Iterator[tuple[slice, int, int]]:
    """Blocks of a shard's queries, with the lowest and highest place they may have on any shard."""
    halves = 1 if shards == 1 else 2
    chunk = length // (shards * halves)
    block = max(-(-chunk * halves // _MOST_BLOCKS), _LEAST_BLOCK_TOKENS)
    for half in range(halves):
        # Of the chunks 0 .. n - 1 in the first half, n .. 2n - 1 in the second.
        lowest, highest = half * shards * chunk, (half * shards + shards - 1) * chunk
        for first in range(0, chunk, block):
            last = min(first + block, chunk)
            here = slice(half * chunk + first, half * chunk + last)
            yield here, lowest + first, highest + last - 1


def _blocked(
    options: Options,
    shards: int,
    places_T: Int[Array, "T"],
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    segments_BT: Int[Array, "B T"],
    segments_BS: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """The same as `reference`, by blocks of queries that see only the keys from their window on to
    their end.

    Half of the products fall away, and keys are not repeated for their group of queries.

    Args:
      options: see `attend`.
      shards: of the context axis.
      places_T: where this shard's queries stand in the row; keys stand at 0, 1, ...
    """
    window_tokens = options.window_tokens
    q_BTNH = (q_BTNH.astype(jnp.float32) * options.scale).astype(q_BTNH.dtype)
    out = []
    for here, lowest, highest in _spans(k_BSKH.shape[1], shards):
        oldest = 0 if window_tokens is None else max(lowest - window_tokens + 1, 0)
        seen = slice(oldest, highest + 1)
        allowed_BTS = mask(
            segments_BT[:, here],
            segments_BS[:, seen],
            places_T[here],
            jnp.arange(oldest, highest + 1),
            window_tokens,
        )
        out.append(_block(options, q_BTNH[:, here], k_BSKH[:, seen], v_BSKH[:, seen], allowed_BTS))
    return checkpoint_name(jnp.concatenate(out, axis=1), NAME)


def _block(
    options: Options,
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    allowed_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    batch, length, heads, head_dim = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores_BKGTS = _einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH)
    scores_BKGTS = jnp.where(allowed_BTS[:, None, None], options.capped(scores_BKGTS), _MASKED)
    # The softmax's division comes after the product with v, on [T, H] instead of [T, S]; the
    # gradient through the maximum cancels.
    top_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(axis=-1, keepdims=True))
    raised_BKGTS = jnp.exp(scores_BKGTS - top_BKGT1)
    total_BKGT1 = raised_BKGTS.sum(axis=-1, keepdims=True)
    out_BKGTH = _einsum("BKGTS,BSKH->BKGTH", raised_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    out_BTKGH = (out_BKGTH / total_BKGT1).astype(v_BSKH.dtype).transpose(0, 3, 1, 2, 4)
    return out_BTKGH.reshape(batch, length, heads, head_dim)


def _einsum(spec: str, a: Array, b: Array) -> Array:
    """In float32, of operands in any dtype."""
    return products.wide(functools.partial(jnp.einsum, spec), a, b)
