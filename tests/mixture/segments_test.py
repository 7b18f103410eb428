# SPDX-License-Identifier: Apache-2.0
"""Segments: any block by itself, caps in whole rows, and the noise that orders a block."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midjax.mixture import segments, stages


def build(*given, total_rows, block_rows=10, room=None, first_row=0, seed=3):
    made = stages.Mixture(
        stages=tuple(stages.Stage(name=n, weights=w, **kwargs) for n, w, kwargs in given),
        max_epochs=dict.fromkeys({name for _, w, _ in given for name in w}, 1e6),
        seed=seed,
        block_rows=block_rows,
        over_cap="error" if room is None else "shift",
    )
    found = stages.in_rows(made, dict.fromkeys(made.names, 50), 1, total_rows)
    room = None if room is None else np.array(room, np.int64)
    return segments.build(made, found, first_row=first_row, room=room)


def test_a_stage_with_a_ramp_is_two_segments_and_the_last_has_no_end():
    found = build(
        ("one", {"a": 1.0, "b": 0.0}, {"start_tokens": 0}),
        ("two", {"a": 0.5, "b": 0.5}, {"start_tokens": 95, "ramp_tokens": 38}),
        total_rows=400,
    )
    assert [(s.stage, s.begin, s.end, s.steady) for s in found] == [
        (0, 0, 95, True), (1, 95, 135, False), (1, 135, None, True)
    ]  # fmt: skip
    assert [found[1].shares(b)[1] for b in range(4)] == [0.0625, 0.1875, 0.3125, 0.4375]
    assert segments.count(found, 95).tolist() == [95, 0]
    assert segments.count(found, 135).tolist() == [125, 10]  # a quarter on the mean of the ramp


def test_blocks_alone_and_together_are_the_same_rows():
    found = build(
        ("one", {"a": 0.61, "b": 0.39}, {"start_tokens": 0}),
        ("two", {"a": 0.2, "b": 0.8}, {"start_tokens": 77}),
        total_rows=200,
    )
    (first, _) = found
    together = first.sources(0, 8)
    assert len(together) == 77  # the last block is cut where the stage ends
    assert np.array_equal(together, np.concatenate([first.sources(b, b + 1) for b in range(8)]))
    for rows in range(78):
        assert np.array_equal(first.count(rows), np.bincount(together[:rows], minlength=2))


def test_the_noise_is_splitmix64s_own():
    """The published generator's first outputs from the state that seed 0 gives (reference C code
    with the state `start`, whose successive outputs are those at 0, 1, 2 less one step)."""
    at = segments.noise(0, np.arange(1, 4))
    start = 0xE220A8397B1DCDAF  # SplitMix64's first output from seed 0, as its authors give it
    assert at.tolist() == [splitmix64(start, n) for n in (1, 2, 3)]
    assert len(set(segments.noise(7, np.arange(100_000)).tolist())) == 100_000


def splitmix64(state: int, steps: int) -> int:
    mask = (1 << 64) - 1
    z = (state + steps * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_places_in_a_block_are_even():
    """Chi-square of where the one row of `b` in blocks of 10 lies, over 5,000 blocks: 9 degrees of
    freedom, 27.9 is the 0.1 % quantile."""
    (segment,) = build(("s", {"a": 0.9, "b": 0.1}, {"start_tokens": 0}), total_rows=50_000)
    places = np.nonzero(segment.sources(0, 5000) == 1)[0] % 10
    seen = np.bincount(places, minlength=10)
    assert ((seen - 500) ** 2 / 500).sum() < 27.9


def test_earlier_stages_take_what_they_ask_for_first():
    """30 rows of room for `b`: 25 in the first stage as asked, what is left in the second."""
    found = build(
        ("one", {"a": 0.75, "b": 0.25}, {"start_tokens": 0}),
        ("two", {"a": 0.5, "b": 0.5}, {"start_tokens": 100}),
        total_rows=200,
        room=[1000, 30],
    )
    assert segments.count(found, 100).tolist() == [75, 25]
    drawn = segments.count(found, 200)
    assert 29 <= drawn[1] <= 30 and drawn.sum() == 200


def test_rows_drawn_before_take_no_room():
    stage = ("one", {"a": 0.5, "b": 0.5}, {"start_tokens": 0})
    found = build(stage, total_rows=200, room=[1000, 50], first_row=100)
    assert found[0].last[0] == found[0].last[1]  # 50 rows for the 100 that are left: as asked
    with pytest.raises(ValueError, match="'one': every source that it draws from is at its cap"):
        build(stage, total_rows=200, room=[40, 50], first_row=100)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_caps_are_kept_in_whole_rows(data):
    n = data.draw(st.integers(2, 6))
    names = [f"s{i}" for i in range(n)]
    total = data.draw(st.integers(1, 900))
    weights = [
        {name: data.draw(st.integers(0, 9)) / 9 for name in names[1:]} | {"s0": 1.0}
        for _ in range(2)
    ]
    later = data.draw(st.integers(1, max(1, total - 1)))
    given = [("one", weights[0], {"start_tokens": 0})]
    if later < total:
        ramp = data.draw(st.integers(0, total - later))
        given.append(("two", weights[1], {"start_tokens": later, "ramp_tokens": ramp}))
    room = [10**6] + [data.draw(st.integers(0, total)) for _ in names[1:]]
    first_row = data.draw(st.integers(0, total - 1))
    block_rows = data.draw(st.integers(1, 40))
    found = build(*given, total_rows=total, room=room, first_row=first_row, block_rows=block_rows)
    drawn = segments.count(found, total) - segments.count(found, first_row)
    assert drawn.sum() == total - first_row and (drawn <= room).all()
