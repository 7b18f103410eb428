# SPDX-License-Identifier: Apache-2.0
"""Sums, and multiples of them."""

from midjax.plan import groups, links, tally

MOVED = links.Transfer(
    kind="all-gather",
    group=groups.Group(axis="fsdp", size=4),
    network="ici",
    bytes_sent=30.0,
    seconds=2.0,
)


def body() -> tally.Tally:
    one = tally.Tally()
    one.add("matrix", 3.0)
    one.add("collectives", 0.5)
    one.flops["matrix"] += 100.0
    one.add_item(
        "f", tally.Item(opcode="fusion", op_name="mlp", part="matrix", runs=1, seconds=3.0)
    )
    one.add_collective(MOVED, "beside")
    one.add_collective(MOVED, "beside", runs=0, exposed_seconds=0.5)
    one.loops.append(
        tally.Loop(name="w", op_name="", trips=2, how="", runs=1, seconds_per_trip=1.0)
    )
    one.notes["odd"] += 1
    return one


def test_a_body_times_its_trips():
    whole = tally.Tally()
    whole.merge(body(), 4)
    whole.merge(body(), 1)
    assert whole.seconds == sum(whole.parts.values()) == 5 * 3.5
    assert whole.flops["matrix"] == 500.0
    assert (whole.items["f"].runs, whole.items["f"].seconds) == (5, 15.0)
    sums = whole.collectives["fsdp", "all-gather", "ici", "beside"]
    assert (sums.runs, sums.bytes_sent, sums.seconds, sums.exposed_seconds) == (5, 150.0, 10.0, 2.5)
    assert [loop.runs for loop in whole.loops] == [4, 1]
    assert whole.notes == {"odd": 2}


def test_a_merged_body_stays_as_it_was():
    one, whole = body(), tally.Tally()
    whole.merge(one, 3)
    assert one.items["f"].runs == 1 and one.loops[0].runs == 1
