# SPDX-License-Identifier: Apache-2.0
"""What is told of skipped updates, and when there are too many."""

import json

import numpy as np
import pytest
import tiny_run as tiny

from midjax import log
from midjax.batches import loader as loader_lib
from midjax.train import guard, skips

FINE = np.ones(tiny.B)
BAD = np.where(np.arange(tiny.B) == 2, np.nan, 1.5)


@pytest.fixture
def made(tmp_path):
    tiny.write_tokens(tmp_path / "tokens")
    data = tiny.data(tmp_path / "tokens")
    return loader_lib.Loader(data, loader_lib.Opened(data), total_rows=10 * tiny.B)


def watch(tmp_path, made, **kwargs):
    journal = log.Journal(str(tmp_path / "run"), step=0, is_writer=True)
    return skips.Watch(made, journal, lambda step: ((step - 1) * tiny.B, step * tiny.B), **kwargs)


def events(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").open()]


def test_the_rows_to_blame_are_named(tmp_path, made):
    seen = watch(tmp_path, made, most=9)
    seen.see({"step": 1, "skipped": 0, "loss": 1.0}, FINE)
    seen.see({"step": 2, "skipped": 1, "loss": float("nan"), "grad_norm": 1.0}, BAD)
    seen.see({"step": 3, "skipped": 1, "loss": 1.0, "grad_norm": float("inf")}, FINE)
    seen.see({"step": 4, "skipped": 2, "loss": 8.0, "loss_limit": 5.0}, 8 * FINE)
    first, second, third = events(tmp_path)
    assert first["rows"] == [made.named(tiny.B, 2 * tiny.B)[2] | {"loss": None}]
    assert first["loss"] is None and first["in_a_row"] == 1
    # No row's own loss is to blame: all of the batch.
    assert second["rows"] == [r | {"loss": 1.0} for r in made.named(2 * tiny.B, 3 * tiny.B)]
    assert third["why"] == "spike" and (third["loss"], third["loss_limit"]) == (8.0, 5.0)
    assert third["in_a_row"] == 3 == seen.count and seen.steps == [2, 3, 4]
    seen.see({"step": 5, "skipped": 0}, FINE)
    assert seen.steps == [] and seen.count == 3


def test_as_many_as_allowed_end_the_streak(tmp_path, made):
    seen = watch(tmp_path, made, most=2)
    bad = {"skipped": 1, "loss": float("nan")}
    seen.see({"step": 1} | bad, BAD)
    seen.see({"step": 2, "skipped": 0}, FINE)
    seen.see({"step": 3} | bad, BAD)
    with pytest.raises(skips.StreakError) as caught:
        seen.see({"step": 4} | bad, BAD)
    assert caught.value.steps == (3, 4) and caught.value.why == guard.WORDS[guard.NOT_FINITE]
    wanted = made.named(2 * tiny.B, 4 * tiny.B)
    assert caught.value.rows == tuple(wanted[k] | {"loss": None} for k in (2, tiny.B + 2))


def test_steps_that_are_left_out_neither_end_nor_make_a_streak(tmp_path, made):
    seen = watch(tmp_path, made, most=2)
    seen.see({"step": 1, "skipped": 2}, FINE)
    seen.see({"step": 2, "skipped": guard.LEFT_OUT}, None)
    with pytest.raises(skips.StreakError) as caught:
        seen.see({"step": 3, "skipped": 2}, FINE)
    assert caught.value.steps == (1, 3)


def test_an_earlier_process_is_counted(tmp_path, made):
    seen = watch(tmp_path, made, most=3, steps=[4, 5])
    with pytest.raises(skips.StreakError) as caught:
        seen.see({"step": 6, "skipped": 1}, BAD)
    assert caught.value.steps == (4, 5, 6)
