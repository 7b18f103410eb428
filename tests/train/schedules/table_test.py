# SPDX-License-Identifier: Apache-2.0
"""The rows that people read before a run."""

import math

import pytest
import schedules as short

from midjax.train.schedules import clock as clock_lib
from midjax.train.schedules import table

CYCLES = (
    short.move(0.0, 1.0, steps=10, name="up"),
    short.hold(1.0, steps=30, name="stable"),
    short.move(1.0, 0.25, "one_minus_sqrt", steps=20, name="down"),
    short.hold(1.0, steps=20, name="stable"),
    short.move(1.0, 0.0, steps=20, name="down"),
)


def test_turns_and_twentieths():
    rows = table.rows(short.curve(CYCLES, 100), position=33)
    assert [row.step for row in rows if not row.note] == [
        5, 15, 20, 25, 30, 35, 45, 50, 55, 65, 70, 75, 85, 90, 95,
    ]  # fmt: skip
    assert [(row.step, row.note) for row in rows if row.note] == [
        (0, "up: linear"), (9, "last of up"), (10, "stable: hold"),
        (33, "this run goes on here"), (39, "last of stable"), (40, "down: one minus sqrt"),
        (59, "last of down"), (60, "stable: hold, a jump"), (79, "last of stable"),
        (80, "down: linear"), (99, "last of down"), (100, "after the run"),
    ]  # fmt: skip
    by_step = {row.step: row for row in rows}
    assert all(row.tokens == 10 * row.step for row in rows)
    assert by_step[50].lr == pytest.approx(0.25 + 0.75 * (1 - math.sqrt(0.5)))
    assert by_step[100].lr == 0 and by_step[5].lr == 0.5


def test_changes_of_the_batch_and_short_phases():
    clock = clock_lib.constant(10).changed(4, 20)
    phases = (short.hold(1.0, tokens=11), short.hold(2.0, tokens=5, name="brief"), short.hold(3.0))
    rows = {r.step: r for r in table.rows(short.curve(phases, clock=clock, total_tokens=100))}
    assert rows[4].note == "batches of 20 tokens" and rows[5].tokens == 60
    assert rows[2].note == "brief: shorter than an update; hold: hold, a jump"
    assert rows[7].note == "after the run" and rows[7].tokens == 100


def test_text_has_aligned_columns():
    lines = table.text(table.rows(short.curve(CYCLES, 100, batch=2_000_000))).splitlines()
    assert lines[0].split() == ["step", "tokens", "learning", "rate"]
    assert lines[1].split() == ["0", "0", "0", "0.000000e+00", "up:", "linear"]
    assert lines[-1].split()[:4] == ["100", "200000000", "200M", "0.000000e+00"]
    ends = {line.index("e") + 4 for line in lines[1:]}
    assert len(ends) == 1


def test_samples_hold_both_ends_of_each_phase():
    steps = table.sampled(short.curve(CYCLES, 100))
    assert steps == list(range(100))
    long = table.sampled(short.curve((short.move(0.0, 1.0, steps=7), short.hold(1.0)), 10**6))
    assert {0, 6, 7, 10**6 - 1} <= set(long) and len(long) <= table.POINTS + 4
