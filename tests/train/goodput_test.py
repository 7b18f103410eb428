# SPDX-License-Identifier: Apache-2.0
"""The stopwatch, on a clock that the tests turn."""

import subprocess
import sys
import time

import pytest

from midjax.train import goodput


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def spent(watch):
    """The buckets with time in them; their sum is checked against the clock."""
    return {name: seconds for name, seconds in watch.seconds().items() if seconds}


def test_every_moment_is_in_one_bucket(clock):
    watch = goodput.Stopwatch(7.0, clock=clock)
    clock.pass_(1)
    watch.enter("step")
    clock.pass_(2)
    with watch.measure("checkpoint"):
        clock.pass_(4)
        with watch.measure("eval"):
            clock.pass_(8)
            assert spent(watch) == {"start": 8, "step": 2, "checkpoint": 4, "eval": 8}
        clock.pass_(16)
    clock.pass_(32)
    watch.enter("other")
    clock.pass_(64)
    assert spent(watch) == {"start": 8, "step": 34, "checkpoint": 20, "eval": 8, "other": 64}
    assert sum(spent(watch).values()) == 7 + clock.now - 100


def test_a_bucket_may_be_known_only_at_the_end(clock):
    watch = goodput.Stopwatch(clock=clock)
    watch.enter("step")
    with watch.measure("data_wait") as span:
        clock.pass_(3)
        span.bucket = "step"
    with watch.measure("data_wait"):
        clock.pass_(5)
    assert spent(watch) == {"step": 3, "data_wait": 5}


def test_an_exception_ends_its_measures(clock):
    watch = goodput.Stopwatch(clock=clock)
    watch.enter("step")
    with pytest.raises(KeyError), watch.measure("checkpoint"), watch.measure("eval"):
        clock.pass_(1)
        raise KeyError
    clock.pass_(2)
    assert spent(watch) == {"eval": 1, "step": 2}


def test_steps_since_a_rollback_s_checkpoint_are_lost(clock):
    watch = goodput.Stopwatch(clock=clock)
    watch.enter("step")
    for step in (4, 8):
        clock.pass_(10)
        watch.saved(step)
    clock.pass_(3)
    with watch.measure("checkpoint"):
        clock.pass_(1)
    watch.rolled_back(4)
    assert spent(watch) == {"step": 10, "lost": 13, "checkpoint": 1}
    clock.pass_(10)
    watch.rolled_back(4)
    assert spent(watch) == {"step": 10, "lost": 23, "checkpoint": 1}


def test_the_age_of_a_process_is_between_what_others_saw_of_it():
    """Its parent looks at its own clock before it starts the child and after the child spoke; the
    child before and after it asks for its age, as it may have to wait in between."""
    code = "import time; from midjax.train import goodput; a = time.monotonic(); "
    code += "age = goodput.process_age_seconds(); print(a - age, time.monotonic() - age)"
    before = time.monotonic()
    earliest, latest = map(float, subprocess.check_output([sys.executable, "-c", code]).split())
    tick = 0.02  # the system counts in hundredths
    assert before - tick <= latest and earliest <= time.monotonic()
