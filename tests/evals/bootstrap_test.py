# SPDX-License-Identifier: Apache-2.0
"""Intervals cover the truth as often as they say; pairing pays; variances are the closed forms."""

import numpy as np
import pytest
from scipy import stats

from midjax.evals import bootstrap

SETS = 400
# 400 coverings of 95 % lie between these 99.8 % of the time (binomial).
LOW, HIGH = stats.binom.interval(0.998, SETS, 0.95)


def one(parent, now, size=None):
    size = np.ones(len(now)) if size is None else size
    return bootstrap.Stratum(parent=parent, now=now, size=size)


def skewed_blocks(rng):
    """Blocks of unequal size whose bits per byte rise by 0.05 + skewed noise."""
    size = 1000 * rng.lognormal(0, 0.5, 32)
    parent = size * rng.normal(1, 0.1, 32)
    noise = rng.gamma(0.7, size=32) - 0.7
    return [one(parent, parent + size * (0.05 + 0.1 * noise), size)]


def answers(rng, strata=10, count=10):
    """Right or wrong, correlated: half of the documents are answered alike. Accuracy falls 0.1."""
    found = []
    for _ in range(strata):
        same, old = rng.random(count) < 0.5, rng.random(count) < 0.6
        new = np.where(same, old & (rng.random(count) < 5 / 6), rng.random(count) < 0.5)
        found.append(one(old.astype(float), new.astype(float)))
    return found


def covered(make, truth, method, of):
    rng, hits = np.random.default_rng(7), 0
    for seed in range(SETS):
        drawn = bootstrap.draw(make(rng), resamples=500, seed=seed, name="x")
        found = of(drawn, level=0.95, method=method)
        hits += found.low <= truth <= found.high
    return hits


@pytest.mark.parametrize(
    ("make", "truth", "method"),
    [(skewed_blocks, 0.05, "bootstrap-t"), (answers, -0.1, "expanded percentile")],
)
def test_differences_are_covered_at_the_stated_rate(make, truth, method):
    assert LOW <= covered(make, truth, method, bootstrap.difference) <= HIGH


def test_plain_percentiles_of_few_skewed_blocks_would_not_cover():
    """Why losses have bootstrap-t: the simulation tells methods apart."""
    assert covered(skewed_blocks, 0.05, "expanded percentile", bootstrap.difference) < LOW


def test_a_ratio_of_several_scores_is_covered_at_the_stated_rate():
    """ln of now / parent of two domains: means of 1 and 1.05, and of 1 and 1.1."""

    def of(drawn, **kwargs):
        return bootstrap.log_ratio(drawn, [0.5, 0.5], **kwargs)

    rng, hits = np.random.default_rng(3), 0
    truth = 0.5 * np.log(1.05) + 0.5 * np.log(1.1)
    for seed in range(SETS):
        drawn = []
        for name, rise in (("a", 1.05), ("b", 1.1)):
            size = rng.uniform(500, 1500, 32)
            rate = rng.normal(1, 0.1, 32)
            now = size * (rate * rise + rng.normal(0, 0.05, 32))
            drawn.append(
                bootstrap.draw([one(size * rate, now, size)], resamples=500, seed=seed, name=name)
            )
        low, high = of(drawn, level=0.95, method="bootstrap-t").ends
        hits += low <= truth <= high
    assert LOW <= hits <= HIGH


def test_paired_documents_give_narrower_intervals_by_the_closed_form():
    """Of d = now - parent, and of two independent samples: 2 t s / sqrt(n)."""
    rng, n = np.random.default_rng(0), 400
    hard = rng.normal(3, 1, n)
    parent, now = hard + rng.normal(0, 0.1, n), hard + 0.05 + rng.normal(0, 0.1, n)
    shuffled = rng.permutation(now)
    for other, spread in ((now, np.std(now - parent, ddof=1)), (shuffled, None)):
        spread = spread or np.std(shuffled - parent, ddof=1)
        drawn = bootstrap.draw([one(parent, other)], resamples=4000, seed=0, name="x")
        wanted = 2 * stats.t.ppf(0.975, n - 1) * spread / np.sqrt(n)
        for method in ("bootstrap-t", "expanded percentile"):
            found = bootstrap.difference(drawn, level=0.95, method=method)
            assert found.high - found.low == pytest.approx(wanted, rel=0.06)
            assert found.method == method
    low, high = bootstrap.difference(drawn, level=0.95, method="bootstrap-t").ends
    assert low < 0 < high  # unpaired, what is there does not show


