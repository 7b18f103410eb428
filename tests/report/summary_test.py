# SPDX-License-Identifier: Apache-2.0
"""Changes, standard errors and the sentences of the trade, against numbers worked out by hand."""

import math
import statistics

import numpy as np
import pytest

from midjax.report import records, summary


def column(label, bits, **extra):
    domains = {
        name: {"bits_per_byte": value, "bytes": 100, "tokens": 30, "documents": 4}
        for name, value in bits.items()
    }
    return records.Column(label=label, path="x", result={"domains": domains} | extra)


def compare(before, control, after, **changes):
    fields = {
        "baseline": "before",
        "control": "control",
        "result": "after",
        "guard_domain": "prose",
        "guard_percent": 5.0,
    }
    columns = [column("before", before), column("control", control), column("after", after)]
    return summary.compare(columns, **(fields | changes))


def test_changes_are_relative_to_each_reference():
    found = compare(
        {"maths": 4.0, "prose": 2.5}, {"maths": 2.0, "prose": 2.0}, {"maths": 1.5, "prose": 2.05}
    )
    maths, prose = found.rows
    assert (maths.domain, prose.domain) == ("maths", "prose")
    assert maths.against_control.percent == pytest.approx(-25)
    assert maths.against_baseline.percent == pytest.approx(-62.5)
    assert prose.against_control.percent == pytest.approx(2.5)
    assert prose.against_baseline.percent == pytest.approx(-18)
    assert found.held is True and found.notes == []
    assert found.trade == [
        "Bought: against control, after needs 25.0 % fewer bits per byte on maths.",
        "Paid: it needs 2.50 % more bits per byte on prose.",
        "Guard: prose rose by 2.50 % against control; the limit is a rise of less than 5 %. "
        "It holds.",
    ]


@pytest.mark.parametrize(
    ("after", "held"), [(1.0, True), (2.0, True), (2.0999, True), (2.1001, False), (3.0, False)]
)
def test_the_guard(after, held):
    found = compare({"prose": 2.0}, {"prose": 2.0}, {"prose": after})
    assert found.held is held
    assert ("It holds" in found.trade[-1]) is held
    assert ("It is broken" in found.trade[-1]) is not held


def test_missing_and_null_numbers_are_said():
    found = compare(
        {"prose": 2.0}, {"prose": None, "code": 1.0}, {"prose": 2.0, "code": 2.0, "law": 1.0}
    )
    assert found.held is None
    assert found.trade[-1] == "Guard: whether prose rose by less than 5 % is not known."
    assert "Not known, for want of a number in control or after: law and prose." in found.trade
    assert "code was not measured for before." in found.notes
    assert "law was not measured for before and control." in found.notes
    assert "prose: the loss of control is not a finite number." in found.notes
    assert found.trade[0].startswith("Bought: nothing clear")


def test_what_can_not_be_compared_is_said():
    old, new = column("before", {"prose": 2.0}, row_tokens=256), column("after", {"prose": 2.0})
    new.result["domains"]["prose"]["content_hash"] = "other"
    found = summary.compare(
        [old, new],
        baseline="before",
        control="before",
        result="after",
        guard_domain="prose",
        guard_percent=1.0,
    )
    assert "different held-out text" in found.notes[0] and "row_tokens differs" in found.notes[1]


def test_a_guard_domain_that_nobody_measured_is_refused():
    with pytest.raises(ValueError, match=r"guard_domain='law' is in no column.*prose"):
        compare({"prose": 1.0}, {"prose": 1.0}, {"prose": 1.0}, guard_domain="law")


def with_blocks(label, nats):
    blocks = [{"nats": float(n), "bytes": 100} for n in nats]
    total = sum(nats) / (math.log(2) * 100 * len(nats))
    made = column(label, {"prose": total})
    made.result["domains"]["prose"]["blocks"] = blocks
    return made


def test_the_jackknife_is_the_standard_error_of_a_mean_where_that_is_exact():
    """With equal blocks in the reference, the ratio is a mean, and the jackknife is exact."""
    rng = np.random.default_rng(0)
    nats = 200 + rng.normal(size=20)
    found = summary.change(with_blocks("a", nats), with_blocks("b", [200.0] * 20), "prose")
    percents = [100 * (n / 200 - 1) for n in nats]
    assert found.percent == pytest.approx(statistics.mean(percents))
    # Leaving a block out of the reference leaves the ratio of sums a mean of the others.
    assert found.error == pytest.approx(statistics.stdev(percents) / math.sqrt(20), rel=1e-9)
    assert found.clear is (abs(found.percent) > 2 * found.error)


def test_what_is_hard_for_both_cancels():
    hard = np.linspace(50, 400, 16)
    found = summary.change(with_blocks("a", hard * 0.9), with_blocks("b", hard), "prose")
    assert found.percent == pytest.approx(-10) and found.error == pytest.approx(0, abs=1e-9)
    assert found.clear


def test_few_or_unequal_blocks_give_no_error():
    few = summary.change(with_blocks("a", [1.0] * 7), with_blocks("b", [2.0] * 7), "prose")
    assert math.isnan(few.error) and few.clear
    unequal = summary.change(with_blocks("a", [1.0] * 9), with_blocks("b", [2.0] * 10), "prose")
    assert math.isnan(unequal.error)


def test_a_change_within_the_noise_is_not_called_one():
    rng = np.random.default_rng(1)
    base = np.full(16, 200.0)
    noisy = base + rng.permutation(np.linspace(-20, 21, 16))
    columns = [
        with_blocks("before", base),
        with_blocks("control", base),
        with_blocks("after", noisy),
    ]
    found = summary.compare(
        columns,
        baseline="before",
        control="control",
        result="after",
        guard_domain="prose",
        guard_percent=5.0,
    )
    assert "No clear change (within twice the standard error): prose." in found.trade
    assert found.trade[1].startswith("Paid: nothing clear")


@pytest.mark.parametrize(
    ("percent", "words"),
    [(1.25, "+1.25 %"), (-12.34, "−12.3 %"), (0.0, "0.00 %"), (-0.001, "0.00 %"), (math.nan, "–")],
)
def test_percent(percent, words):
    assert summary.percent(summary.Change(percent=percent, error=math.nan)) == words


def test_percent_with_error():
    change = summary.Change(percent=-12.34, error=0.456)
    assert summary.percent(change, error=True) == "−12.3 ± 0.5 %"
    assert summary.percent(change, signed=False) == "12.3 %"
