# SPDX-License-Identifier: Apache-2.0
"""Policies change what is made again, and no number."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from midjax.model import remat, transformer

POLICIES = typing.get_args(remat.Remat)


def objective(policy):
    config = tiny_model.config(layers=9, remat=policy)  # a loop, with every policy
    rows = tiny_model.rows(2, 24)
    return config, lambda params: jnp.square(transformer.apply(config, params, *rows)).mean()


@pytest.fixture(scope="module")
def plain():
    config, loss = objective("none")
    params = tiny_model.params(config)
    return params, jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "none"])
def test_gradients_are_those_without_remat(policy, plain):
    params, want = plain
    found = jax.jit(jax.grad(objective(policy)[1]))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)


def products(policy, params):
    """Matrix products in the program, and whether it moves anything to the host."""
    text = str(jax.make_jaxpr(jax.grad(objective(policy)[1]))(params))
    return text.count("dot_general"), "host" in text


def test_what_is_kept_is_not_made_again(plain):
    count = {policy: products(policy, plain[0])[0] for policy in POLICIES}
    # Blocked attention makes its scores again whatever is saved, so that `save_attention` saves
    # products only with a kernel that keeps what its backward pass needs.
    assert count["none"] < count["save_projections"] < count["save_attention"] <= count["full"]
    assert count["none"] < count["dots"] < count["full"]
    for name in ("inputs", "attention", "projections"):
        kept = {"inputs": "full"}.get(name, f"save_{name}")
        assert count[f"offload_{name}"] == count[kept]


def test_only_offloading_uses_the_host(plain):
    for policy in POLICIES:
        assert products(policy, plain[0])[1] == policy.startswith("offload"), policy
