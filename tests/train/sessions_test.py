# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes, on clocks that the tests turn; a real run is in tests/e2e."""

import json
import pathlib

import pytest

from midjax import log
from midjax.train import goodput, sessions


class World:
    """A clock for everything, and a run directory that sessions write to."""

    def __init__(self, folder, monkeypatch):
        self.now, self.folder = 1000.0, str(folder)
        monkeypatch.setattr("time.time", lambda: self.now)

    def begin(self, first_step, *, start=5.0):
        """A new process that goes on from `first_step`."""
        self.watch = goodput.Stopwatch(clock=lambda: self.now)
        self.now += start
        self.go_on(first_step)

    def go_on(self, first_step):
        """The process begins, or goes back."""
        self.account = sessions.Account(self.folder, self.watch, first_step=first_step)
        self.journal = log.Journal(self.folder, step=first_step, is_writer=True)
        self.watch.enter("step")
        self.event(first_step)

    def event(self, step, **kwargs):
        self.account.step = step
        self.journal.event("goodput", **self.account.fields(**kwargs))

    def steps(self, first, last, seconds=1.0):
        for step in range(first, last + 1):
            self.now += seconds
            self.journal.metrics({"step": step, sessions.ROW_TIME: self.now})

    def run(self):
        return {name: round(s, 6) for name, s in self.account.seconds().items() if s}


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


def test_what_a_killed_session_did_after_its_checkpoint_is_lost(world):
    world.begin(0)
    world.steps(1, 10)
    world.event(10)
    world.steps(11, 13)  # killed here
    world.now += 60
    world.begin(10, start=7)
    assert world.run() == {"start": 12, "step": 10, "lost": 3, "down": 60}
    world.steps(11, 20, seconds=2.0)
    assert world.run() == {"start": 12, "step": 30, "lost": 3, "down": 60}
    assert sum(world.run().values()) == world.now - 1000
    assert world.account.fields()["goodput"] == pytest.approx(30 / 105)
    assert (
        world.account.sentence() == "goodput 29% of 1m45s: start 12s, step 30s, lost 3s, down 1m00s"
    )


def test_a_checkpoint_that_did_not_arrive_loses_what_it_held(world):
    """The third session goes on from before what the second went on from."""
    world.begin(0)
    world.steps(1, 4)
    world.event(4)
    world.steps(5, 8)
    world.event(8)
    world.steps(9, 9)
    world.now += 10
    world.begin(8)
    world.steps(9, 10)
    world.now += 20
    world.begin(4)
    # First session: 5 start, 4 kept, 5 lost. Second: 5 start, 2 lost. Third: 5 start.
    assert world.run() == {"start": 10, "step": 4, "lost": 12, "down": 30} | {"start": 10}
    assert sum(world.run().values()) == world.now - 1000


def test_a_run_killed_before_its_first_checkpoint_keeps_nothing_but_its_start(world):
    world.begin(0)
    world.steps(1, 3)
    world.now += 1
    world.begin(0)
    assert world.run() == {"start": 10, "lost": 3, "down": 1}


def test_a_rollback_loses_what_it_undoes_whoever_did_it(world):
    """The second session goes back to its own checkpoint, then to one of the first session."""
    world.begin(0)
    world.steps(1, 4)
    world.event(4)
    world.steps(5, 8)
    world.event(8)
    world.begin(8)
    world.steps(9, 12)
    world.watch.saved(12)
    world.event(12)
    world.steps(13, 15)
    world.go_on(12)
    assert world.run() == {"start": 10, "step": 12, "lost": 3}
    world.go_on(4)
    assert world.run() == {"start": 10, "step": 4, "lost": 11}
    world.steps(5, 6)
    world.begin(4)  # after a kill
    assert world.run() == {"start": 15, "step": 4, "lost": 13}
    assert sum(world.run().values()) == world.now - 1000


def test_a_session_that_ended_lost_nothing(world):
    world.begin(0)
    world.steps(1, 4)
    world.watch.enter("other")
    world.now += 2
    world.event(4, final=True)
    world.journal.event("end", step=4)
    world.now += 100
    world.begin(4)
    assert world.run() == {"start": 10, "step": 4, "other": 2, "down": 100}


def test_rows_that_were_cut_off_and_torn_lines_do_not_matter_later(world):
    """The second session removes the first one's last rows; the third still knows their time."""
    world.begin(0)
    world.steps(1, 2)
    world.event(2)
    world.steps(3, 6)
    with open(f"{world.folder}/metrics.jsonl", "a") as file:
        file.write('{"step": 7, "perf/ti')
    world.begin(2)
    with open(f"{world.folder}/events.jsonl", "a") as file:
        file.write('{"event": "goo')
    world.now += 3
    world.begin(2)
    lines = pathlib.Path(world.folder, "events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["event"] for line in lines]
    assert "rows_redone" in kinds and "event_torn" in kinds
    assert world.run() == {"start": 15, "step": 2, "lost": 4, "down": 3}
