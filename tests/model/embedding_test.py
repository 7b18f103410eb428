# SPDX-License-Identifier: Apache-2.0
"""The gradient of the table against NumPy's sum of rows, in one chunk and in several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import embedding


# One chunk; three of 4,096; a number of tokens that has no chunk; 5 of 1,024.
@pytest.mark.parametrize("shape", [(1, 4096), (3, 4096), (11, 401), (5, 1024)])
def test_rows_and_their_gradient_are_numpys(shape):
    draw = np.random.default_rng(sum(shape))
    table, grads = draw.normal(size=(50, 4)), draw.normal(size=(*shape, 4))
    tokens = draw.integers(0, 50, shape)
    found, pullback = jax.vjp(
        lambda table: embedding.rows(table, jnp.asarray(tokens)), jnp.asarray(table, jnp.float32)
    )
    np.testing.assert_array_equal(found, table[tokens].astype(np.float32))
    want = np.zeros_like(table)
    np.add.at(want, tokens, grads)
    (of_table,) = pullback(jnp.asarray(grads, jnp.float32))
    np.testing.assert_allclose(of_table, want, rtol=1e-4, atol=1e-4)


def test_a_gradient_in_bfloat16_is_summed_in_float32():
    """A sum in bfloat16 would stay at 256, where 1 more is rounded away."""
    table, tokens = jnp.zeros((3, 2), jnp.bfloat16), jnp.ones((2, 4096), int)
    found, pullback = jax.vjp(lambda table: embedding.rows(table, tokens), table)
    (of_table,) = pullback(jnp.ones_like(found))
    assert of_table.dtype == jnp.bfloat16
    np.testing.assert_array_equal(of_table.astype(jnp.float32), [[0, 0], [8192, 8192], [0, 0]])


def test_a_long_batch_is_summed_in_chunks():
    def total(table, tokens):
        return embedding.rows(table, tokens).sum()

    def scatters(tokens):
        text = str(jax.make_jaxpr(jax.grad(total))(jnp.ones((50, 4)), jnp.zeros(tokens, int)))
        return "scan[" in text, text.count("scatter-add")

    assert scatters((2, 4096)) == (True, 1)
    assert scatters((1, 4096)) == scatters((11, 401)) == (False, 1)
