# SPDX-License-Identifier: Apache-2.0
"""Digests tell every change of an array, and nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest

from midjax import trees


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_digest_sees_bits_and_places(dtype):
    x = jnp.arange(24).reshape(2, 3, 4).astype(dtype)
    digest = trees.digests({"x": x})["x"]
    assert digest == trees.digests({"x": jnp.array(np.array(x))})["x"]
    swapped = x.at[0, 0, 1].set(x[1, 2, 3]).at[1, 2, 3].set(x[0, 0, 1])
    for other in (x.at[1, 1, 1].set(0), swapped, jnp.flip(x, 0), x.swapaxes(0, 1)):
        assert trees.digests({"x": other})["x"] != digest
    if dtype in ("float32", "bfloat16"):
        assert trees.digests({"x": -x})["x"] != digest
        zero = jnp.zeros(3, dtype)
        assert trees.digests({"x": -zero})["x"] != trees.digests({"x": zero})["x"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_unordered_digest_sees_numbers_and_not_their_places(dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(1, 90, (4, 6)), dtype)
    digest = int(trees.unordered_digest(x))
    for same in (x.T, x.reshape(-1)[::-1], x.reshape(2, 12), x[jnp.array([2, 0, 3, 1])]):
        assert int(trees.unordered_digest(same)) == digest
    for other in (x.at[0, 0].add(1), -x, x[:3], x.at[0].set(x[1])):
        assert int(trees.unordered_digest(other)) != digest


def test_nested_is_the_tree_of_its_named_leaves():
    tree = {"embed": 1, "layers": {"wq": 2, "wo": (3, 4)}}
    named = trees.named_leaves(tree, is_leaf=lambda node: isinstance(node, tuple))
    assert dict(named) == {"embed": 1, "layers/wq": 2, "layers/wo": (3, 4)}
    assert trees.nested(dict(named)) == tree
