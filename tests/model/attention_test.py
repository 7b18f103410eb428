# SPDX-License-Identifier: Apache-2.0
"""Attention against a loop over documents in NumPy, and the blocked form against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import attention


def inputs(batch, length, heads, kv_heads, head_dim, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    q = jax.random.normal(keys[0], (batch, length, heads, head_dim))
    k, v = (jax.random.normal(key, (batch, length, kv_heads, head_dim)) for key in keys[1:])
    return q, k, v


def by_loops(q, k, v, segments, scale):
    """float64, one query at a time, over the keys that it may see."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, group = np.zeros_like(q), q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(*q.shape[:3]):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        scores = scale * k[b, seen, n // group] @ q[b, t, n]
        share = np.exp(scores - scores.max())
        out[b, t, n] = share / share.sum() @ v[b, seen, n // group]
    return out


@pytest.mark.parametrize("attend", [attention.reference, attention.blocked])
def test_equals_loops(attend):
    q, k, v = inputs(2, 13, 6, 2, 8)
    segments = np.array([[1] * 5 + [2] * 4 + [3] * 4, [1] * 10 + [0] * 3], np.int32)
    found = attend(q, k, v, jnp.asarray(segments), 0.37)
    np.testing.assert_allclose(found, by_loops(q, k, v, segments, 0.37), atol=2e-6)


# Under one block; two blocks and a shorter one.
@pytest.mark.parametrize("length", [100, 300])
def test_blocked_equals_reference_with_gradients(length):
    q, k, v = inputs(2, length, 4, 2, 8, seed=length)
    cuts = np.sort(np.random.default_rng(0).integers(0, length, (2, 5)), axis=1)
    segments = jnp.asarray((np.arange(length)[None, :, None] >= cuts[:, None]).sum(-1), jnp.int32)

    def total(attend, *qkv):
        out = attend(*qkv, segments, 0.35)
        return jnp.sum(out * jnp.sin(jnp.arange(out.size).reshape(out.shape))), out

    results = [
        jax.grad(total, argnums=(1, 2, 3), has_aux=True)(attend, q, k, v)
        for attend in (attention.reference, attention.blocked)
    ]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("attend", [attention.reference, attention.blocked])
def test_huge_scores_and_padding_stay_finite(attend):
    q, k, v = inputs(1, 6, 2, 2, 4)
    segments = jnp.array([[1, 1, 1, 0, 0, 0]])

    def total(q, k, v):
        return attend(q * 1e4, k * 1e4, v, segments, 1.0).sum()

    assert all(
        jnp.isfinite(x).all() for x in (total(q, k, v), *jax.grad(total, (0, 1, 2))(q, k, v))
    )


def test_bfloat16_keeps_its_dtype():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(1, 9, 4, 2, 8))
    segments = jnp.ones((1, 9), jnp.int32)
    outs = [f(q, k, v, segments, 0.35) for f in (attention.reference, attention.blocked)]
    assert all(out.dtype == jnp.bfloat16 for out in outs)
    np.testing.assert_allclose(*(np.asarray(out, np.float32) for out in outs), atol=0.03)
