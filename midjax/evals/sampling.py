# SPDX-License-Identifier: Apache-2.0
"""The next token from its logits: the likeliest, or drawn by temperature from a nucleus.

    logits --/ temperature--> --nucleus (top-p)--> + Gumbel noise --argmax--> token

The noise of token j of a continuation comes from (its key, j) alone, and `key_of` makes the key
from (seed, prompt, number of the sample): neither the batch nor the order has a part in it.

Shape suffixes: B rows, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt32

# What the rows of a batch need at most: a batch without random rows spends nothing on noise.
Policy = Literal["greedy", "whole", "nucleus"]


def policy_of(temperature: Sequence[float], top_p: Sequence[float]) -> Policy:
    """The least that serves all of these rows."""
    drawn = [p for t, p in zip(temperature, top_p, strict=True) if t > 0]
    if not drawn:
        return "greedy"
    return "nucleus" if min(drawn) < 1 else "whole"


def key_of(seed: int, prompt: Sequence[int], sample: int) -> UInt32[np.ndarray, "2"]:
    """The key of one continuation.

    Args:
      seed: of the request.
      prompt: its token ids.
      sample: which of the request's continuations, from 0.
    """
    text = f"{seed} {sample} {' '.join(map(str, prompt))}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint32)


def choose(
    policy: Policy,
    logits_BV: Float32[Array, "B V"],
    key_B2: UInt32[Array, "B 2"],
    number_B: Int[Array, "B"],
    temperature_B: Float[Array, "B"],
    top_p_B: Float[Array, "B"],
) -> Int[Array, "B"]:
    """A token for every row.

    Args:
      policy: from `policy_of` of these rows, or one that does more.
      logits_BV: scores of all tokens that may be chosen.
      key_B2: from `key_of`.
      number_B: j, the token's number within its continuation.
      temperature_B: 0 takes the likeliest token; of equal ones the first.
      top_p_B: see `nucleus`; 1 is all tokens.
    """
    likeliest_B = likeliest(logits_BV)
    if policy == "greedy":
        return likeliest_B
    is_drawn_B = temperature_B > 0
    scores_BV = logits_BV / jnp.where(is_drawn_B, temperature_B, 1)[:, None]
    if policy == "nucleus":
        scores_BV = jnp.where(nucleus(scores_BV, top_p_B), scores_BV, -jnp.inf)

    def noise(key_2: Array, number: Array) -> Array:
        key = jax.random.wrap_key_data(key_2, impl="threefry2x32")
        return jax.random.gumbel(jax.random.fold_in(key, number), scores_BV.shape[1:])

    drawn_B = jnp.argmax(scores_BV + jax.vmap(noise)(key_B2, number_B), axis=-1)
    return jnp.where(is_drawn_B, drawn_B, likeliest_B).astype(jnp.int32)


def likeliest(logits: Float32[Array, "*rest V"]) -> Int[Array, "*rest"]:
    """The first token with the highest score: argmax, which a CPU computes one number at a time."""
    vocab = logits.shape[-1]
    is_top = logits == logits.max(axis=-1, keepdims=True)
    first = jnp.where(is_top, jnp.arange(vocab, dtype=jnp.int32), vocab).min(axis=-1)
    return jnp.minimum(first, vocab - 1)  # nothing equals NaN


def nucleus(scores_BV: Float32[Array, "B V"], top_p_B: Float[Array, "B"]) -> Bool[Array, "B V"]:
    """True for the fewest likeliest tokens whose probabilities sum to top_p (1904.09751, section
    3.1); of tokens that are equally likely all are in or none.

    The least probability in it is found by bisection over the bits of a float32, which are in the
    order of the numbers: 31 sums over the vocabulary, where a sort of 100,000 numbers per token
    takes longer than many a model.
    """
    share_BV = jax.nn.softmax(scores_BV, axis=-1)
    bits_BV = jax.lax.bitcast_convert_type(share_BV, jnp.int32)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B, high_B = ends  # what lies at low and above sums to top_p; above high it does not
        middle_B = low_B + (high_B - low_B + 1) // 2
        above_B = jnp.sum(jnp.where(bits_BV >= middle_B[:, None], share_BV, 0), axis=-1)
        is_enough_B = above_B >= top_p_B
        return jnp.where(is_enough_B, middle_B, low_B), jnp.where(is_enough_B, high_B, middle_B - 1)

    zeros_B = jnp.zeros(len(scores_BV), jnp.int32)
    low_B, _ = jax.lax.fori_loop(0, 31, halve, (zeros_B, bits_BV.max(axis=-1)))
    # Rounded sums may reach 1 without the least likely tokens.
    return (bits_BV >= low_B[:, None]) | (top_p_B >= 1)[:, None]
