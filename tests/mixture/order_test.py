# SPDX-License-Identifier: Apache-2.0
"""The order against the definition of its shares, counted one row at a time."""

import dataclasses
import itertools
from multiprocessing import reduction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midjax.mixture import order as order_lib
from midjax.mixture import plan as plan_lib
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


def test_an_order_goes_to_other_processes():
    order = make(mixture(THREE, LATER), total_rows=400, base_rows={"code": 11})
    order.rows(0, 50)
    other = reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(order))
    assert np.array_equal(order.rows(9, 300), other.rows(9, 300))
    assert order.fingerprint() == other.fingerprint()


def test_a_longer_run_begins_with_the_same_rows():
    short, long = (make(mixture(THREE, LATER), total_rows=n) for n in (273, 999))
    assert np.array_equal(short.rows(0, 273), long.rows(0, 273))
    assert short.fingerprint() == long.fingerprint()


def test_where_a_source_runs_dry_is_said():
    mix = mixture(THREE, ("b", 8 * 137, {"web": 0.0, "code": 1.0, "maths": 0.0}), cap=2.0)
    with pytest.raises(ValueError, match="runs? dry|dry at") as error:
        make(mix, rows=100, total_rows=400)
    order = make(mixture(THREE, ("b", 8 * 137, {"web": 0.0, "code": 1.0, "maths": 0.0})), 400)
    (dry,) = (i for i in range(400) if order[i] == (0, 200))  # the 201st row of code
    assert f"code: 290 of 100 rows = 2.90 epochs, cap 2, dry at {8 * dry} tokens in stage 'b'" in (
        str(error.value)
    )


def shifting(*given, caps, total_rows, rows=50, **kwargs):
    mix = mixture(*given)
    mix = stages_lib.Mixture(
        stages=mix.stages, max_epochs=caps, seed=3, block_rows=10, over_cap="shift"
    )
    return make(mix, total_rows, rows=rows, **kwargs)


def test_caps_shift_to_the_rest_in_proportion():
    order = shifting(THREE, caps={"web": 100.0, "code": 100.0, "maths": 0.5}, total_rows=500)
    assert order.counts(500)[1] in (24, 25)  # half an epoch of maths, which asked for 50 rows
    code, maths, web = order.shares(0)
    assert maths == pytest.approx(0.05, abs=0.003) and web / code == pytest.approx(3.5, rel=0.01)
    with pytest.raises(ValueError, match=r"'a': every source .* at its cap, and about \d+ rows"):
        shifting(THREE, caps={"web": 1.0, "code": 1.0, "maths": 1.0}, total_rows=500)


@st.composite
def weights(draw, names):
    found = {name: draw(st.integers(0, 20)) for name in names}
    found[draw(st.sampled_from(names))] += 1
    return {name: share / 7 for name, share in found.items()}


@st.composite
def mixtures(draw, most_rows=500):
    """(mixture, arguments of Order): one to three stages, some with ramps."""
    names = [f"s{i}" for i in range(draw(st.integers(1, 5)))]
    total = draw(st.integers(1, most_rows))
    row_tokens = draw(st.integers(1, 5))
    starts = sorted(draw(st.sets(st.integers(1, total), max_size=2)) - {total})
    found = []
    for i, (begin, end) in enumerate(itertools.pairwise([0, *starts, total])):
        ramp = draw(st.integers(0, end - begin)) * row_tokens if i and draw(st.booleans()) else None
        found.append(
            stages_lib.Stage(
                name=f"stage {i}",
                start_tokens=begin * row_tokens,
                weights=draw(weights(names)),
                ramp_tokens=ramp,
            )
        )
    source_rows = {name: draw(st.integers(1, 60)) for name in names}
    over_cap = draw(st.sampled_from(["error", "shift"]))
    caps = dict.fromkeys(names, 1e6)
    if over_cap == "shift":
        caps |= {name: draw(st.floats(0, 6)) for name in names[1:]}
    mix = stages_lib.Mixture(
        stages=tuple(found),
        max_epochs=caps,
        seed=draw(st.integers(0, 2**32 - 1)),
        block_rows=draw(st.integers(1, 25)),
        over_cap=over_cap,
    )
    base = {name: draw(st.integers(0, 90)) for name in names}
    arguments = {
        "source_rows": source_rows, "row_tokens": row_tokens, "total_rows": total,
        "base_rows": base,
    }  # fmt: skip
    return mix, arguments


def build(mix, arguments, **kwargs):
    """The order, or None where the caps leave a stage nothing to draw."""
    try:
        return order_lib.Order(mix, **(arguments | kwargs))
    except ValueError as error:
        assert mix.over_cap == "shift" and "every source that it draws from is at its cap" in str(
            error
        )
        return None


def asked(mix, order, row):
    """Share of each source that a block beginning at `row` is to have, from the weights alone."""
    if mix.over_cap == "shift":
        return order.shares(row)
    shares = [
        np.array([s.weights.get(name, 0) for name in mix.names]) / sum(s.weights.values())
        for s in mix.stages
    ]
    at = max(i for i, stage in enumerate(order.stages) if stage.begin <= row)
    block = (row - order.stages[at].begin) // mix.block_rows
    blocks = order.stages[at].ramp_blocks
    done = (block + 0.5) / blocks if block < blocks else 1
    return shares[at - 1] * (1 - done) + shares[at] * done


