# SPDX-License-Identifier: Apache-2.0
"""The printed plan against rows drawn one by one."""

import collections

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from midjax.mixture import order as order_lib
from midjax.mixture import plan, stages


def two_stages(**kwargs):
    mix = stages.Mixture(
        stages=(
            stages.Stage(name="first", start_tokens=0, weights={"a": 3.0, "b": 1.0}),
            stages.Stage(name="then", start_share=0.5, weights={"b": 1.0}, ramp_share=0.25),
        ),
        max_epochs={"a": 3.0, "b": 2.5},
        seed=0,
        block_rows=4,
        over_cap="error",
    )
    given = {"source_rows": {"a": 20, "b": 24}, "row_tokens": 100, "total_rows": 64}
    return order_lib.Order(mix, **(given | kwargs))


def test_the_table_of_a_run_by_hand():
    """32 rows of 3 to 1; 16 of a ramp that ends without `a`, 6 of them `a`; 16 of `b` alone."""
    assert plan.table(two_stages()).splitlines() == [
        "first: from 0 to 3.2K tokens",
        "then: from 3.2K to 6.4K tokens, the first 1.6K a ramp",
        "",
        "stage  source    asked  in force  tokens  epochs  cap  repeats",
        "first  a        75.00%    75.00%   2,400    1.20           400",
        "first  b        25.00%    25.00%     800    0.33             -",
        "then   a         0.00%     0.00%     600    0.30           600",
        "then   b       100.00%   100.00%   2,600    1.08         1,000",
        "total  a                  46.88%   3,000    1.50    3    1,000",
        "total  b                  53.12%   3,400    1.42  2.5    1,000",
        "total                              6,400                 2,000",
    ]


def test_what_was_read_before_the_run_is_repeated_and_not_drawn():
    rows = plan.rows(two_stages(base_rows={"a": 19}))
    assert [row.repeats for row in rows if row.source == "a"] == [2300, 600]
    assert [row.tokens for row in rows if row.source == "a"] == [2400, 600]


def test_rows_of_an_earlier_mixture_stand_first():
    past = order_lib.Past(first_row=40, drawn={"a": 10, "b": 20, "gone": 10})
    order = two_stages(past=past)
    rows = plan.rows(order)
    assert [(r.stage, r.rows) for r in rows[:2]] == [(plan.BEFORE, 10), (plan.BEFORE, 20)]
    assert {r.stage for r in rows} == {plan.BEFORE, "then"}
    table = plan.table(order)
    assert "first: from 0 to 3.2K tokens, over before" in table
    assert "(drawn before)  gone             left out   1,000" in table
    assert table.splitlines()[-1].split() == ["total", "6,400", "1,800"]


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 400), ramp=st.floats(0, 0.5), block=st.integers(1, 30),
    weights=st.lists(st.integers(1, 50), min_size=4, max_size=4), base=st.integers(0, 30),
)  # fmt: skip
def test_the_plan_is_what_is_drawn(total, ramp, block, weights, base):
    first = stages.Stage(name="one", start_tokens=0, weights={"a": weights[0], "b": weights[1]})
    second = stages.Stage(
        name="two", start_share=0.5, weights={"a": weights[2], "c": weights[3]}, ramp_share=ramp
    )
    mix = stages.Mixture(
        stages=(first, second) if total > 3 else (first,),
        max_epochs=dict.fromkeys("abc" if total > 3 else "ab", 1e3),
        seed=5,
        block_rows=block,
    )
    order = order_lib.Order(
        mix, source_rows={"a": 7, "b": 40, "c": 1}, row_tokens=3, total_rows=total,
        base_rows={"a": base},
    )  # fmt: skip
    seen = {(name, row) for name in ("a",) for row in range(min(base, 7))}
    drawn, again = collections.Counter(), collections.Counter()
    for i in range(total):
        source, number = order[i]
        name = order.names[source]
        key = (mix.stages[order.stage_at(i)].name, name)
        row = (name, number % int(order.source_rows[source]))
        drawn[key] += 1
        again[key] += row in seen
        seen.add(row)
    for row in plan.rows(order):
        key = (row.stage, row.source)
        assert (row.rows, row.tokens) == (drawn[key], 3 * drawn[key])
        assert row.repeats == 3 * again[key]
        assert row.epochs == drawn[key] / order.source_rows[order.names.index(row.source)]
    assert np.isclose(sum(row.share for row in plan.totals(order)), 1)
