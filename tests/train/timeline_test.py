# SPDX-License-Identifier: Apache-2.0
"""Sizes, rows and tokens of every update, against a loop that takes one batch after another."""

import itertools
import pathlib

import pytest
import tiny_run as tiny

from midjax.batches import starts
from midjax.train import start, timeline
from midjax.train.schedules import clock

T = tiny.T
RAMP = starts.Ramp(rows=(2, 5, 3), start_tokens=(0, 100, 777))


def data(rows):
    return tiny.data(pathlib.Path("nowhere"), batch_rows=rows)


def one_by_one(rows, train_tokens, tokens=0):
    """Rows of each batch until `train_tokens` are used up."""
    found = []
    while tokens < train_tokens:
        now = rows
        if isinstance(rows, starts.Ramp):
            now = [r for r, begin in zip(rows.rows, rows.start_tokens, strict=True)
                   if begin <= tokens][-1]  # fmt: skip
        found.append(now)
        tokens += now * T
    return found


def origin(parts, *, step=4, count=4, tokens=None, knees=None):
    schedule = {} if knees is None else {"clock": knees}
    manifest = {"schedule_count": count, "schedule": schedule}
    if tokens is not None:
        manifest["tokens"] = tokens
    return start.Origin(
        kind="resume", run="x", step=step, parts=frozenset(parts), manifest=manifest,
        data={"batch_rows": tiny.B, "row_tokens": T}, huggingface=None,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [3, RAMP, starts.Ramp(rows=(4,), start_tokens=(0,))])
@pytest.mark.parametrize("train_tokens", [1, 96, 97, 800, 1500])
def test_a_fresh_run_takes_one_batch_after_another(rows, train_tokens):
    line = timeline.of(data(rows), train_tokens, start.FRESH)
    expected = one_by_one(rows, train_tokens)
    assert line.total_steps == len(expected)
    for step in range(1, len(expected) + 1):
        assert line.batch_rows(step) == expected[step - 1]
        assert line.rows(step) == sum(expected[:step])
        assert line.tokens(step) == T * sum(expected[:step])
    sizes = line.sizes()
    changes = {1: expected[0]} | {
        k + 1: b for k, (a, b) in enumerate(itertools.pairwise(expected), 1) if a != b
    }
    assert sizes == changes


@pytest.mark.parametrize("before", range(1, 12))
def test_a_run_resumed_anywhere_has_the_same_batches(before):
    whole = timeline.of(data(RAMP), 1500, start.FRESH)
    begun = origin(
        start.PARTS, step=before, count=before, tokens=whole.tokens(before),
        knees=whole.clock.to_json(),
    )  # fmt: skip
    line = timeline.of(data(RAMP), 1500, begun)
    assert line.total_steps == whole.total_steps and line.clock == whole.clock
    for step in range(before + 1, whole.total_steps + 1):
        assert line.batch_rows(step) == whole.batch_rows(step)
        assert line.rows(step) == whole.rows(step) - whole.rows(before)
        assert line.tokens(step) == whole.tokens(step)


def test_each_counter_is_kept_or_reset_by_itself():
    """4 updates of 8 rows lie behind the checkpoint; 16 rows of tokens are asked for."""
    knees = [[0, 0, tiny.B * T]]
    for parts, steps, counts, places in (
        (("step", "schedule"), (4, 8), (4, 8), 1024),  # 512 used up, 512 to go
        (("step",), (4, 8), (0, 4), 512),
        (("schedule",), (0, 8), (4, 12), 512 + 1024),
        ((), (0, 8), (0, 8), 1024),
    ):
        line = timeline.of(data(tiny.B), 1024, origin(parts, tokens=512, knees=knees))
        assert (line.first_step, line.total_steps) == steps, parts
        assert (line.first_count, line.count(line.total_steps)) == counts, parts
        assert line.schedule_tokens == places, parts


def test_another_batch_keeps_the_position_in_tokens():
    """Half the rows from update 5 on: twice as many updates for the 512 tokens that are left."""
    knees = [[0, 0, tiny.B * T]]
    kept = origin(start.PARTS, tokens=512, knees=knees)
    line = timeline.of(data(tiny.B // 2), 1024, kept)
    assert line.total_steps == 4 + 8 and line.tokens(5) == 512 + 64
    assert line.clock == clock.Clock(knees=((0, 0, 128), (4, 512, 64)))
    assert line.sizes() == {5: 4}


def test_checkpoints_that_do_not_say_their_tokens_are_counted_in_their_batches():
    line = timeline.of(data(2), 1024, origin(start.PARTS))
    assert line.first_tokens == 4 * tiny.B * T and line.clock.tokens(4) == 4 * tiny.B * T
    assert line.batch_rows(5) == 2


def test_a_ramp_asked_at_the_start_of_a_stage_counts_from_there():
    line = timeline.of(data(RAMP), 1500, origin(("params", "moments", "adam_count"), tokens=512))
    assert [line.batch_rows(s) for s in range(1, line.total_steps + 1)] == one_by_one(RAMP, 1500)


@pytest.mark.parametrize("over", [1, 40, 127])
def test_the_last_batch_may_reach_beyond_the_end_and_its_schedule_does_not(over):
    """A finished run that is looked at again has the curve that it had."""
    train_tokens = 8 * tiny.B * T - over
    whole = timeline.of(data(tiny.B), train_tokens, start.FRESH)
    done = origin(
        start.PARTS, step=8, count=8, tokens=8 * tiny.B * T, knees=whole.clock.to_json()
    )  # fmt: skip
    again = timeline.of(data(tiny.B), train_tokens, done)
    assert again.schedule_tokens == whole.schedule_tokens == train_tokens
    assert again.total_steps == whole.total_steps == 8