@settings(max_examples=120, deadline=None)
@given(mixtures(), st.data())
def test_random_mixtures_are_exact_and_lose_nothing(given, data):
    """Block by block within one row, no row lost or repeated over resumes, caps kept.

    Readers on several hosts are the loader's: tests/batches/loader_test.py.
    """
    mix, arguments = given
    total = arguments["total_rows"]
    order = build(mix, arguments)
    if order is None:
        return
    sources, numbers = order.rows(0, total)
    # Each source's rows are its own next ones, in order.
    for k, name in enumerate(order.names):
        mine = numbers[sources == k]
        assert np.array_equal(mine, arguments["base_rows"][name] + np.arange(len(mine)))
        assert len(mine) <= mix.max_epochs[name] * arguments["source_rows"][name] + 1e-9
    # Shares: in each block of each stage and of each ramp.
    for stage in order.stages:
        ramp = stage.begin + stage.ramp_blocks * mix.block_rows
        for begin, end in ((stage.begin, min(ramp, stage.end)), (ramp, stage.end)):
            for first in range(begin, end, mix.block_rows):
                last = min(first + mix.block_rows, end)
                if last == total and last - first < mix.block_rows:
                    continue  # the run may go on inside this block
                counts = np.bincount(sources[first:last], minlength=len(order.names))
                # A weight is exact to one row in 256 blocks.
                wanted = asked(mix, order, first) * (last - first)
                assert np.abs(counts - wanted).max() <= 1 + 1 / 256
    # Any position at once, resumes with other batch sizes.
    found, at = [], 0
    while at < total:
        fresh = order_lib.Order(mix, **arguments) if data.draw(st.booleans()) else order
        batch = data.draw(st.integers(1, 60))
        for _ in range(data.draw(st.integers(1, 30))):
            end = min(at + batch, total)
            found.append(np.stack(fresh.rows(at, end), 1))
            at = end
            if at == total:
                break
    assert np.array_equal(np.concatenate(found), np.stack([sources, numbers], 1))
    one = data.draw(st.integers(0, total - 1))
    assert order[one] == (sources[one], numbers[one])
    seen = np.bincount(sources[:one], minlength=len(order.names))
    assert np.array_equal(order.counts(one), seen)


@settings(max_examples=60, deadline=None)
@given(mixtures(), st.data())
def test_a_run_is_refused_if_and_only_if_a_cap_is_broken(given, data):
    mix, arguments = given
    mix = dataclasses.replace(mix, max_epochs=dict.fromkeys(mix.names, 1e6), over_cap="error")
    total = arguments["total_rows"]
    drawn = order_lib.Order(mix, **arguments).drawn(total)
    caps = {name: data.draw(st.integers(0, 40)) / 4 for name in mix.names}
    most = {name: caps[name] * arguments["source_rows"][name] for name in mix.names}
    broken = {name for name in mix.names if drawn[name] > most[name]}
    capped = dataclasses.replace(mix, max_epochs=caps)
    if not broken:
        assert order_lib.Order(capped, **arguments).drawn(total) == drawn
        return
    with pytest.raises(ValueError, match="more epochs than its caps allow") as error:
        order_lib.Order(capped, **arguments)
    assert broken == {name for name in mix.names if f" {name}: " in str(error.value)}


@settings(max_examples=80, deadline=None)
@given(mixtures(), st.data())
def test_a_mixture_that_changes_goes_on_in_every_source(given, data):
    """Again and again at random rows: each source's numbers go on, past rows count for caps."""
    mix, arguments = given
    total, at = arguments["total_rows"], 0
    drawn: dict[str, int] = {}
    past = order_lib.NOTHING
    for _ in range(3):
        order = build(mix, arguments, past=past)
        if order is None:
            return
        end = data.draw(st.integers(at, total))
        sources, numbers = order.rows(at, end)
        for k, name in enumerate(order.names):
            mine = numbers[sources == k]
            first = arguments["base_rows"][name] + drawn.get(name, 0)
            assert np.array_equal(mine, first + np.arange(len(mine)))
            drawn[name] = drawn.get(name, 0) + len(mine)
        assert order.drawn(end) == drawn
        at = end
        past = order_lib.Past(first_row=at, drawn=dict(drawn))
        changed = [
            stages_lib.Stage(
                name=s.name,
                start_tokens=s.start_tokens,
                weights=data.draw(weights(list(mix.names))),
            )
            for s in mix.stages
        ]
        mix = stages_lib.Mixture(
            stages=tuple(changed),
            max_epochs=dict.fromkeys(mix.names, 1e6),
            seed=mix.seed,
            block_rows=data.draw(st.integers(1, 25)),
        )


@settings(max_examples=60, deadline=None)
@given(mixtures(), st.data())
def test_what_changes_only_later_leaves_the_rows_until_then(given, data):
    """A stage that is put in at the end, seen from a resume before it."""
    mix, arguments = given
    total = arguments["total_rows"]
    order = build(mix, arguments)
    last = mix.stages[-1]
    first_free = (last.start_tokens or 0) + (last.ramp_tokens or 0) + 25 * arguments["row_tokens"]
    if order is None or mix.over_cap == "shift" or first_free >= total * arguments["row_tokens"]:
        return
    start = data.draw(st.integers(first_free, total * arguments["row_tokens"] - 1))
    more = stages_lib.Stage(
        name="more", start_tokens=start, weights=data.draw(weights(list(mix.names)))
    )
    changed = stages_lib.Mixture(
        stages=(*mix.stages, more), max_epochs=mix.max_epochs, seed=mix.seed,
        block_rows=mix.block_rows,
    )  # fmt: skip
    begin = -(-start // arguments["row_tokens"])
    if begin >= total:
        return
    # The block in which the stage before is cut is the only one that may differ.
    same = begin - mix.block_rows
    at = data.draw(st.integers(0, max(same, 0)))
    past = order_lib.Past(first_row=at, drawn=order.drawn(at))
    other = order_lib.Order(changed, **arguments, past=past)
    until = max(same, at)
    assert np.array_equal(order.rows(at, until), other.rows(at, until))
