# SPDX-License-Identifier: Apache-2.0
"""Counts of blocks against the exact fractions that they round."""

import fractions

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midjax.mixture import spread

F = fractions.Fraction


@st.composite
def shares(draw, sources, block_rows):
    """Rows of each source in a period: some rest, some are rare."""
    weights = draw(st.lists(st.integers(0, 1000), min_size=sources, max_size=sources))
    weights = np.array(weights, float)
    weights[draw(st.integers(0, sources - 1))] += 1
    return spread.largest_remainder(weights / weights.sum(), spread.PERIOD_BLOCKS * block_rows)


@st.composite
def tables(draw):
    sources, block_rows = draw(st.integers(1, 12)), draw(st.integers(1, 30))
    first = draw(shares(sources, block_rows))
    if draw(st.booleans()):
        return first, first, spread.PERIOD_BLOCKS, block_rows
    return first, draw(shares(sources, block_rows)), draw(st.integers(1, 60)), block_rows


def ideal(first, last, blocks, block_rows):
    """Rows asked for in each block, exact: the shares halfway through it. [blocks][sources]"""
    period = spread.PERIOD_BLOCKS * block_rows
    found = []
    for b in range(blocks):
        after = F(2 * b + 1, 2 * blocks)
        found.append(
            [
                block_rows * (int(x) * (1 - after) + int(y) * after) / period
                for x, y in zip(first, last, strict=True)
            ]
        )
    return found


@settings(max_examples=150, deadline=None)
@given(tables())
def test_every_block_and_every_prefix_is_within_one_row(table):
    first, last, blocks, block_rows = table
    prefix = spread.prefix(first, last, blocks)
    asked = ideal(first, last, blocks, block_rows)
    total = [F(0)] * len(first)
    assert prefix.shape == (blocks + 1, len(first)) and not prefix[0].any()
    for b in range(blocks):
        counts = prefix[b + 1] - prefix[b]
        assert counts.sum() == block_rows and (counts >= 0).all()
        for k, share in enumerate(asked[b]):
            total[k] += share
            assert abs(int(prefix[b + 1, k]) - total[k]) < 1
            assert abs(int(counts[k]) - share) < 1 or (share.denominator == 1 and first is not last)
            assert abs(int(counts[k]) - share) <= 1
            assert share or not counts[k]  # a source that rests is not drawn
    if first is last:
        assert np.array_equal(prefix[-1], first)  # so that it can be repeated


@settings(max_examples=100, deadline=None)
@given(tables(), st.data())
def test_a_cut_block_is_within_one_row(table, data):
    first, last, blocks, block_rows = table
    prefix = spread.prefix(first, last, blocks)
    block = data.draw(st.integers(0, blocks - 1))
    rows = data.draw(st.integers(1, block_rows))
    counts = spread.cut(
        first, last, blocks, block=block, before=prefix[block], rows=rows, block_rows=block_rows
    )
    assert counts.sum() == rows and (counts >= 0).all()
    for k, share in enumerate(ideal(first, last, blocks, block_rows)[block]):
        assert abs(int(counts[k]) - share * rows / block_rows) < 1


def test_whole_shares_give_every_block_the_same():
    counts = np.array([7, 2, 1]) * spread.PERIOD_BLOCKS
    table = spread.prefix(counts, counts, spread.PERIOD_BLOCKS)
    assert np.array_equal(np.diff(table, axis=0), np.tile([7, 2, 1], (spread.PERIOD_BLOCKS, 1)))


def test_a_ramp_between_two_sources_by_hand():
    """From all of one to all of the other in 4 blocks of 8 rows: 1/8, 3/8, 5/8, 7/8 of a block."""
    period = 8 * spread.PERIOD_BLOCKS
    table = spread.prefix(np.array([period, 0]), np.array([0, period]), 4)
    assert np.diff(table, axis=0).tolist() == [[7, 1], [5, 3], [3, 5], [1, 7]]


def test_a_table_that_would_not_fit_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError, match="64 bits"):
        spread.prefix(np.array([1 << 40]), np.array([1 << 40]), 1 << 15)


def test_largest_remainder_is_hamiltons():
    """Hamilton apportionment of the first US House bill of 1792: 120 seats, known result."""
    population = {
        "Virginia": 630_560, "Massachusetts": 475_327, "Pennsylvania": 432_879,
        "North Carolina": 353_523, "New York": 331_589, "Maryland": 278_514,
        "Connecticut": 236_841, "South Carolina": 206_236, "New Jersey": 179_570,
        "New Hampshire": 141_822, "Vermont": 85_533, "Georgia": 70_835, "Kentucky": 68_705,
        "Rhode Island": 68_446, "Delaware": 55_540,
    }  # fmt: skip
    total = sum(population.values())
    shares = np.array([float(fractions.Fraction(p, total)) for p in population.values()])
    seats = spread.largest_remainder(shares, 120)
    assert seats.tolist() == [21, 16, 14, 12, 11, 9, 8, 7, 6, 5, 3, 2, 2, 2, 2]
