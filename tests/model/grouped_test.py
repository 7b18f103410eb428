# SPDX-License-Identifier: Apache-2.0
"""Both kernels against a loop over the groups, with rows that belong to none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import grouped

X, Y = 20, 24
# Empty groups, groups that end within a tile and on its edge, one larger than a tile.
SIZES = [(100, 0, 28, 1, 130), (0, 0, 0, 0, 0), (256, 0, 0, 0, 0), (0, 0, 0, 0, 200)]


def inputs(rows):
    random = np.random.default_rng(0)
    shapes = (rows, X), (len(SIZES[0]), X, Y), (rows, Y)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def loop(lhs, rhs, grad, sizes):
    """Results and gradients of the rows in groups, and the gradient of the matrices."""
    out, lhs_grad, rhs_grad, start = [], [], np.zeros_like(rhs), 0
    for group, size in enumerate(sizes):
        rows = slice(start, start + size)
        out.append(lhs[rows] @ rhs[group])
        lhs_grad.append(grad[rows] @ rhs[group].T)
        rhs_grad[group] = lhs[rows].T @ grad[rows]
        start += size
    return np.concatenate(out), np.concatenate(lhs_grad), rhs_grad


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kernel", ["ragged_dot", "megablox_interpret"])
def test_every_row_meets_its_groups_matrix(kernel, sizes):
    lhs, rhs, grad = inputs(grouped.row_count(259 if sum(sizes) > 256 else 256))
    total = sum(sizes)
    # What is in no group reaches nothing.
    lhs[total:], grad[total:] = np.nan, np.nan
    out, backward = jax.vjp(
        lambda lhs, rhs: grouped.matmul(lhs, rhs, jnp.asarray(sizes, jnp.int32), kernel),
        jnp.asarray(lhs),
        jnp.asarray(rhs),
    )
    found = (out[:total], *(x[:total] if x.ndim == 2 else x for x in backward(jnp.asarray(grad))))
    for one, other in zip(found, loop(lhs, rhs, grad, sizes), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 16, 17, 127, 128, 129, 4000, 4096, 5000, 100_001])
def test_tiles_divide_the_rows(rows):
    count = grouped.row_count(rows)
    assert rows <= count < max(rows + 16, rows * 2)
    for groups in (1, 8, 128):
        tile = grouped._tiles(count, groups, 64, 64, 2)[0]
        assert count % tile == 0 and tile <= 512


def test_tiles_fit_sizes_and_memory():
    # (inner, outer) -> (inner tile, outer tile) of 512 rows in bfloat16: what models have.
    for given, want in {
        (2048, 768): (1024, 768),
        (768, 2048): (768, 1024),
        (4096, 14336): (1024, 1024),
        (4096, 6400): (1024, 640),
        (64, 200): (64, 200),
    }.items():
        assert grouped._tiles(8192, 2, *given, 2) == (512, *want)
    # Fewer rows per expert leave room for the whole of the inner dimension.
    assert grouped._tiles(32768, 128, 2048, 768, 2) == (256, 2048, 768)


def test_without_a_tpu_xla_does_it():
    assert grouped.kernel() == "ragged_dot"
