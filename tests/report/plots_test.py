# SPDX-License-Identifier: Apache-2.0
"""What the plots show where it can be said in numbers, and inputs with holes."""

import math

import numpy as np
import pytest

from midjax.report import plots, records


def test_smoothing_is_a_weighted_mean_that_passes_over_holes():
    values = np.array([1.0, np.nan, 3.0, 5.0, np.nan])
    weights = np.array([1.0, 0.0, 3.0, 1.0, 7.0])
    found = plots.smoothed(values, weights, 1)
    assert found == pytest.approx([1.0, (1 + 9) / 4, (9 + 5) / 4, (9 + 5) / 4, 5.0])
    assert np.isnan(plots.smoothed(np.full(3, np.nan), np.ones(3), 1)).all()


def run(rows, events=()):
    return records.Run(label="r", folder="r", metrics=rows, events=list(events), config="")


def rows(count, *, seen=(10, 30)):
    return [
        {"step": s, "tokens": 40 * s, "lr": 1e-3, "loss/a": 2.0, "loss/b": None if s % 2 else 3.0,
         "tokens/a": seen[0], "tokens/b": seen[1], "asked/a": 0.25, "asked/b": 0.75}
        for s in range(1, count + 1)
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_bins_cover_the_run_once(count):
    edges, shares = plots._binned_shares(run(rows(count)), ["a", "b"])
    assert edges[0] == 0 and edges[-1] == 40 * count and (np.diff(edges) > 0).all()
    assert len(shares) == len(edges) - 1 <= plots.MIX_BINS + 1
    assert shares == pytest.approx(np.tile([0.25, 0.75], (len(shares), 1)))


def test_bins_never_cross_a_stage():
    events = [
        {"event": "stage", "name": "x", "step": 1},
        {"event": "stage", "name": "y", "step": 8},
    ]
    edges, _ = plots._binned_shares(run(rows(300), events), ["a", "b"])
    assert 7 * 40 in edges


@pytest.mark.parametrize("count", [1, 3, 2000])
def test_plots_of_short_and_long_runs(count):
    it = run(rows(count))
    loss = plots.losses(it, {"a": 0, "b": 1}, "l")
    assert "a from 2.00 to 2.00" in loss.alt and len(loss.svg) < 200_000
    assert "a 25.0%, b 75.0%" in plots.mixture(it, {"a": 0, "b": 1}, "m").alt
    assert "r from 0.001 to 0.001" in plots.learning_rates([it]).alt


def test_a_run_without_any_loss_is_drawn_empty():
    broken = [row | {"loss/a": None, "loss/b": None, "lr": None} for row in rows(4, seen=(0, 0))]
    assert plots.losses(run(broken), {"a": 0, "b": 1}, "l").svg
    assert plots.mixture(run(broken), {"a": 0, "b": 1}, "m").svg
    assert plots.learning_rates([run(broken)]).svg


def column(label, means, context=None):
    buckets = [
        {"from": 8 * i, "to": 8 * i + 8, "nats_per_token": mean, "tokens": 8}
        for i, mean in enumerate(means)
    ]
    position = {"source": "s", "row_tokens": 8 * len(means), "documents": 1, "buckets": buckets}
    result = {"domains": {}, "by_position": position, "context_tokens": context}
    return records.Column(label=label, path="p", result=result)


def test_loss_by_position():
    empty = records.Column(label="none", path="p", result={"domains": {}, "by_position": None})
    found = plots.by_position(
        [column("before", [3.0, 9.0, None], 8), column("after", [2.5, 2.25, 2.0], 24), empty]
    )
    assert "before 3.00 at the start, 9.00 at the end" in found.alt
    assert "after 2.50 at the start, 2.00 at the end" in found.alt
    assert "context of before" in found.svg and "context of after" not in found.svg
    assert plots.by_position([empty]) is None


def test_tokens_of_nothing_is_a_dash():
    assert plots.describe_tokens(math.nan) == "–" and plots.describe_tokens(1500.0) == "1.5K"
