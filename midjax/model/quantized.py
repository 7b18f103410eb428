# SPDX-License-Identifier: Apache-2.0
"""Training with matrix products in int8 or float8, through qwix. The only module that knows qwix.

    x [.., X], weights [X, Y] (compute dtype; the master weights stay float32)
       |  one scale per row of x and per column of the weights: absmax / largest of the format
       v
    x8, weights8 --one 8-bit product, summed in int32 or float32--> * both scales --> y [.., Y]

    gradient of x        = grad [.., Y] times weights over Y   8-bit with gradients "inputs", "all"
    gradient of weights  = x times grad over all rows          8-bit with gradients "all"

Every one of the three products scales its operands over what it sums over, so that a scale can be
taken out of the sum. Rounding is to nearest, and has the gradient of the identity. Nothing
is kept from step to step: there is no state, and no parameter knows of it.

qwix and not AQT: AQT's last release is of August 2025 and MaxText, its largest user, has declared
it deprecated in favour of qwix (its pull request 3912). Both compute with JAX 0.10.2; AQT asks for
a random key in every backward pass and rounds in the operands' dtype, which leaves a fifth more
error on bfloat16. Of qwix the functions on arrays are used, `quantize` and `dot_general`: its
`quantize_model` replaces functions of JAX around nnx modules that keep their own parameters, and
here a module is made anew around plain arrays inside a scan.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from midjax.model import architecture

# dtype of the config -> what operands of the forward pass are, and what gradients are. Gradients
# need range more than precision (2209.05433).
_FORMATS = {
    "int8": (jnp.int8, jnp.int8),
    "float8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}
# int8 goes down to -128: so many products of two fit into int32, whatever they are.
_MOST_INT8_TERMS = 2**31 // 128**2 - 1


def product(
    how: architecture.Quantization | None, part: architecture.QuantizedPart
) -> Callable[[Array, Array], Array]:
    """What multiplies in a part of a layer: x [.., X], weights [X, Y] -> [.., Y], in x's dtype."""
    if how is None or part not in how.parts:
        return jnp.matmul
    return functools.partial(matmul, how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def matmul(
    how: architecture.Quantization, x: Float[Array, "*rows X"], weights: Float[Array, "X Y"]
) -> Float[Array, "*rows Y"]:
    """x times weights in 8 bits: see the top of this file.

    Not a number, and infinity, in an operand come out as not a number.

    Args:
      how: the format, and which products of the backward pass have it.
      x, weights: of one dtype, which the result has too.

    Raises:
      ValueError: a sum could overflow: int8 over more than 131,071 terms.
    """
    forward, _ = _FORMATS[how.dtype]
    over = (x.ndim - 1,), (0,)
    return _in_8_bits((x, forward), (weights, forward), over).astype(x.dtype)


def _forward(how: architecture.Quantization, x: Array, weights: Array) -> Any:
    return matmul(how, x, weights), (x, weights)


def _backward(how: architecture.Quantization, kept: Any, grad: Array) -> Any:
    x, weights = kept
    forward, backward = _FORMATS[how.dtype]
    rows = tuple(range(x.ndim - 1))
    over_outer, over_rows = ((x.ndim - 1,), (1,)), (rows, rows)
    if how.gradients == "none":
        x_grad = jax.lax.dot_general(grad, weights, (over_outer, ((), ())))
    else:
        x_grad = _in_8_bits((grad, backward), (weights, forward), over_outer)
    if how.gradients == "all":
        weights_grad = _in_8_bits((x, forward), (grad, backward), over_rows)
    else:
        weights_grad = jax.lax.dot_general(x, grad, (over_rows, ((), ())))
    return x_grad.astype(x.dtype), weights_grad.astype(weights.dtype)


matmul.defvjp(_forward, _backward)


def _in_8_bits(
    a: tuple[Array, Any], b: tuple[Array, Any], over: tuple[Sequence[int], Sequence[int]]
) -> Array:
    """The product of two (array, format) over axes of the first and of the second, float32."""
    import qwix  # here: only who quantises waits for it

    def quantized(given: tuple[Array, Any], summed: Sequence[int]) -> qwix.QArray:
        array, dtype = given
        own = [axis for axis in range(array.ndim) if axis not in summed]
        # In float32, or qwix would divide and scale in bfloat16.
        return qwix.quantize(array.astype(jnp.float32), dtype, channelwise_axes=own)

    terms = 1
    for axis in over[0]:
        terms *= a[0].shape[axis]
    if a[1] == jnp.int8 and terms > _MOST_INT8_TERMS:
        raise ValueError(
            f"A product in int8 would sum {terms} terms, and int32 is sure to hold "
            f"{_MOST_INT8_TERMS}. Where these are the tokens of a microbatch, raise "
            "Train.microbatches or set Quantization.gradients = 'inputs'; else use 'float8'."
        )
    return qwix.dot_general(quantized(a, over[0]), quantized(b, over[1]), (over, ((), ())))
