# SPDX-License-Identifier: Apache-2.0
"""What runs beside the clock."""

from midjax.plan import lanes, tally


def setup():
    clock, waits = tally.Tally(), {}
    beside = lanes.Lanes(clock)

    def start(name, lane, seconds):
        def finish(waited, takes):
            waits[name] = (waited, takes)
            clock.add("collectives", waited)

        beside.start(name, lane, seconds, finish)

    return clock, beside, start, waits


def test_only_what_is_left_is_waited_for():
    clock, beside, start, waits = setup()
    start("a", "ici", 5.0)
    clock.add("matrix", 3.0)
    beside.wait("a")
    assert waits == {"a": (2.0, 5.0)}
    assert clock.seconds == 5.0
    start("b", "ici", 1.0)
    clock.add("matrix", 3.0)
    beside.wait("b")
    assert waits["b"] == (0.0, 1.0)


def test_one_lane_does_one_thing_at_a_time_and_two_do_two():
    clock, beside, start, waits = setup()
    start("a", "ici", 4.0)
    start("b", "ici", 4.0)
    start("c", "host", 4.0)
    assert "a" in beside and "d" not in beside
    beside.wait("c")
    beside.wait("b")
    assert waits == {"c": (4.0, 4.0), "b": (4.0, 4.0)}
    assert clock.seconds == 8.0


def test_what_nobody_waits_for_is_named():
    clock, beside, start, waits = setup()
    start("a", "ici", 4.0)
    beside.wait("of another computation")
    assert beside.leave() == ["a"] and beside.leave() == []
    assert waits == {"a": (0.0, 4.0)}
    assert clock.seconds == 0.0
