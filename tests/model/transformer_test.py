# SPDX-License-Identifier: Apache-2.0
"""The model against a float64 rewrite in NumPy, and the invariants of packing and remat."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from midjax.model import rope, transformer

apply = jax.jit(transformer.apply, static_argnums=0)


def by_numpy(config, params, tokens, segments, positions):
    """Logits in float64, one row and one head at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    freqs, factor = rope.frequencies(config.rope, config.head_dim)

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * weight

    def turn(x, at):
        half = config.head_dim // 2
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * at[:, None] * np.float64(freqs))
        return np.concatenate([z.real, z.imag], -1) * factor

    out = []
    for ids, segs, at in zip(*map(np.asarray, (tokens, segments, positions)), strict=True):
        x = p["embed"][ids]
        may = (segs[:, None] == segs[None]) & np.tri(len(ids), dtype=bool)
        for i in range(config.layers):
            w = {name: leaf[i] for name, leaf in p["layers"].items()}
            y, added = norm(x, w["attn_norm"]), 0
            for n in range(config.heads):
                k = n // (config.heads // config.kv_heads)
                q_n, k_n = turn(y @ w["wq"][:, n], at), turn(y @ w["wk"][:, k], at)
                scores = np.where(may, q_n @ k_n.T / np.sqrt(config.head_dim), -np.inf)
                share = np.exp(scores - scores.max(-1, keepdims=True))
                share /= share.sum(-1, keepdims=True)
                added = added + share @ (y @ w["wv"][:, k]) @ w["wo"][n]
            x = x + added
            y = norm(x, w["mlp_norm"])
            gate = y @ w["w_gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (y @ w["w_up"])) @ w["w_down"]
        head = p["embed"].T if config.tied_head else p["head"]
        out.append(norm(x, p["final_norm"]) @ head)
    return np.stack(out)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["none", "yarn"])
def test_logits_equal_numpy(kind, tied):
    config = tiny_model.config(rope=tiny_model.ROPES[kind], tied_head=tied)
    params, rows = tiny_model.params(config), tiny_model.rows(2, 40)
    want = by_numpy(config, params, *rows)
    np.testing.assert_allclose(apply(config, params, *rows), want, atol=2e-5)


def test_a_packed_document_computes_what_it_computes_alone():
    config = tiny_model.config(rope=tiny_model.YARN)
    params, (tokens, segments, positions) = tiny_model.params(config), tiny_model.rows(1, 50)
    packed = apply(config, params, tokens, segments, positions)
    for number in (1, 2, 3):
        (at,) = np.nonzero(np.asarray(segments[0]) == number)
        ones = jnp.ones((1, len(at)), jnp.int32)
        alone = apply(config, params, tokens[:, at], ones, jnp.arange(len(at))[None])
        np.testing.assert_allclose(packed[:, at], alone, atol=2e-5)


def gradients(config, params, rows):
    def objective(params):
        hidden = transformer.hidden(config, params, *rows)
        return tiny_model.mean_loss(config, params, hidden, rows[0], 1e-2)

    return jax.jit(jax.value_and_grad(objective))(params)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
    config = tiny_model.config(tied_head=True)
    params, rows = tiny_model.params(config), tiny_model.rows(2, 24)
    want = gradients(config, params, rows)
    found = gradients(dataclasses.replace(config, remat=remat), params, rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), want, found)


def test_bfloat16_compute_keeps_float32_params_and_logits():
    config = tiny_model.config()
    params, rows = tiny_model.params(config), tiny_model.rows(2, 24)
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    hidden = transformer.hidden(half, params, *rows)
    scores = transformer.logits(half, params, hidden)
    assert (hidden.dtype, scores.dtype) == (jnp.bfloat16, jnp.float32)
    exact = apply(config, params, *rows)
    error = np.abs(scores - exact).max()
    assert 0 < error < 0.05 * np.abs(exact).max()
    _, grads = gradients(half, params, rows)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("tied", [False, True])
def test_shapes_axes_and_count_agree(tied):
    config = tiny_model.config(tied_head=tied)
    params, shapes = transformer.init(config, jax.random.key(0)), transformer.abstract(config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    D, L, V, F = 32, 3, 96, 48
    per_layer = 2 * D + D * (4 + 2 + 2 + 4) * 16 + 3 * D * F
    assert transformer.parameter_count(config) == L * per_layer + D + (1 if tied else 2) * V * D
    axes = transformer.logical_axes(config)
    assert ("head" in params) == (not tied)
    assert axes["layers"]["wo"] == ("layers", "heads", "head_dim", "embed")
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    flat = zip(jax.tree.leaves(axes, is_leaf=is_axes), jax.tree.leaves(params), strict=True)
    assert all(len(names) == leaf.ndim for names, leaf in flat)
    assert jax.tree.structure(axes, is_leaf=is_axes) == jax.tree.structure(params)


def test_init_has_the_asked_spread_and_layers_differ():
    config = tiny_model.config(dim=64, initializer_std=0.02, param_dtype="bfloat16")
    params = transformer.init(config, jax.random.key(3))
    w_up = np.asarray(params["layers"]["w_up"], np.float64)
    assert w_up.std() == pytest.approx(0.02, rel=0.03)
    assert abs(w_up.mean()) < 5e-4
    assert not np.array_equal(w_up[0], w_up[1])
    assert not np.array_equal(params["layers"]["w_up"], params["layers"]["w_gate"])
    assert (params["final_norm"] == 1).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_heads": 3}, "kv_heads must divide heads"),
        ({"layers": 0}, "layers must be 1 or more"),
        ({"head_dim": 5}, "even"),
        ({"norm_eps": 0.0}, "over 0"),
    ],
)
def test_bad_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.config(**fields)


@pytest.mark.parametrize("field", ["remat", "compute_dtype", "param_dtype"])
def test_unknown_choice_is_refused(field):
    with pytest.raises((ValueError, TypeError), match="float8"):
        tiny_model.config(**{field: "float8"})


@pytest.mark.parametrize("tied_head", [False, True])
def test_the_heads_scale_and_dtype(tied_head):
    plain = tiny_model.config(tied_head=tied_head)
    params, rows = tiny_model.params(plain), tiny_model.rows(2, 16)
    apply = jax.jit(transformer.apply, static_argnums=0)
    before = apply(plain, params, *rows)
    scaled = dataclasses.replace(plain, logits_scale=0.25)
    np.testing.assert_allclose(apply(scaled, params, *rows), 0.25 * before, rtol=1e-5, atol=1e-6)
    # Rounding the head's weights by hand, and nothing else, gives the same.
    rounded = dataclasses.replace(plain, head_dtype="bfloat16")
    hidden = transformer.hidden(plain, params, *rows)
    name = "embed" if tied_head else "head"
    by_hand = params | {name: params[name].astype(jnp.bfloat16).astype(jnp.float32)}
    found = apply(rounded, params, *rows)
    np.testing.assert_allclose(
        found, transformer.logits(plain, by_hand, hidden), rtol=1e-5, atol=1e-5
    )
    assert np.abs(found - before).max() > 1e-4
