# SPDX-License-Identifier: Apache-2.0
"""Computed weights against the formulas of their papers, by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midjax.mixture import weights

COUNTS = {"en": 3_000_000, "de": 300_000, "sw": 1_000}


def shares(rule, counts=COUNTS, budget=10_000):
    found = rule.weights(counts, budget)
    return {name: found[name] / sum(found.values()) for name in counts}


def test_temperature_is_a_power_of_the_counts():
    """mT5's 0.3, and T = 1 and T = infinity."""
    names = tuple(COUNTS)
    found = shares(weights.Temperature(sources=names, exponent=0.3))
    total = 3e6**0.3 + 3e5**0.3 + 1e3**0.3
    assert found == pytest.approx({n: COUNTS[n] ** 0.3 / total for n in names})
    found = shares(weights.Temperature(sources=names, exponent=1.0))
    assert found == pytest.approx({n: COUNTS[n] / sum(COUNTS.values()) for n in names})
    found = shares(weights.Temperature(sources=names, exponent=0.0))
    assert found == pytest.approx(dict.fromkeys(names, 1 / 3))


def test_unimax_by_hand():
    """Budget 10,000 over counts of 100, 2,000 and a million, at most 4 epochs: the smallest gets
    400; of the 9,600 left each of two could get 4,800, and both may."""
    counts = {"big": 1_000_000, "small": 100, "middle": 2_000}
    rule = weights.UniMax(sources=tuple(counts), max_epochs=4)
    assert rule.weights(counts, 10_000) == {"small": 400, "middle": 4_800, "big": 4_800}
    # With one epoch the middle one is capped as well, and the big one takes the rest.
    once = weights.UniMax(sources=tuple(counts), max_epochs=1)
    assert once.weights(counts, 10_000) == {"small": 100, "middle": 2_000, "big": 7_900}


def test_unimax_with_more_budget_than_text_is_proportional():
    rule = weights.UniMax(sources=tuple(COUNTS), max_epochs=2)
    found = shares(rule, budget=10**12)
    assert found == pytest.approx({n: c / sum(COUNTS.values()) for n, c in COUNTS.items()})


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=20),
    st.floats(0.5, 8),
    st.integers(1, 10**7),
)
def test_unimax_is_as_even_as_its_caps_allow(counts, cap, budget):
    """What characterises it: no one over its cap, and who is under it has the most of all."""
    named = {f"s{i}": count for i, count in enumerate(counts)}
    found = weights.UniMax(sources=tuple(named), max_epochs=cap).weights(named, budget)
    most = max(found.values())
    for name, count in named.items():
        assert found[name] <= count * cap * (1 + 1e-9)
        assert found[name] == pytest.approx(min(count * cap, most), rel=1e-6)
    assert sum(found.values()) == pytest.approx(min(budget, sum(counts) * cap))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: weights.Temperature(sources=("a",), exponent=5.0), "It is 1 / T"),
        (lambda: weights.Temperature(sources=(), exponent=0.5), "must name one source or more"),
        (lambda: weights.UniMax(sources=("a", "a"), max_epochs=1.0), "each once"),
        (lambda: weights.UniMax(sources=("a",), max_epochs=0.0), "must be above 0"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
