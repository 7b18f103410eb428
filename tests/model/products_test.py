# SPDX-License-Identifier: Apache-2.0
"""Float32 results of bfloat16 operands; and which dtypes multiply and sum in a whole model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from jax.extend import core

from midjax.model import products, transformer

RNG = np.random.default_rng(0)
# Every part whose gradient is a sum over tokens: norms, biases, embedding.
BIASED = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "qk_norm": "head"}


def test_the_result_is_not_rounded_and_gradients_are_those_of_rounded_ones():
    a, b = (jnp.asarray(RNG.standard_normal(shape), jnp.bfloat16) for shape in ((5, 64), (64, 7)))
    grad = jnp.asarray(RNG.standard_normal((5, 7)), jnp.float32)
    found, backward = jax.vjp(functools.partial(products.wide, jnp.matmul), a, b)
    a64, b64 = (np.asarray(x, np.float64) for x in (a, b))
    np.testing.assert_allclose(found, a64 @ b64, rtol=1e-5, atol=1e-5)
    rounded = np.asarray(grad.astype(jnp.bfloat16), np.float64)
    for one, want in zip(backward(grad), (rounded @ b64.T, a64.T @ rounded), strict=True):
        assert one.dtype == jnp.bfloat16
        # One rounding to bfloat16, at the end.
        np.testing.assert_allclose(np.float64(one), want, rtol=2**-8, atol=1e-6)


def operations(jaxpr):
    """(name, dtypes of the operands) of every operation, in loops and calls too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, {str(v.aval.dtype) for v in equation.invars}
        for inner in core.jaxprs_in_params(equation.params):
            yield from operations(inner)


@pytest.mark.parametrize("kwargs", [{}, BIASED, {"norm": "layer", "head_bias": True}], ids=str)
def test_bfloat16_multiplies_and_float32_sums(kwargs):
    """Both passes: an operand in float32 would be a silent upcast, a sum in bfloat16 would lose."""
    config = tiny_model.config(compute_dtype="bfloat16", loss_chunk_tokens=12, **kwargs)
    params, rows = transformer.abstract(config), tiny_model.rows(2, 24)

    def objective(params):
        hidden_BTD = transformer.hidden(config, params, *rows)
        return tiny_model.mean_loss(config, params, hidden_BTD, rows[0])

    made, shapes = jax.make_jaxpr(jax.grad(objective), return_shape=True)(params)
    found = [*operations(made.jaxpr)]
    dots = [dtypes for name, dtypes in found if name == "dot_general"]
    assert len(dots) > 20 and all(dtypes == {"bfloat16"} for dtypes in dots)
    sums = [dtypes for name, dtypes in found if name in ("reduce_sum", "cumsum", "scatter-add")]
    assert len(sums) > 5 and not any("bfloat16" in dtypes for dtypes in sums)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}
