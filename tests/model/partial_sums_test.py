# SPDX-License-Identifier: Apache-2.0
"""Sums over partial gradients become additions, and nothing else of a gradient changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from midjax.model import partial_sums, splash

TERMS, SHAPE = 3, (256, 256)


@jax.custom_vjp
def squares(x):
    return x * x


def _parts(x, g):
    """As a kernel that writes partial gradients does: their sum is the gradient."""
    parts = jnp.stack([g * x * share for share in (0.5, 1.0, 0.5)])
    return (jax.jit(lambda parts: parts.sum(axis=0))(parts),)


squares.defvjp(lambda x: (squares(x), x), _parts)


def function(constant, x, y):
    return squares(x) * constant["scale"] + jnp.sin(y)


def eqns(jaxpr):
    """All operations, of nested jaxprs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            eqn.params, is_leaf=lambda p: isinstance(p, core.ClosedJaxpr | core.Jaxpr)
        ):
            if isinstance(value, core.ClosedJaxpr):
                yield from eqns(value.jaxpr)
            elif isinstance(value, core.Jaxpr):
                yield from eqns(value)


def large_sums(called, *arguments):
    found = eqns(jax.make_jaxpr(called)(*arguments).jaxpr)
    shapes = [e.invars[0].aval.shape for e in found if e.primitive.name == "reduce_sum"]
    return [shape for shape in shapes if shape == (TERMS, *SHAPE)]


def both(x, y):
    """(gradients as JAX makes them, with additions), each a function of x and y."""
    scale = {"scale": jnp.float32(3.0), "table": np.arange(4, dtype=np.int32)}
    plain = jax.grad(lambda x, y: function(scale, x, y).sum(), argnums=(0, 1))
    added = partial_sums.gradient(function)
    return plain, jax.grad(lambda x, y: added(scale, x, y).sum(), argnums=(0, 1))


def test_the_gradient_is_the_same_and_has_no_long_sum():
    x, y = (jax.random.normal(jax.random.key(i), SHAPE) for i in range(2))
    plain, added = both(x, y)
    assert large_sums(plain, x, y) and not large_sums(added, x, y)
    for a, b in zip(plain(x, y), added(x, y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(added(x, y)[0], 6 * x, rtol=1e-6)  # d/dx 3 x^2


def test_under_jit_and_vmap_it_is_the_same():
    x, y = (jax.random.normal(jax.random.key(i), (2, *SHAPE)) for i in range(2))
    plain, added = both(x, y)
    for a, b in zip(plain(x, y), jax.jit(jax.vmap(added))(x, y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("saved", [True, False])
def test_a_policy_of_remat_finds_the_names_inside(saved):
    """The sine is computed once where its name is kept, and again for its gradient elsewhere."""

    def named(constant, x):
        return jnp.square(checkpoint_name(jnp.sin(x), "kept")) * constant

    called = partial_sums.gradient(named)
    policy = jax.checkpoint_policies.save_only_these_names(*(["kept"] if saved else []))
    layer = jax.checkpoint(functools.partial(called, 2.0), policy=policy)
    found = eqns(jax.make_jaxpr(jax.grad(lambda x: layer(x).sum()))(jnp.ones(4)).jaxpr)
    assert sum(e.primitive.name == "sin" for e in found) == (1 if saved else 2)


def test_the_fused_backward_pass_of_splash_ends_in_additions():
    """Two blocks of keys: the library sums two partial gradients of the queries."""
    tokens, heads = 2048, 1
    made = splash.kernel(
        tokens=tokens, shards=1, heads=heads, kv_heads=heads, head_dim=128, itemsize=2,
        window_tokens=None, softcap=None, device_kind="cpu", name="attention", interpret=True,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((1, tokens, heads, 128), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def loss(q, k, v, segments):
        return splash.attend(made, q, k, v, segments, segments, 1.0).astype(jnp.float32).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(x, x, x, segments).jaxpr
    sums = [e.invars[0].aval.shape for e in eqns(jaxpr) if e.primitive.name == "reduce_sum"]
    blocks = tokens // made.kwargs["block_sizes"].block_kv_dkv
    assert blocks > 1
    assert (1, blocks, heads, tokens, 128) not in sums
