# SPDX-License-Identifier: Apache-2.0
"""Which keys a query sees, key by key."""

import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import window


@pytest.mark.parametrize("window_tokens", [None, 1, 3, 9])
def test_a_query_sees_itself_and_what_came_before_within_its_window(window_tokens):
    seen = window.Seen(window_tokens)
    queries, keys = np.arange(9)[:, None], np.arange(9)[None, :]
    want = np.zeros((9, 9), bool)
    for query in range(9):
        oldest = 0 if window_tokens is None else max(query - window_tokens + 1, 0)
        want[query, oldest : query + 1] = True
    np.testing.assert_array_equal(seen(queries, keys), want)
    np.testing.assert_array_equal(seen(jnp.asarray(queries), jnp.asarray(keys)), want)


def test_kernels_of_equal_windows_are_one():
    """A jitted function that is given one is compiled once."""
    assert window.Seen(3) == window.Seen(3) != window.Seen(None)
    assert hash(window.Seen(3)) == hash(window.Seen(3))
