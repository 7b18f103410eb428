# SPDX-License-Identifier: Apache-2.0
"""Where batches begin, against counting from the first step on."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from midjax.batches import starts


def slow(size_of, first_step, next_row, total_rows):
    found, step = [next_row], first_step
    while found[-1] + size_of(step) <= total_rows:
        found.append(found[-1] + size_of(step))
        step += 1
    return found


@hypothesis.given(
    table=st.dictionaries(st.integers(0, 30), st.integers(1, 9), min_size=1),
    first_step=st.integers(0, 40),
    next_row=st.integers(0, 50),
    total_rows=st.integers(0, 200),
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_tables_and_functions_are_the_count(table, first_step, next_row, total_rows):
    where = {"first_step": first_step, "next_row": next_row, "total_rows": total_rows}
    if first_step < min(table):
        with pytest.raises(ValueError, match=r"No number of rows is given for step \d+"):
            starts.starts(table, **where)
        return

    def size_of(step):
        return table[max(begin for begin in table if begin <= step)]

    expected = slow(size_of, **where)
    assert list(starts.starts(table, **where)) == expected
    assert list(starts.starts(size_of, **where)) == expected


def test_one_size_is_no_table_however_long_the_run():
    found = starts.starts({0: 8}, first_step=3, next_row=24, total_rows=10**15)
    assert isinstance(found, range) and found[-1] == 10**15 and len(found) == 10**15 // 8 - 3 + 1


def test_bad_sizes():
    where = {"first_step": 0, "next_row": 0, "total_rows": 9}
    for rows in ({0: 4, 5: 0}, lambda step: -1):
        with pytest.raises(ValueError, match="needs 1 row or more"):
            starts.starts(rows, **where)
    starts.check_divides(range(0, 9, 4), 2)
    starts.check_divides(np.array([0, 4, 10]), 2)
    with pytest.raises(ValueError, match="A batch of 6 rows .* does not divide over 4 readers"):
        starts.check_divides(np.array([0, 4, 10]), 4)


@pytest.mark.parametrize(
    ("rows", "start_tokens"),
    [((), ()), ((1, 2), (0,)), ((1, 2), (5, 10)), ((1, 2, 3), (0, 9, 9)), ((1, 0), (0, 9))],
)
def test_a_ramp_that_is_none_is_refused(rows, start_tokens):
    with pytest.raises(ValueError, match="Ramp needs as many rows .* which begin at 0 and rise"):
        starts.Ramp(rows=rows, start_tokens=start_tokens)
