# SPDX-License-Identifier: Apache-2.0
"""A product whose result is float32 and whose operands are not.

    wide(product, a, b)  --forward-->   a, b in bfloat16, summed and returned in float32
                         --backward-->  the gradient rounded to bfloat16, then products as forward

Asked for a float32 result alone, JAX would give the backward pass float32 gradients beside bfloat16
operands, and its products would be float32 ones.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

Product = Callable[..., Array]


def wide(
    product: Product, a: Float[Array, "*a_shape"], b: Float[Array, "*b_shape"]
) -> Float32[Array, "..."]:
    """`product(a, b)` in float32, with a backward pass in the operands' dtype.

    Args:
      product: bilinear, and takes `preferred_element_type`: `jnp.matmul`, or `jnp.einsum` with its
        first argument bound.
      a, b: of one dtype.
    """
    if a.dtype == jnp.float32:
        return product(a, b, preferred_element_type=jnp.float32)
    return _wide(product, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide(product: Product, a: Array, b: Array) -> Array:
    return product(a, b, preferred_element_type=jnp.float32)


def _forward(product: Product, a: Array, b: Array) -> Any:
    return _wide(product, a, b), (a, b)


def _backward(product: Product, kept: Any, grad: Array) -> Any:
    a, b = kept
    grad = grad.astype(a.dtype)
    (a_grad,) = jax.linear_transpose(lambda a: product(a, b), a)(grad)
    (b_grad,) = jax.linear_transpose(lambda b: product(a, b), b)(grad)
    return a_grad, b_grad


_wide.defvjp(_forward, _backward)
