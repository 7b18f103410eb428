# SPDX-License-Identifier: Apache-2.0
"""Rows of the embedding's table, and the gradient of the table a chunk of tokens at a time.

The gradient is a sum of rows at the tokens' places. For a TPU the compiler sorts the places first,
and a sort of 65,536 tokens takes it three seconds to compile: a tenth of a whole train step.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from midjax.model import sharding

# Tokens of a chunk, at most and at least: below, there would be many chunks for nothing.
_MOST_TOKENS, _LEAST_TOKENS = 4096, 1024


@jax.custom_vjp
def rows(table_VD: Float[Array, "V D"], tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """table_VD[tokens_BT], where the mesh splits the table along D, and the tokens not at all.

    Or where both are a device's own. The table's gradient has its dtype, and is summed in float32.
    """
    return jnp.take(table_VD, tokens_BT, axis=0)


def _forward(table_VD: Array, tokens_BT: Array) -> tuple[Array, tuple[Array, Array]]:
    # Of the table, the gradient needs shape and dtype alone.
    return rows(table_VD, tokens_BT), (table_VD, tokens_BT)


def _backward(kept: tuple[Array, Array], grad_BTD: Array) -> tuple[Array, None]:
    table_VD, tokens_BT = kept
    sums_VD = jnp.zeros_like(table_VD, dtype=jnp.float32)
    sums_VD = sharding.constrain(sums_VD, ("vocab", "embed"))
    chunk = math.gcd(tokens_BT.size, _MOST_TOKENS)
    if chunk < _LEAST_TOKENS or tokens_BT.size == chunk:
        return sums_VD.at[tokens_BT].add(grad_BTD).astype(table_VD.dtype), None

    def add(sums_VD: Array, piece: tuple[Array, Array]) -> tuple[Array, None]:
        tokens_C, grad_CD = piece
        return sums_VD.at[tokens_C].add(grad_CD), None

    pieces = tokens_BT.reshape(-1, chunk), grad_BTD.reshape(-1, chunk, grad_BTD.shape[-1])
    return jax.lax.scan(add, sums_VD, pieces)[0].astype(table_VD.dtype), None


rows.defvjp(_forward, _backward)