def test_the_variance_is_the_delta_method_s():
    rng = np.random.default_rng(1)
    strata = []
    for n in (5, 9):
        size = rng.uniform(1, 2, n)
        strata.append(one(size * rng.normal(1, 0.1, n), size * rng.normal(2, 0.1, n), size))
    drawn = bootstrap.draw(strata, resamples=50, seed=0, name="x")
    values = [(s.parent.sum() / s.size.sum(), s.now.sum() / s.size.sum()) for s in strata]
    assert [drawn.parent, drawn.now] == pytest.approx(np.mean(values, axis=0))
    for part, (p, n), found in zip(strata, values, drawn.covariances, strict=True):
        count = len(part.size)
        rest = np.stack([part.parent - p * part.size, part.now - n * part.size])
        wanted = np.cov(rest, ddof=1) * count / part.size.sum() ** 2 / 4
        assert found == pytest.approx([wanted[0, 0], wanted[0, 1], wanted[1, 1]])
    # The draws have that variance too, as each stratum is drawn n - 1 times.
    drawn = bootstrap.draw(strata, resamples=20000, seed=0, name="x")
    assert np.var(drawn.draws[1]) == pytest.approx(drawn.covariances[:, 2].sum(), rel=0.05)


def test_what_is_equal_has_no_width_and_one_document_no_interval():
    same = np.array([1.0, 2.0, 4.0])
    drawn = bootstrap.draw([one(same, same)], resamples=100, seed=0, name="x")
    assert bootstrap.difference(drawn, level=0.9, method="bootstrap-t").ends == (0, 0)
    drawn = bootstrap.draw([one(same / 3, same / 3 + 0.1)], resamples=100, seed=0, name="x")
    ends = bootstrap.difference(drawn, level=0.9, method="bootstrap-t").ends
    assert ends == pytest.approx((0.1, 0.1), abs=1e-12)  # all rose alike
    size = np.random.default_rng(0).uniform(900, 1100, 8)
    part = one(np.cos(size) * size, np.cos(size) * size + 0.05 * size, size)
    drawn = bootstrap.draw([part], resamples=100, seed=0, name="x")
    ends = bootstrap.difference(drawn, level=0.9, method="bootstrap-t").ends
    assert ends == pytest.approx((0.05, 0.05), abs=1e-12)  # but for round-off
    drawn = bootstrap.draw([one(size, size / 1e300, size)], resamples=100, seed=0, name="x")
    assert bootstrap.log_ratio([drawn], [1.0], level=0.9, method="bootstrap-t") is None
    lone = [one(same, same + 1), one(same[:1], same[:1])]
    drawn = bootstrap.draw(lone, resamples=100, seed=0, name="x")
    assert bootstrap.difference(drawn, level=0.9, method="expanded percentile") is None
    assert drawn.now - drawn.parent == pytest.approx(0.5)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 16])
def test_few_blocks_have_ends_within_what_the_blocks_say(count):
    """Draws of one block alone have no standard error: of 3 or 4 there were no ends."""
    rng = np.random.default_rng(count)
    size = rng.uniform(800, 1200, count)
    change = rng.normal(0.05, 0.01, count)
    part = one(size, size * (1 + change), size)
    drawn = bootstrap.draw([part], resamples=2000, seed=0, name="x")
    for found in (
        bootstrap.difference(drawn, level=0.95, method="bootstrap-t"),
        bootstrap.log_ratio([drawn], [1.0], level=0.95, method="bootstrap-t"),
    ):
        assert found.method == ("bootstrap-t" if count >= 8 else "expanded percentile")
        assert np.isfinite(found.ends).all() and found.low < found.high
        if count < 8:  # means of some blocks lie between the least and the most of them
            assert np.log1p(change.min()) - 1e-9 <= found.low
            assert found.high <= change.max() + 1e-9


@pytest.mark.parametrize("unchanged", [0, 6])
def test_a_standard_error_that_is_round_off_is_an_infinite_distance(unchanged):
    """Of 8 blocks 6 are alike: a seventh of the draws has these alone, and no spread at all."""
    size = np.linspace(900, 1100, 8)
    change = np.where(np.arange(8) < unchanged, 0.0, np.linspace(0.02, 0.05, 8))
    rate = 0.7 + (0 if unchanged else np.linspace(-0.1, 0.1, 8))
    drawn = bootstrap.draw(
        [one(size * rate, size * (rate + change), size)], resamples=1000, seed=0, name="x"
    )
    found = bootstrap.difference(drawn, level=0.95, method="bootstrap-t")
    truth = (size * change).sum() / size.sum()
    assert found.low < truth < found.high
    # Where draws have no spread it is not known how much more there might be.
    assert np.isinf(found.high) == bool(unchanged) and np.isfinite(found.low)


def test_draws_depend_on_seed_and_name_only():
    part = [one(np.arange(9.0), np.arange(9.0) ** 2)]
    first = bootstrap.draw(part, resamples=20, seed=1, name="a").draws
    np.testing.assert_array_equal(first, bootstrap.draw(part, resamples=20, seed=1, name="a").draws)
    for seed, name in ((2, "a"), (1, "b")):
        other = bootstrap.draw(part, resamples=20, seed=seed, name=name).draws
        assert (first != other).any()
