# SPDX-License-Identifier: Apache-2.0
"""Trackers that raise, hang, or cannot be opened: the run goes on and every row is counted."""

import json
import math
import threading

import pytest

from midjax import log
from midjax.trackers import sink, tools

ROWS = [{"step": step, "loss": 1.0 / step} for step in range(1, 9)]


class Tool:
    """A tracker that does what the test says with each row."""

    def __init__(self, write, open_=lambda run: None, close=lambda: None):
        self.steps, self._write, self._open, self._close = [], write, open_, close

    def open(self, run):
        self._open(run)
        return self

    def write(self, step, numbers):
        self._write(step, numbers)
        self.steps.append(step)

    def close(self):
        self._close()


@pytest.fixture
def given(tmp_path, monkeypatch, capsys):
    """Puts the rows into trackers; returns the events by name, and what was printed."""
    monkeypatch.setattr(sink, "CLOSE_SECONDS", 5.0)

    def give(*trackers, rows=ROWS):
        journal = log.Journal(str(tmp_path), step=0, is_writer=True)
        run = tools.Run(run_dir=str(tmp_path), config={}, first_step=0, newest_step=0)
        with sink.Trackers(trackers, run, journal) as made:
            for row in rows:
                made.put(row)
        events = [json.loads(line) for line in (tmp_path / "events.jsonl").open()]
        by_name = {
            name: [e for e in events if e["event"] == name]
            for name in ("tracker_error", "tracker_end")
        }
        return by_name, capsys.readouterr().out

    return give


def counts(event):
    return {k: event[k] for k in ("written", "failed", "dropped", "left") if event[k]}


def test_numbers_arrive_in_order_without_what_is_none(given):
    seen = {}
    row = {"step": 3, "loss": 0.5, "loss/a": None, "grad_norm": math.inf, "name": "x", "skipped": 0}
    events, said = given(Tool(seen.__setitem__), rows=[row, {"step": 4, "loss": 0.25}])
    assert list(seen.items()) == [(3, {"loss": 0.5, "skipped": 0}), (4, {"loss": 0.25})]
    assert counts(events["tracker_end"][0]) == {"written": 2}
    assert not events["tracker_error"] and not said


def test_one_that_raises_is_named_once_and_others_go_on(given):
    def write(step, _):
        if step % 2:
            raise SystemExit("no network")

    fine = Tool(lambda *_: None)
    events, said = given(Tool(write), fine)
    assert fine.steps == [row["step"] for row in ROWS]
    assert [e["error"] for e in events["tracker_error"]] == ["SystemExit: no network"]
    assert [counts(e) for e in events["tracker_end"]] == [
        {"written": 4, "failed": 4},
        {"written": 8},
    ]
    assert said.count("no network") == 1 and "4 rows written, 4 failed" in said


def test_one_that_cannot_be_opened_drops_all(given):
    def fail(run):
        raise OSError("no login")

    events, said = given(Tool(None, open_=fail))
    assert counts(events["tracker_end"][0]) == {"dropped": 8}
    assert "OSError: no login" in said


@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_one_that_hangs_is_left_behind(given, monkeypatch, where):
    """The run gets past the end of its trackers while the hanging one still waits for us."""
    monkeypatch.setattr(sink, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(sink, "QUEUE_ROWS", 5)
    release, fine = threading.Event(), Tool(lambda *_: None)
    hang = {where: lambda *_: release.wait()}
    tool = Tool(hang.get("write", lambda *_: None), hang.get("open", lambda _: None),
                hang.get("close", lambda: None))  # fmt: skip
    events, _ = given(tool, fine)
    ends = [counts(e) for e in events["tracker_end"]]
    release.set()
    assert sum(ends[0].values()) == 8 and "failed" not in ends[0]
    if where != "close":
        assert ends[0]["left"] in (5, 6) and "written" not in ends[0]  # one may be in its hands


def test_a_full_queue_drops_rows_and_keeps_the_rest(tmp_path):
    release, begun = threading.Event(), threading.Event()

    def write(step, _):
        begun.set()
        release.wait()

    tool = Tool(write)
    run = tools.Run(run_dir=str(tmp_path), config={}, first_step=0, newest_step=0)
    made = sink.Sink(tool, run, queue_rows=3)
    made.put(ROWS[0])
    assert begun.wait(60)
    for row in ROWS[1:]:
        made.put(row)
    release.set()
    made.end()
    found = made.join(60)
    assert tool.steps == [1, 2, 3, 4]
    assert found == sink.Counts(written=4, failed=0, dropped=4, left=0)
