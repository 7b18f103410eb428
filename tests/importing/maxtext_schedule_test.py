# SPDX-License-Identifier: Apache-2.0
"""MaxText's learning rates against those that it logged, and against its formulas by hand."""

import imported
import pytest


def test_every_rate_that_maxtext_logged():
    schedule = imported.schedule()
    logged = [row["current_learning_rate"] for row in imported.metrics()]
    assert len(logged) == 32
    assert [schedule.eta(step) for step in range(32)] == pytest.approx(logged, rel=1e-6, abs=1e-12)


def test_cosine_reaches_its_end_at_the_last_update():
    # MaxText's own numbers for 14 steps, peak 0.003, warm-up 0.1, final 0.1.
    logged = {0: 0.0, 1: 0.003, 2: 0.0029539999, 7: 0.0016499998, 12: 0.00034600016, 13: 0.0003}
    schedule = imported.schedule(
        learning_rate=3e-3,
        learning_rate_schedule_steps=14,
        lr_schedule_type="cosine",
        wsd_decay_steps_fraction=None,
        wsd_decay_style=None,
    )
    for step, rate in logged.items():
        assert schedule.eta(step) == pytest.approx(rate, rel=1e-6, abs=1e-12), step
    assert schedule.eta(14) == schedule.eta(99) == pytest.approx(3e-4)


def test_a_cosine_decay_of_wsd():
    schedule = imported.schedule(learning_rate_schedule_steps=100, wsd_decay_style="cosine")
    assert schedule.eta(89) == 1e-3 == schedule.eta(90)
    assert schedule.eta(99) == pytest.approx(1e-4)
    assert schedule.eta(94) + schedule.eta(95) == pytest.approx(1.1e-3)


def test_rates_around_a_checkpoint():
    found = imported.schedule().rate(30)
    assert (found.last, found.next, found.peak) == pytest.approx((1e-3, 5.5e-4, 1e-3))
    assert imported.schedule().rate(0).last == 0.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate over 0"),
        ({"wsd_decay_style": None}, "belong to 'wsd'"),
        ({"lr_schedule_type": "cosine"}, "None for 'cosine'"),
    ],
)
def test_fields_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        imported.schedule(**wrong)
