# SPDX-License-Identifier: Apache-2.0
"""A Llama's train step as one would write it by hand in JAX, with Optax and a scan over layers."""

from collections.abc import Callable
from typing import Any

import contest
import jax
import jax.numpy as jnp
import optax

Arrays = dict[str, jax.Array]


def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + contest.NORM_EPS) * weight


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions on [rows, tokens, heads, head size]: pairs are i and i + half."""
    half = x.shape[-1] // 2
    frequencies = contest.ROPE_THETA ** (-jnp.arange(half) / half)
    angles = (jnp.arange(x.shape[1])[:, None] * frequencies)[:, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(size: contest.Size, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    group = size.heads // size.kv_heads
    k, v = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / size.head_dim**0.5
    causal = jnp.tril(jnp.ones((size.row_tokens, size.row_tokens), bool))
    shares = jax.nn.softmax(jnp.where(causal, scores, -1e30), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", shares, v)


def layer(size: contest.Size, x: jax.Array, weights: Arrays) -> jax.Array:
    def heads(y: jax.Array) -> jax.Array:
        return y.reshape(*y.shape[:2], -1, size.head_dim)

    y = norm(x, weights["attn_norm"])
    q, k = rotate(heads(y @ weights["wq"])), rotate(heads(y @ weights["wk"]))
    mixed = attention(size, q, k, heads(y @ weights["wv"]))
    x = x + mixed.reshape(x.shape) @ weights["wo"]
    y = norm(x, weights["mlp_norm"])
    return x + (jax.nn.silu(y @ weights["w_gate"]) * (y @ weights["w_up"])) @ weights["w_down"]


def loss(size: contest.Size, params: Arrays, tokens: jax.Array, targets: jax.Array) -> jax.Array:
    ends = {"embed", "head", "final_norm"}
    x = params["embed"][tokens]
    stacked = {name: weight for name, weight in params.items() if name not in ends}
    x, _ = jax.lax.scan(lambda x, weights: (layer(size, x, weights), None), x, stacked)
    logits = norm(x, params["final_norm"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def make(size: contest.Size) -> tuple[Callable[[], float], int]:
    optimizer = optax.chain(
        optax.clip_by_global_norm(contest.CLIP_NORM),
        optax.adamw(
            contest.LR, contest.B1, contest.B2, contest.EPS, weight_decay=contest.WEIGHT_DECAY
        ),
    )

    def step(params: Arrays, state: Any, tokens: jax.Array, targets: jax.Array) -> tuple:
        value, grads = jax.value_and_grad(lambda p: loss(size, p, tokens, targets))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params: Any = jax.device_put(contest.weights(size))
    state, batch = optimizer.init(params), jax.device_put(contest.tokens(size))

    def update() -> float:
        nonlocal params, state
        params, state, value = compiled(params, state, *batch)
        jax.block_until_ready(params)
        return float(value)

    return update, sum(x.size for x in jax.tree.leaves(params))


if __name__ == "__main__":
    contest.serve(make)
