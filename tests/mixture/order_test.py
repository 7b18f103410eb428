# SPDX-License-Identifier: Apache-2.0
"""The order against the definition of its shares, counted one row at a time."""

import fractions

import numpy as np
import pytest

from midjax.mixture import order as order_lib
from midjax.mixture import plan as plan_lib
from midjax.mixture import spread
from midjax.mixture import stages as stages_lib


def mixture(*stages, seed=3, block_rows=10, cap=1e9):
    names = {name for _, _, weights in stages for name in weights}
    return stages_lib.Mixture(
        stages=tuple(
            stages_lib.Stage(name=n, start_tokens=start, weights=w) for n, start, w in stages
        ),
        max_epochs=dict.fromkeys(names, cap),
        seed=seed,
        block_rows=block_rows,
    )


def make(mix, total_rows=1000, row_tokens=8, rows=50, **kwargs):
    return order_lib.Order(
        mix,
        source_rows=dict.fromkeys(mix.names, rows),
        row_tokens=row_tokens,
        total_rows=total_rows,
        **kwargs,
    )


THREE = ("a", 0, {"web": 0.7, "code": 0.2, "maths": 0.1})
LATER = ("b", 8 * 137, {"web": 0.25, "code": 0.25, "maths": 0.5})


def test_every_block_holds_the_exact_share():
    order = make(mixture(THREE), total_rows=500)
    sources = np.array([order[i][0] for i in range(500)]).reshape(-1, 10)
    web = order.names.index("web")
    assert order.names == ("code", "maths", "web")
    for block in sources:
        assert np.bincount(block, minlength=3).tolist() == [2, 1, 7]
    assert len({tuple(block) for block in sources}) > 20  # the order inside a block is shuffled
    assert (sources[:, 0] == web).mean() == pytest.approx(0.7, abs=0.2)


def test_shares_that_no_block_can_hold_stay_within_one_row():
    weights = {"a": 1 / 3, "b": 0.017, "c": 1 - 1 / 3 - 0.017}
    order = make(mixture(("s", 0, weights), block_rows=7), total_rows=3000)
    seen = np.zeros(3)
    for i in range(3000):
        seen[order[i][0]] += 1
        if (i + 1) % 7 == 0:
            assert np.abs(seen - (i + 1) * np.array([weights[n] for n in order.names])).max() < 1.6


def test_counts_and_row_numbers_are_those_of_reading_in_order():
    order = make(mixture(THREE, LATER), total_rows=400, base_rows={"code": 11})
    seen = np.zeros(3, int)
    for i in range(400):
        assert order.counts(i).tolist() == seen.tolist()
        source, number = order[i]
        assert number == seen[source] + (11 if order.names[source] == "code" else 0)
        seen[source] += 1
    assert order.counts(400).tolist() == seen.tolist()
    # Stage boundaries that no block meets are exact as well: 137 rows, then 263.
    ideal = [137 * w + 263 * v for w, v in ((0.2, 0.25), (0.1, 0.5), (0.7, 0.25))]
    assert np.abs(seen - ideal).max() < 2


def test_rows_from_anywhere_are_those_one_by_one():
    order = make(mixture(THREE, LATER), total_rows=400, base_rows={"code": 11})
    one_by_one = np.array([order[i] for i in range(400)])
    for begin, end in ((0, 400), (0, 0), (3, 4), (128, 141), (137, 137), (399, 400)):
        sources, numbers = order.rows(begin, end)
        assert sources.dtype == numbers.dtype == np.int64
        assert np.array_equal(np.stack([sources, numbers], 1), one_by_one[begin:end])


def test_a_later_stage_does_not_change_the_past():
    one = make(mixture(THREE, LATER), total_rows=400)
    other = make(mixture(THREE, ("b", 8 * 137, {"web": 1.0, "code": 0, "maths": 0})))
    assert [one[i] for i in range(137)] == [other[i] for i in range(137)]
    assert [one[i] for i in range(137, 300)] != [other[i] for i in range(137, 300)]
    assert one.fingerprint() != other.fingerprint()


