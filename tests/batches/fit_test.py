# SPDX-License-Identifier: Apache-2.0
"""Bin packing against the algorithms' definitions, written piece by piece."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from midjax.batches import fit


def slow_best_fit_decreasing(sizes, row_tokens):
    rooms = []
    for size in sorted(sizes, reverse=True):
        will_do = [(room, row) for row, room in enumerate(rooms) if room >= size]
        if will_do:
            rooms[min(will_do)[1]] -= size
        else:
            rooms.append(row_tokens - size)
    return sorted(rooms)


def slow_first_fit(sizes, row_tokens):
    rooms, found = [], []
    for size in sizes:
        row = next((row for row, room in enumerate(rooms) if room >= size), len(rooms))
        if row == len(rooms):
            rooms.append(row_tokens)
        rooms[row] -= size
        found.append(row)
    return found


def fewest(sizes, row_tokens):
    """The smallest number of rows, by trying."""
    best = len(sizes)

    def place(rest, rooms):
        nonlocal best
        if len(rooms) >= best:
            return
        if not rest:
            best = len(rooms)
            return
        for k, room in enumerate(rooms):
            if room >= rest[0] and room not in rooms[:k]:
                place(rest[1:], rooms[:k] + [room - rest[0]] + rooms[k + 1 :])
        place(rest[1:], [*rooms, row_tokens - rest[0]])

    place(sorted(sizes, reverse=True), [])
    return best


@st.composite
def problems(draw, most_pieces=60):
    row_tokens = draw(st.integers(1, 40))
    # Few sizes, so that many pieces and rows are alike, or many.
    sizes = st.integers(1, row_tokens)
    if draw(st.booleans()):
        sizes = st.sampled_from(draw(st.lists(sizes, min_size=1, max_size=4)))
    return draw(st.lists(sizes, max_size=most_pieces)), row_tokens


@hypothesis.given(problem=problems())
@hypothesis.settings(max_examples=200, deadline=None)
def test_best_fit_fills_rows_as_its_definition_does(problem):
    sizes, row_tokens = problem
    rows = fit.best_fit(np.array(sizes, np.int64), row_tokens)
    room = (row_tokens - np.bincount(rows, sizes)).astype(int).tolist() if sizes else []
    assert min(room, default=0) >= 0
    slow = slow_best_fit_decreasing(sizes, row_tokens)
    first = slow_first_fit(sizes, row_tokens)
    if len(room) == len(slow):
        assert sorted(room) == slow
    else:
        assert len(room) == max(first) + 1 < len(slow)


@hypothesis.given(problem=problems())
@hypothesis.settings(max_examples=100, deadline=None)
def test_first_fit_is_its_definition(problem):
    sizes, row_tokens = problem
    slow = slow_first_fit(sizes, row_tokens)
    rows = max(slow, default=-1) + 1
    assert fit.first_fit(np.array(sizes, np.int64), row_tokens).tolist() == slow
    assert fit.first_fit(np.array(sizes), row_tokens, most_rows=rows).tolist() == slow
    if rows:
        assert fit.first_fit(np.array(sizes), row_tokens, most_rows=rows - 1) is None


@hypothesis.given(problem=problems(most_pieces=9))
@hypothesis.settings(max_examples=100, deadline=None)
def test_no_packing_has_fewer_rows_than_the_bound(problem):
    sizes, row_tokens = problem
    counts = np.bincount(np.array(sizes, np.int64), minlength=row_tokens + 1)
    bound = fit.least_rows(counts, row_tokens)
    assert -(-sum(sizes) // row_tokens) <= bound <= fewest(sizes, row_tokens)


@pytest.mark.parametrize(
    ("sizes", "row_tokens", "rows"),
    [
        ([6, 6, 6], 10, 3),  # by volume 2, but no two share a row
        ([7, 6, 6, 4, 4, 4], 10, 4),  # 7 takes none of the 4s, which need a row beside the 6s
        ([5, 5, 5, 5], 10, 2),
        ([], 10, 0),
    ],
)
def test_the_bound_by_hand(sizes, row_tokens, rows):
    counts = np.bincount(np.array(sizes, np.int64), minlength=row_tokens + 1)
    assert fit.least_rows(counts, row_tokens) == rows


def test_first_fit_is_taken_where_it_is_better():
    sizes = np.array([4, 3, 3, 4, 3, 3])  # best-fit decreasing: 4 4 | 3 3 3 | 3
    assert len(slow_best_fit_decreasing(sizes.tolist(), 10)) == 3
    assert fit.best_fit(sizes, 10).tolist() == [0, 0, 0, 1, 1, 1]
