# SPDX-License-Identifier: Apache-2.0
"""Products of rows with one matrix per group of rows.

Shape suffixes: R rows, X and Y the matrices' sizes, E groups (experts).
"""

import functools
from typing import Any, Literal

import jax
from jaxtyping import Array, Float, Int

from midjax.model import sharding

Kernel = Literal["ragged_dot", "megablox", "megablox_interpret"]

# What the compilers for v5e, v5p and v6e take with their default limit on scoped VMEM, with some
# room for what the kernel computes in between.
_MOST_VMEM_BYTES = 11 * 2**20


def row_count(rows: int) -> int:
    """Rows, rounded up to what the kernel's tiles divide."""
    tile = 512 if rows >= 4096 else 128 if rows >= 128 else 16
    return -(-rows // tile) * tile


def _tile_of(size: int, itemsize: int) -> int:
    """The tile of a matrix's dimension: least padding first, then the largest."""
    most = 2048 // itemsize
    if size <= most:
        return size
    return min(range(most // 2, most + 1, 128), key=lambda tile: (-(-size // tile) * tile, -tile))


def _row_tile(rows: int, groups: int) -> int:
    # A tile is multiplied once for every group that it touches, so tiles much larger than a
    # group are work for nothing; under 256 rows or so the weights' way from memory takes longer
    # than the product.
    fitting = [size for size in (512, 256, 128) if rows % size == 0]
    return next((size for size in fitting if size * groups <= rows), min([rows, *fitting]))


def _tiles(rows: int, groups: int, inner: int, outer: int, itemsize: int) -> tuple[int, int, int]:
    """Tiles of rows, of what is summed over, and of the result's columns."""
    row_tile, outer_tile = _row_tile(rows, groups), _tile_of(outer, itemsize)
    # With the inner dimension whole, tiles of one group that follow each other share the matrix.
    buffers = 2 * itemsize * (row_tile * inner + inner * outer_tile + row_tile * outer_tile)
    if buffers + 4 * row_tile * outer_tile <= _MOST_VMEM_BYTES:
        return row_tile, inner, outer_tile
    return row_tile, _tile_of(inner, itemsize), outer_tile


def _kernels() -> tuple[Any, Any]:
    """JAX's gmm and tgmm. Pallas takes a while to import, which a CPU has no need of."""
    # Names, not the module: the package has a function of the same name, which hides it.
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

    return gmm, tgmm


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _megablox(lhs_RX: Array, rhs_EXY: Array, sizes_E: Array, interpret: bool) -> Array:
    groups, inner, outer = rhs_EXY.shape
    tiles = _tiles(lhs_RX.shape[0], groups, inner, outer, rhs_EXY.itemsize)
    gmm, _ = _kernels()
    return gmm(lhs_RX, rhs_EXY, sizes_E, lhs_RX.dtype, tiles, interpret=interpret)


def _megablox_fwd(lhs_RX: Array, rhs_EXY: Array, sizes_E: Array, interpret: bool) -> Any:
    return _megablox(lhs_RX, rhs_EXY, sizes_E, interpret), (lhs_RX, rhs_EXY, sizes_E)


def _megablox_bwd(interpret: bool, kept: Any, grad_RY: Array) -> Any:
    (lhs_RX, rhs_EXY, sizes_E), (gmm, tgmm) = kept, _kernels()
    rows, (groups, inner, outer), size = lhs_RX.shape[0], rhs_EXY.shape, rhs_EXY.itemsize
    lhs_grad_RX = gmm(
        grad_RY,
        rhs_EXY,
        sizes_E,
        lhs_RX.dtype,
        _tiles(rows, groups, outer, inner, size),
        transpose_rhs=True,
        interpret=interpret,
    )
    tiles = _row_tile(rows, groups), _tile_of(inner, size), _tile_of(outer, size)
    rhs_grad_EXY = tgmm(lhs_RX.T, grad_RY, sizes_E, rhs_EXY.dtype, tiles, interpret=interpret)
    return lhs_grad_RX, rhs_grad_EXY, None


_megablox.defvjp(_megablox_fwd, _megablox_bwd)


def matmul(
    lhs_RX: Float[Array, "R X"],
    rhs_EXY: Float[Array, "E X Y"],
    sizes_E: Int[Array, "E"],
    kernel: Kernel,
) -> Float[Array, "R Y"]:
    """Rows times the matrix of their group.

    Rows past the last group cost little and may hold anything, not a number included, in the result
    and in the gradient of `lhs_RX`. What they hold in `lhs_RX` and in the gradient that comes in
    reaches no other row and no matrix.

    Args:
      lhs_RX: rows, those of group 0 first; "megablox" wants as many as `row_count` gives.
      rhs_EXY: a matrix per group.
      sizes_E: rows per group; their sum is R at most.
      kernel: "ragged_dot" is XLA's own operation; "megablox" JAX's Pallas kernel for TPU, and
        "megablox_interpret" that one computed step by step on any device. On a CPU ragged_dot
        multiplies every row by every matrix. For a TPU it becomes a grouped kernel too; by the
        instructions that the compiler for v5e emits (nothing was measured on one) it is on a par
        with megablox for narrow experts, but falls back to tiles of 128 x 128 x 128 where many
        values are summed over (14,336 in Mixtral), at some 30 times the cycles.
    """
    if kernel == "ragged_dot":
        return jax.lax.ragged_dot(lhs_RX, rhs_EXY, sizes_E)
    return _megablox(lhs_RX, rhs_EXY, sizes_E, kernel == "megablox_interpret")


def kernel() -> Kernel:
    """The fastest one for what the mesh in force consists of, JAX's default without a mesh."""
    return "megablox" if sharding.platform() == "tpu" else "ragged_dot"
