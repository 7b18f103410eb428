# SPDX-License-Identifier: Apache-2.0
"""Norms and activations against their formulas; which parameters a layer declares."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from flax import nnx

from midjax.model import architecture, layers

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 8)).astype(np.float32)
WEIGHT, BIAS = (RNG.standard_normal(8).astype(np.float32) for _ in range(2))


def test_rms_norm():
    x = X.astype(np.float64)
    unit = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    found = layers.scale_norm(jnp.asarray(X), jnp.asarray(WEIGHT), 1e-5, "rms")
    np.testing.assert_allclose(found, unit * WEIGHT, rtol=1e-5)
    found = layers.scale_norm(jnp.asarray(X), jnp.asarray(WEIGHT), 1e-5, "rms_plus_one")
    np.testing.assert_allclose(found, unit * (1 + WEIGHT), rtol=1e-5, atol=1e-6)


def test_layer_norm():
    x = X.astype(np.float64)
    unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    found = layers.layer_norm(jnp.asarray(X), jnp.asarray(WEIGHT), jnp.asarray(BIAS), 1e-5)
    np.testing.assert_allclose(found, unit * WEIGHT + BIAS, rtol=1e-4, atol=1e-6)


def test_the_dtype_is_that_of_the_stream():
    x = jnp.asarray(X, jnp.bfloat16)
    for kind in ("rms", "rms_plus_one"):
        assert layers.scale_norm(x, jnp.asarray(WEIGHT), 1e-5, kind).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("gelu", lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
        (
            "gelu_tanh",
            lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
    ],
)
def test_activations(name, formula):
    x = np.linspace(-4, 4, 33)
    want = [formula(value) for value in x]
    np.testing.assert_allclose(layers.activation(name)(jnp.float32(x)), want, atol=2e-6)


def declared(has_experts=False, **kwargs):
    made = layers.Layer(
        tiny_model.config(**kwargs), "full", has_experts, keys=layers.Keys(jax.random.key(0))
    )
    return {name: leaf.shape for name, leaf in nnx.to_pure_dict(nnx.split(made)[1]).items()}


def test_a_layer_declares_what_its_model_has():
    matrices = {"wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"}
    assert set(declared()) == matrices | {"attn_norm", "mlp_norm"}
    assert set(declared(norm_placement="post")) == matrices | {"attn_post_norm", "mlp_post_norm"}
    both = declared(norm_placement="both", norm="layer")
    norms = {
        f"{a}{b}_norm{c}" for a in ("attn", "mlp") for b in ("", "_post") for c in ("", "_bias")
    }
    assert set(both) == matrices | norms
    head = declared(qk_norm="head", qkv_bias=True)
    assert head["q_norm"] == head["k_norm"] == (16,) and head["k_bias"] == (2, 16)
    whole = declared(qk_norm="whole", out_bias=True, mlp_bias=True)
    assert whole["q_norm"] == (4, 16) and whole["k_norm"] == (2, 16)
    assert whole["out_bias"] == whole["down_bias"] == (32,) and whole["up_bias"] == (48,)


def test_keys_are_those_that_nnx_would_draw_one_by_one():
    ours, theirs = layers.Keys(jax.random.key(5)), nnx.Rngs(params=jax.random.key(5))
    for _ in range(12):
        mine, other = jax.random.key_data(ours()), jax.random.key_data(theirs.params())
        np.testing.assert_array_equal(mine, other)


def test_experts_stand_in_place_of_the_mlp():
    found = declared(True, experts=architecture.Experts(count=3, per_token=2, ffn_dim=5))
    assert "w_gate" not in found and found["router"] == (32, 3)
    assert found["expert_up"] == (3, 32, 5) and found["expert_down"] == (3, 5, 32)


def test_norms_start_as_the_identity():
    for norm in ("rms", "rms_plus_one", "layer"):
        config = tiny_model.config(norm=norm, qk_norm="head", norm_eps=1e-12)
        made = layers.Layer(config, "full", False, keys=layers.Keys(jax.random.key(0)))
        x = jnp.asarray(RNG.standard_normal((1, 2, 32)), jnp.float32)
        y = made._norm("attn_norm", x)
        centred = x - x.mean(-1, keepdims=True) if norm == "layer" else x
        want = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True))
        np.testing.assert_allclose(y, want, atol=1e-5)
        assert jax.tree.leaves(nnx.split(made)[1])


@pytest.mark.parametrize(
    ("shape", "weights"), [((2, 3, 8), (8, 4, 6)), ((2, 3, 4, 6), (4, 6, 8)), ((2, 3, 8), (8, 5))]
)
def test_a_tpu_projects_with_axes_apart(monkeypatch, shape, weights):
    """The same numbers and gradients as one product of two matrices."""
    rng = np.random.default_rng(1)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (shape, weights))

    def project(x, w):
        return layers.project(x, w, "float32")

    flat, back = jax.vjp(project, x, w)
    monkeypatch.setattr(layers.sharding, "platform", lambda: "tpu")
    apart, apart_back = jax.vjp(project, x, w)
    assert apart.shape == flat.shape == (*shape[:2], *weights[len(shape) - 2 :])
    np.testing.assert_allclose(apart, flat, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(apart_back(flat), back(flat), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    assert "reshape" not in str(jax.make_jaxpr(project)(x, w))
