# SPDX-License-Identifier: Apache-2.0
"""Every prompt is found again where the packing says, in its own part of the mesh."""

import numpy as np
import pytest

from midjax.evals import packing


def test_buckets():
    sizes = (1, 2, 3, 4, 5, 7, 9, 13)
    assert [packing.bucket(size) for size in sizes] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert [packing.bucket(size, 16) for size in (1, 17, 25, 33, 49)] == [16, 24, 32, 48, 64]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_prompt_is_where_it_should_be(parts):
    rng = np.random.default_rng(parts)
    rows = 8
    given = {row: rng.integers(1, 99, rng.integers(1, 30)).tolist() for row in (0, 1, 3, 4, 6)}
    made = packing.prompts(given, rows, parts, 30)
    assert made.tokens.shape[1] == 64 and len(made.tokens) % parts == 0
    taken = np.zeros_like(made.tokens)
    for row in range(rows):
        assert made.is_new[row] == (row in given)
    for row, prompt in given.items():
        part = np.split(made.tokens, parts)[row // (rows // parts)].reshape(-1)
        size = made.tokens_of_row[row]
        assert part[made.begin[row] :][:size].tolist() == prompt
        here = made.segments == row + 1
        np.testing.assert_array_equal(made.positions[here], np.arange(size))
        assert made.tokens[here].tolist() == prompt
        taken += here
    # Nothing else is there, and what is empty is padding.
    np.testing.assert_array_equal(taken, made.segments > 0)


def test_little_is_wasted():
    """Of short prompts, here nothing: rows are twice as long as the longest, and 22 + 22 + 20 fit.
    Rows of longer ones are as long as the longest."""
    given = {row: [1] * size for row, size in enumerate([22, 20, 22, 22, 20, 22, 22, 22, 20])}
    assert packing.prompts(given, 9, 1, 32).tokens.shape == (3, 64)
    given = {row: [1] * size for row, size in enumerate([350, 34, 200, 184])}
    assert packing.prompts(given, 4, 1, 350).tokens.shape == (2, 384)
