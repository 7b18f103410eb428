# SPDX-License-Identifier: Apache-2.0
"""Queries and keys turned by the angles of `rope.angles`, as fast as a TPU does it.

Shape suffixes: B batch, T length, N heads, H head size, J the same after an exchange, R rotated
pairs: dimension i of a head turns with dimension i + R.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from midjax.model import sharding


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def rotate(
    x_BTNH: Float[Array, "B T N H"],
    cos_BT1R: Float32[Array, "B T 1 R"],
    sin_BT1R: Float32[Array, "B T 1 R"],
    scale: float = 1.0,
) -> Float[Array, "B T N H"]:
    """Turns queries or keys by the given angles, in float32; the result has the input's dtype.

    The first 2R dimensions turn, the rest of the head passes through; all are multiplied by
    `scale`. The gradient turns back by the same angles, which have none themselves.
    """
    pairs = cos_BT1R.shape[-1]
    assert 2 * pairs <= x_BTNH.shape[-1], "more angles than the head has pairs"
    turn = (
        _by_product if x_BTNH.dtype == jnp.bfloat16 and sharding.platform() == "tpu" else _by_halves
    )
    return turn(x_BTNH, cos_BT1R, sin_BT1R, scale)


def _by_halves(x_BTNH: Array, cos_BT1R: Array, sin_BT1R: Array, scale: float = 1.0) -> Array:
    pairs = cos_BT1R.shape[-1]
    first_BTNR = x_BTNH[..., :pairs].astype(jnp.float32)
    second_BTNR = x_BTNH[..., pairs : 2 * pairs].astype(jnp.float32)
    turned = (
        first_BTNR * cos_BT1R - second_BTNR * sin_BT1R,
        second_BTNR * cos_BT1R + first_BTNR * sin_BT1R,
    )
    halves = (_scaled(half, scale).astype(x_BTNH.dtype) for half in turned)
    rest_BTNX = _scaled(x_BTNH[..., 2 * pairs :].astype(jnp.float32), scale)
    return jnp.concatenate([*halves, rest_BTNX.astype(x_BTNH.dtype)], axis=-1)


def _scaled(x: Array, scale: float) -> Array:
    return x if scale == 1.0 else x * scale


def _by_product(x_BTNH: Array, cos_BT1R: Array, sin_BT1R: Array, scale: float = 1.0) -> Array:
    """The same, with the halves exchanged by a product with a permutation, which is exact.

    Half a head fills half of a TPU's registers, and to cut and join halves costs more than all the
    rest; the product is fused with it, and is a 200th of the layer's.
    """
    head_dim, pairs = x_BTNH.shape[-1], cos_BT1R.shape[-1]
    exchange = np.zeros((head_dim, head_dim), np.float32)
    here = np.arange(pairs)
    exchange[here, here + pairs] = exchange[here + pairs, here] = 1
    other_BTNH = jnp.einsum(
        "BTNH,HJ->BTNJ",
        x_BTNH,
        jnp.asarray(exchange, x_BTNH.dtype),
        preferred_element_type=jnp.float32,
    )
    rest = ((0, 0),) * 3 + ((0, head_dim - 2 * pairs),)
    cos_BT1H = jnp.pad(jnp.concatenate([cos_BT1R] * 2, axis=-1), rest, constant_values=1)
    sin_BT1H = jnp.pad(jnp.concatenate([-sin_BT1R, sin_BT1R], axis=-1), rest)
    turned_BTNH = x_BTNH.astype(jnp.float32) * cos_BT1H + other_BTNH * sin_BT1H
    return _scaled(turned_BTNH, scale).astype(x_BTNH.dtype)


def _rotate(
    x_BTNH: Array, cos_BT1R: Array, sin_BT1R: Array, scale: float
) -> tuple[Array, tuple[Array, Array]]:
    return rotate(x_BTNH, cos_BT1R, sin_BT1R, scale), (cos_BT1R, sin_BT1R)


def _rotate_back(
    scale: float, angles: tuple[Array, Array], gradient_BTNH: Array
) -> tuple[Array, None, None]:
    cos_BT1R, sin_BT1R = angles
    return rotate(gradient_BTNH, cos_BT1R, -sin_BT1R, scale), None, None


rotate.defvjp(_rotate, _rotate_back)
