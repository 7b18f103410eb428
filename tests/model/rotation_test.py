# SPDX-License-Identifier: Apache-2.0
"""Rotation by complex numbers; both ways to compute it, and their gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import rotation, sharding

WAYS = ("_by_halves", "_by_product")  # of a CPU, and of a TPU in bfloat16


@pytest.mark.parametrize("way", WAYS)
def test_rotation_pairs_a_dimension_with_its_half(way):
    x = np.arange(1.0, 9.0, dtype=np.float32).reshape(1, 1, 1, 8)
    freqs = np.array([1.0, 0.5, 0.25, 0.125], np.float32)
    angle = (3 * freqs)[None, None, None]
    cos, sin = (jnp.asarray(f(angle) * 1.5) for f in (np.cos, np.sin))
    found = getattr(rotation, way)(jnp.asarray(x), cos, sin)[0, 0, 0]
    for i in range(4):
        want = complex(x[0, 0, 0, i], x[0, 0, 0, i + 4]) * 1.5 * np.exp(1j * 3 * freqs[i])
        assert found[i] == pytest.approx(want.real, abs=1e-5)
        assert found[i + 4] == pytest.approx(want.imag, abs=1e-5)


def inputs(dtype, pairs):
    keys = jax.random.split(jax.random.key(3), 2)
    x = jax.random.normal(keys[0], (2, 6, 3, 16), dtype)
    angle = jax.random.normal(keys[1], (2, 6, 1, pairs)) * 4
    return x, jnp.cos(angle), jnp.sin(angle)


@pytest.mark.parametrize("pairs", [8, 5])
def test_the_exchange_by_a_product_is_exact(pairs):
    """In bfloat16 both ways round once, at the end: they differ in the order of a sum of two."""
    x, cos, sin = inputs(jnp.bfloat16, pairs)
    halves, product = (getattr(rotation, way)(x, cos, sin) for way in WAYS)
    assert product.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(product, np.float64), np.asarray(halves, np.float64), rtol=2**-8, atol=1e-6
    )
    np.testing.assert_array_equal(product[..., 2 * pairs :], x[..., 2 * pairs :])


@pytest.mark.parametrize("pairs", [8, 5])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_gradient_turns_back(monkeypatch, pairs, platform):
    """Against JAX's own derivative of the plain formula."""
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    x, cos, sin = inputs(jnp.float32, pairs)
    weights = jax.random.normal(jax.random.key(4), x.shape)
    ours = jax.grad(lambda x: (rotation.rotate(x, cos, sin) * weights).sum())(x)
    plain = jax.grad(lambda x: (rotation._by_halves(x, cos, sin) * weights).sum())(x)
    np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-6)
    low = x.astype(jnp.bfloat16)
    back = jax.grad(lambda x: (rotation.rotate(x, cos, sin) * weights).sum())(low)
    np.testing.assert_allclose(np.asarray(back, np.float32), plain, rtol=0.02, atol=0.02)


def test_a_tpu_in_bfloat16_exchanges_by_a_product(monkeypatch):
    def products(dtype):
        text = str(jax.make_jaxpr(rotation.rotate)(*inputs(dtype, 8)))
        return text.count("dot_general")

    assert products(jnp.bfloat16) == 0
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    jax.clear_caches()
    assert products(jnp.bfloat16) == 1 and products(jnp.float32) == 0
    jax.clear_caches()


@pytest.mark.parametrize("pairs", [8, 5])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_scale_multiplies_the_result_and_the_gradient(monkeypatch, pairs, platform):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    x, cos, sin = inputs(jnp.float32, pairs)
    for dtype, rtol in ((jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)):
        low = x.astype(dtype)
        scaled, back = jax.vjp(lambda x: rotation.rotate(x, cos, sin, 0.125), low)
        plain, plain_back = jax.vjp(lambda x: rotation.rotate(x, cos, sin), low)
        # An eighth is exact in every dtype.
        np.testing.assert_allclose(
            np.float32(scaled), np.float32(plain) / 8, rtol=rtol, atol=rtol / 8
        )
        np.testing.assert_allclose(
            np.float32(back(plain)[0]), np.float32(plain_back(plain)[0]) / 8, rtol=rtol, atol=rtol
        )
