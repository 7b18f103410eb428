# SPDX-License-Identifier: Apache-2.0
"""Where arrays lie, from libtpu's texts."""

import pytest

from midjax.plan import buffers

ASSIGNMENT = """BufferAssignment:
allocation 0: size 512, page 0, thread-local:
 value: <5 add.21 @0> (size=512,offset=0): bf16[]{:T(256)}
allocation 1: size 4096, page 0, parameter 3, shape |f32[1024]| at ShapeIndex {}, maybe-live-out:
 value: <168 param.4 @0> (size=4096,offset=0): f32[1024]{0}
 value: <175 sub.28 @0> (size=4096,offset=0): f32[1024]{0}
allocation 18: size 1000, page 0, preallocated-temp:
 value: <1 a @0> (size=600,offset=0): u8[600]{0}
 value: <2 b @0> (size=200,offset=600): u8[200]{0}
 value: <3 loop{1} (phi) @0> (size=600,offset=0): u8[600]{0}
 value: <4 c @0> (size=400,offset=300): u8[400]{0}
allocation 21: size 2048, color 1, page 0, preallocated-temp:
 value: <88 d{0} @1> (size=2048,offset=0): bf16[1024]{0:T(8,128)(2,1)S(1)}
"""
RANGES = """HloLiveRange (max 5):
  InstructionSequence:
    0:a
    1:b
    2:loop
    3:c
    4:d
  BufferLiveRange:
    a{}:0-1
    b{}:1-2
    loop{1}:1-2
    c{}:3-4
    d{0}:4-4
  Live ranges at 1 (peak):
    a{}: 600 bytes (cumulative: 600 bytes)
"""


def heap() -> tuple[buffers.Buffers, buffers.Allocation]:
    found = buffers.parse(ASSIGNMENT, RANGES)
    return found, found.allocations[2]


def test_allocations_and_their_values():
    found, temporary = heap()
    assert [one.kind for one in found.allocations] == [
        *("thread-local", "parameter", "preallocated-temp", "preallocated-temp")
    ]
    assert [one.parameter for one in found.allocations] == [-1, 3, -1, -1]
    assert [one.space for one in found.allocations] == [0, 0, 0, 1]
    assert found.order == ("a", "b", "loop", "c", "d")
    loop = temporary.values[2]
    assert (loop.name, loop.element, loop.bytes, loop.first, loop.last) == ("loop", (1,), 600, 1, 2)
    assert found.allocations[0].values[0].first == -1  # the compiler doesn't say


def test_what_shares_a_place_counts_once():
    found, temporary = heap()
    # a; a and loop in one place, and b; loop and b; c alone, twice.
    assert found.live_bytes(temporary).tolist() == [600, 800, 800, 400, 400]


def test_pieces_that_are_in_use():
    found, temporary = heap()
    pieces = found.live_pieces(temporary, 1)
    names = [(size, {value.name for value in values}) for size, values in pieces]
    assert names == [(300, {"a", "loop"}), (300, {"a", "loop"}), (100, {"b"}), (100, {"b"})]


def test_other_texts_are_refused():
    with pytest.raises(buffers.BuffersError, match="0 allocations and 5 positions"):
        buffers.parse("", RANGES)
    with pytest.raises(buffers.BuffersError, match="0 positions"):
        buffers.parse(ASSIGNMENT, "")
    with pytest.raises(buffers.BuffersError, match="is not understood:  value: <6 odd>"):
        buffers.parse(ASSIGNMENT + " value: <6 odd>\n", RANGES)
