# SPDX-License-Identifier: Apache-2.0
"""Caps by shifting, by hand and by what characterises the solution."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from midjax.mixture import solve


def steady(shares, room, rows=100.0):
    shares = np.array(shares, float)
    _, end, capped = solve.shift(
        shares, shares, start_rows=0, end_rows=rows, room=np.array(room, float)
    )
    return end, capped


def test_weights_within_their_caps_stay():
    end, capped = steady([0.5, 0.3, 0.2], [50, 30, 20])
    assert end.tolist() == [0.5, 0.3, 0.2] and not capped.any()


def test_the_rest_grows_in_proportion():
    """0.4 of 100 rows with room for 10: 0.1; the 0.3 left go to 0.4 and 0.2 as 2 to 1."""
    end, capped = steady([0.4, 0.4, 0.2], [10, 1000, 1000])
    assert end == pytest.approx([0.1, 0.6, 0.3]) and capped.tolist() == [True, False, False]


def test_growing_may_bring_others_over():
    end, capped = steady([0.4, 0.4, 0.2], [10, 50, 1000])
    assert end == pytest.approx([0.1, 0.5, 0.4]) and capped.tolist() == [True, True, False]


def test_nothing_left_to_shift_to():
    with pytest.raises(solve.AllCappedError, match="40 rows are left"):
        steady([0.5, 0.5, 0.0], [30, 30, 1000])


def test_a_ramp_from_a_source_that_is_used_up():
    """Its share at the start of the ramp goes to what the stage ends with."""
    start, end, capped = solve.shift(
        np.array([1.0, 0.0]), np.array([0.0, 1.0]), start_rows=10, end_rows=30,
        room=np.array([0.0, 99.0]),
    )  # fmt: skip
    assert start.tolist() == [0, 1] and end.tolist() == [0, 1] and capped.tolist() == [True, False]


@settings(deadline=None)
@given(st.data())
def test_the_solution_keeps_caps_sums_and_proportions(data):
    n = data.draw(st.integers(1, 8))
    numbers = st.lists(st.floats(0.01, 1), min_size=n, max_size=n)
    start, end = (np.array(data.draw(numbers)) for _ in range(2))
    start, end = start / start.sum(), end / end.sum()
    start_rows, end_rows = data.draw(st.floats(0, 500)), data.draw(st.floats(1, 500))
    room = np.array(data.draw(st.lists(st.floats(0, 800), min_size=n, max_size=n)))
    assume(room.sum() > (start_rows + end_rows) * 1.01)
    a, z, capped = solve.shift(start, end, start_rows=start_rows, end_rows=end_rows, room=room)
    assert a.sum() == pytest.approx(1) and z.sum() == pytest.approx(1)
    drawn = start_rows * a + end_rows * z
    assert (drawn <= room * (1 + 1e-9) + 1e-9).all()
    assert drawn[capped] == pytest.approx(room[capped], abs=1e-6)
    free = ~capped
    for asked, found in ((start, a), (end, z)):
        ratios = found[free] / asked[free]
        assert free.any() and ratios.min() > 1 - 1e-9
        assert ratios == pytest.approx(np.full(len(ratios), ratios.mean()))
