# SPDX-License-Identifier: Apache-2.0
"""Losses against SciPy-like float64 arithmetic, and chunks against the whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from midjax.model import loss


def inputs(config, length=20):
    params = tiny_model.params(config)
    hidden = jax.random.normal(jax.random.key(1), (3, length, config.dim))
    targets = jax.random.randint(jax.random.key(2), (3, length), 0, config.vocab_size)
    return params, hidden, targets


@pytest.mark.parametrize("tied", [False, True])
def test_equals_the_definition(tied):
    config = tiny_model.config(tied_head=tied)
    params, hidden, targets = inputs(config)
    nll, log_z = loss.token_losses(config, params, hidden, targets)
    head = np.asarray(params["embed"]).T if tied else np.asarray(params["head"])
    scores = np.asarray(hidden, np.float64) @ head.astype(np.float64)
    want_z = np.log(np.exp(scores).sum(-1))
    picked = np.take_along_axis(scores, np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_z, want_z, atol=1e-5)
    np.testing.assert_allclose(nll, want_z - picked, atol=1e-5)


@pytest.mark.parametrize("head_dtype", ["float32", "bfloat16"])
def test_a_head_in_another_dtype_than_the_rest_learns(head_dtype):
    """As if its inputs had been widened by hand; its weights are rounded to the dtype."""
    other = {"float32": "bfloat16", "bfloat16": "float32"}[head_dtype]
    config = tiny_model.config(compute_dtype=other, head_dtype=head_dtype)
    params, hidden, targets = inputs(config)
    hidden = hidden.astype(other)

    def mean(head, hidden):
        return tiny_model.mean_loss(config, params | {"head": head}, hidden, targets)

    def by_hand(head, hidden):
        scores = hidden.astype(jnp.float32) @ head.astype(head_dtype).astype(jnp.float32)
        picked = jnp.take_along_axis(scores, targets[..., None], -1)[..., 0]
        return (jax.nn.logsumexp(scores, axis=-1) - picked).mean()

    given = (params["head"], hidden)
    for found, want in zip(
        *(jax.grad(of, argnums=(0, 1))(*given) for of in (mean, by_hand)), strict=True
    ):
        assert found.dtype == want.dtype
        np.testing.assert_allclose(np.float32(found), np.float32(want), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 7, 19, 20])
def test_chunks_change_nothing(chunk, tied):
    """Nor does it that gradients are made with the logits: JAX differentiates the whole."""
    whole = tiny_model.config(tied_head=tied)
    params, hidden, targets = inputs(whole)
    weights = jax.random.uniform(jax.random.key(3), targets.shape).at[:, ::3].set(0)

    def in_chunks(params, hidden):
        config = dataclasses.replace(whole, loss_chunk_tokens=chunk)
        value, both = loss.objective(config, params, hidden, targets, weights, 0.3)
        return 5 * value, both

    def plain(params, hidden):
        nll, log_z = both = loss.token_losses(whole, params, hidden, targets)
        return 5 * (weights * (nll + 0.3 * jnp.square(log_z))).sum(), both

    found, want = (
        jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))(params, hidden)
        for of in (in_chunks, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-4), found, want)


def test_losses_beside_the_objective_have_no_gradient():
    config = tiny_model.config(loss_chunk_tokens=7)
    params, hidden, targets = inputs(config)

    def told(hidden):
        weights = jnp.ones(targets.shape)
        return loss.objective(config, params, hidden, targets, weights, 0.0)[1][0].sum()

    assert not jax.grad(told)(hidden).any()


def test_a_place_without_weight_may_have_an_infinite_loss():
    config = tiny_model.config(loss_chunk_tokens=7)
    params, hidden, targets = inputs(config)
    params["head"] = params["head"].at[:, 0].set(-jnp.inf)
    hidden, targets = jnp.abs(hidden), targets.at[:].set(1).at[0, 0].set(0)
    weights = jnp.ones(targets.shape).at[0, 0].set(0)
    value, (nll, _) = loss.objective(config, params, hidden, targets, weights, 0.0)
    assert nll[0, 0] == jnp.inf and jnp.isfinite(value)


def test_no_array_of_all_logits_when_chunked():
    config = tiny_model.config(vocab_size=1000, loss_chunk_tokens=5)
    params, hidden, targets = inputs(config)

    def objective(params, hidden):
        return tiny_model.mean_loss(config, params, hidden, targets)

    compiled = jax.jit(jax.grad(objective, (0, 1))).lower(params, hidden).compile().as_text()
    assert "3,5,1000]" in compiled or "15,1000]" in compiled
    assert "3,20,1000]" not in compiled and "60,1000]" not in compiled


def test_huge_logits_stay_finite():
    config = tiny_model.config()
    params, hidden, targets = inputs(config)

    def objective(hidden):
        return tiny_model.mean_loss(config, params, hidden, targets)

    value, grad = jax.value_and_grad(objective)(hidden * 1e6)
    assert jnp.isfinite(value) and jnp.isfinite(grad).all()