def test_dict_order_is_no_fact_and_the_seed_is():
    reverse = ("a", 0, dict(reversed(THREE[2].items())))
    assert make(mixture(THREE)).fingerprint() == make(mixture(reverse)).fingerprint()
    assert make(mixture(THREE)).fingerprint() != make(mixture(THREE, seed=4)).fingerprint()


def test_weights_are_normalised_and_said():
    mix = mixture(("s", 0, {"a": 2.0, "b": 6.0}))
    assert mix.unnormalised() == ["weights of stage 's' sum to 8; normalised to 1"]
    assert [row.share for row in plan_lib.rows(make(mix, total_rows=100))] == [0.25, 0.75]
    assert mixture(THREE).unnormalised() == []


def test_plan_adds_up():
    order = make(mixture(THREE, LATER), total_rows=400)
    plan = plan_lib.rows(order)
    assert sum(row.rows for row in plan) == 400
    assert sum(row.rows for row in plan if row.stage == "a") == 137
    assert all(row.tokens == row.rows * 8 and row.epochs == row.rows / 50 for row in plan)


def test_caps_are_checked_before_the_run():
    make(mixture(("s", 0, {"a": 1.0}), cap=2.0), total_rows=100)
    with pytest.raises(ValueError, match=r"a: 101 of 50 rows = 2.02 epochs, cap 2"):
        make(mixture(("s", 0, {"a": 1.0}), cap=2.0), total_rows=101)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "must start at 0"),
        ([("s", 5, {"a": 1.0})], "must start at 0"),
        ([("s", 0, {"a": 1.0}), ("t", 0, {"a": 1.0})], "must start at 0 tokens and rise"),
        ([("s", 0, {"a": -1.0, "b": 2.0})], "must be 0 or more"),
        ([("s", 0, {"a": 0.0})], "sum above 0"),
        ([("s", 0, {"a": float("nan")})], "must be 0 or more"),
    ],
)
def test_bad_stages(stages, message):
    with pytest.raises(ValueError, match=message):
        mixture(*stages)


def test_a_weight_that_is_never_drawn_is_an_error():
    with pytest.raises(ValueError, match="less than one row in 2560"):
        make(mixture(("s", 0, {"a": 1.0, "b": 1e-5})))


def test_caps_must_name_the_sources():
    stage = stages_lib.Stage(name="s", start_tokens=0, weights={"a": 1.0})
    for caps, message in (({}, "no cap for"), ({"a": 1, "b": 1}, "which no stage gives a weight")):
        with pytest.raises(ValueError, match=message):
            stages_lib.Mixture(stages=(stage,), max_epochs=caps, seed=0, block_rows=4)


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(ValueError, match="seed must lie in"):
        mixture(("s", 0, {"a": 1.0}), seed=seed)


def test_a_stage_that_is_never_reached_is_refused():
    late = mixture(("s", 0, {"a": 1.0}), ("t", 10**9, {"a": 1.0}))
    with pytest.raises(ValueError, match="'t' begins at 1000000000 tokens and the run ends"):
        make(late)


def test_largest_remainder_is_hamiltons():
    """Hamilton apportionment of the first US House bill of 1792: 120 seats, known result."""
    population = {
        "Virginia": 630_560, "Massachusetts": 475_327, "Pennsylvania": 432_879,
        "North Carolina": 353_523, "New York": 331_589, "Maryland": 278_514,
        "Connecticut": 236_841, "South Carolina": 206_236, "New Jersey": 179_570,
        "New Hampshire": 141_822, "Vermont": 85_533, "Georgia": 70_835, "Kentucky": 68_705,
        "Rhode Island": 68_446, "Delaware": 55_540,
    }  # fmt: skip
    total = sum(population.values())
    shares = np.array([float(fractions.Fraction(p, total)) for p in population.values()])
    seats = spread.largest_remainder(shares, 120)
    assert seats.tolist() == [21, 16, 14, 12, 11, 9, 8, 7, 6, 5, 3, 2, 2, 2, 2]
