# SPDX-License-Identifier: Apache-2.0
"""Lengths of documents, however a row is filled. On a mesh: rope_test."""

import jax
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest

from midjax.model import documents

ROWS = [([1, 2, 3], 4), ([5], 0), ([1, 1, 1], 0), ([40, 65, 64, 150], 5), ([300], 7)]


@pytest.mark.parametrize(("lengths", "padding"), ROWS)
@pytest.mark.parametrize("origin", [0, 10])
def test_lengths(lengths, padding, origin):
    segments, positions, want = packed_rows.make(lengths, padding, origin)
    np.testing.assert_array_equal(jax.jit(documents.lengths)(segments, positions), want)


def test_lengths_of_many_rows():
    """Padding anywhere, segments in any order, positions in any order within a document."""
    rng = np.random.default_rng(0)
    segments, positions = np.zeros((2, 16, 128), np.int32)
    want = np.zeros_like(segments)
    for row in range(16):
        cuts = [0, *np.sort(rng.choice(np.arange(1, 128), 9, replace=False)), 128]
        names = rng.permutation(10)  # one of them is 0
        for name, begin, end in zip(names, cuts, cuts[1:], strict=False):
            segments[row, begin:end] = name
            positions[row, begin:end] = rng.permutation(end - begin)
            want[row, begin:end] = end - begin if name else 0
    found = documents.lengths(jnp.asarray(segments), jnp.asarray(positions))
    np.testing.assert_array_equal(found, want)


def test_lengths_need_memory_of_the_rows_only():
    shape = jax.ShapeDtypeStruct((1, 4096), jnp.int32)
    compiled = jax.jit(documents.lengths).lower(shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100 * 4 * 4096 < 4096**2
