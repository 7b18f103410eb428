# SPDX-License-Identifier: Apache-2.0
"""Updates and tokens, through changes of the batch."""

import fractions
import json

import hypothesis
import pytest
from hypothesis import strategies

from midjax.train.schedules import clock as clock_lib


def test_one_batch():
    clock = clock_lib.constant(10)
    assert [clock.tokens(count) for count in (0, 1, 7)] == [0, 10, 70]
    assert clock.count(61) == fractions.Fraction(61, 10) and clock.updates(61) == 7
    assert clock.updates(60) == 6 and clock.updates(0) == 0


def test_a_change_keeps_the_tokens_of_what_came_before():
    clock = clock_lib.constant(10).changed(50, 20).changed(60, 5)
    assert clock.knees == ((0, 0, 10), (50, 500, 20), (60, 700, 5))
    by_hand = [0]
    for count in range(80):
        by_hand.append(by_hand[-1] + (10 if count < 50 else 20 if count < 60 else 5))
    assert [clock.tokens(count) for count in range(81)] == by_hand
    assert [clock.batch_tokens(count) for count in (0, 49, 50, 59, 60, 99)] == [
        10, 10, 20, 20, 5, 5,
    ]  # fmt: skip
    assert clock.count(510) == 50 + fractions.Fraction(1, 2) and clock.count(705) == 61


def test_changes_that_are_none():
    clock = clock_lib.constant(10).changed(50, 20)
    assert clock.changed(70, 20) == clock
    # A branch from before the change never had it.
    assert clock.changed(40, 10) == clock_lib.constant(10)
    assert clock.changed(50, 30).knees == ((0, 0, 10), (50, 500, 30))
    assert clock_lib.constant(10).changed(0, 30) == clock_lib.constant(30)


def test_through_json():
    clock = clock_lib.constant(4_194_304).changed(1_192_092, 8_388_608)
    assert clock_lib.from_json(json.loads(json.dumps(clock.to_json()))) == clock


@hypothesis.given(
    batches=strategies.lists(strategies.integers(1, 1000), min_size=1, max_size=5),
    gaps=strategies.lists(strategies.integers(1, 50), min_size=5, max_size=5),
    tokens=strategies.integers(0, 10**6),
)
def test_there_and_back(batches, gaps, tokens):
    clock, at = clock_lib.constant(batches[0]), 0
    for batch, gap in zip(batches[1:], gaps, strict=False):
        at += gap
        clock = clock.changed(at, batch)
    assert clock.tokens(clock.count(tokens)) == tokens
    updates = clock.updates(tokens)
    assert clock.tokens(updates) >= tokens and (updates == 0 or clock.tokens(updates - 1) < tokens)


@pytest.mark.parametrize(
    "knees", [(), ((1, 0, 10),), ((0, 0, 10), (5, 40, 20)), ((0, 0, 10), (0, 0, 20)), ((0, 0, 0),)]
)
def test_bad_knees(knees):
    with pytest.raises(ValueError, match="knees must start|must have 1 token"):
        clock_lib.Clock(knees=knees)
