# SPDX-License-Identifier: Apache-2.0
"""Attention: causal, within a document, grouped queries.

`reference` is the definition; `blocked` computes the same and is what the model uses.

Shape suffixes: B batch, T query length, S key length, N query heads, K key and value heads,
G = N / K query heads per key head, H head size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Finite, so that no row can turn into NaN.
_MASKED = -1e30

# Blocks of queries: enough to skip most of the upper triangle, few enough to unroll.
_MOST_BLOCKS = 4
_LEAST_BLOCK_TOKENS = 128


def mask(
    segments_BT: Int[Array, "B T"], keys_BS: Int[Array, "B S"], first: int
) -> Bool[Array, "B T S"]:
    """True where a query may look at a key: not later than itself and of the same segment.

    Padding is a segment of its own (0), so every query sees at least itself.

    Args:
      segments_BT: segments of the queries, which stand at first, first + 1, ...
      keys_BS: segments of the keys, which stand at 0, 1, ...
      first: place of the first query in the row.
    """
    queries_T = first + jnp.arange(segments_BT.shape[1])
    causal_TS = queries_T[:, None] >= jnp.arange(keys_BS.shape[1])
    return causal_TS & (segments_BT[:, :, None] == keys_BS[:, None, :])


def reference(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
    scale: float,
) -> Float[Array, "B T N H"]:
    """softmax(scale q k^T) v within a document: the measure for every faster kernel.

    The softmax is in float32. Materialises [B, N, T, T] scores.
    """
    group = q_BTNH.shape[2] // k_BTKH.shape[2]
    k_BTNH, v_BTNH = (jnp.repeat(x, group, axis=2) for x in (k_BTKH, v_BTKH))
    scores_BNTS = scale * jnp.einsum(
        "BTNH,BSNH->BNTS", q_BTNH, k_BTNH, preferred_element_type=jnp.float32
    )
    allowed_BTS = mask(segments_BT, segments_BT, 0)
    share_BNTS = jax.nn.softmax(jnp.where(allowed_BTS[:, None], scores_BNTS, _MASKED), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", share_BNTS.astype(v_BTNH.dtype), v_BTNH)


def _block(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    allowed_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    batch, length, heads, head_dim = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    scores_BKGTS = jnp.where(allowed_BTS[:, None, None], scores_BKGTS, _MASKED)
    # The softmax's division comes after the product with v, on [T, H] instead of [T, S]; the
    # gradient through the maximum cancels.
    top_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(axis=-1, keepdims=True))
    raised_BKGTS = jnp.exp(scores_BKGTS - top_BKGT1)
    total_BKGT1 = raised_BKGTS.sum(axis=-1, keepdims=True)
    out_BKGTH = jnp.einsum(
        "BKGTS,BSKH->BKGTH",
        raised_BKGTS.astype(v_BSKH.dtype),
        v_BSKH,
        preferred_element_type=jnp.float32,
    )
    out_BTKGH = (out_BKGTH / total_BKGT1).astype(v_BSKH.dtype).transpose(0, 3, 1, 2, 4)
    return out_BTKGH.reshape(batch, length, heads, head_dim)


def blocked(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
    scale: float,
) -> Float[Array, "B T N H"]:
    """The same as `reference`, by blocks of queries that see only the keys before their end.

    Half of the products fall away, and keys are not repeated for their group of queries.
    """
    length = q_BTNH.shape[1]
    block = max(-(-length // _MOST_BLOCKS), _LEAST_BLOCK_TOKENS)
    q_BTNH = q_BTNH * scale
    out = []
    for first in range(0, length, block):
        here, seen = slice(first, first + block), slice(0, min(first + block, length))
        allowed_BTS = mask(segments_BT[:, here], segments_BT[:, seen], first)
        out.append(_block(q_BTNH[:, here], k_BTKH[:, seen], v_BTKH[:, seen], allowed_BTS))
    return jnp.concatenate(out, axis=1)
