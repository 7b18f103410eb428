# SPDX-License-Identifier: Apache-2.0
"""Compositions against the formulas of their papers; places, rates taken over, refusals."""

import math

import numpy as np
import pytest
import schedules as short

from midjax.train.schedules import clock as clock_lib


def rates(curve, more=2):
    return curve.lrs(range(curve.total_steps + more)).tolist()


def lerp(a, b, p):
    return a + (b - a) * p


def test_re_warm_up_from_the_rate_in_force():
    """Up from 1e-4 to half the old peak in 10 updates, then a cosine to a tenth of it."""
    curve = short.curve(
        (short.move("checkpoint", 5e-4, steps=10), short.move("previous", 5e-5, "cosine")),
        40, lr_in_force=1e-4,
    )  # fmt: skip
    expected = [lerp(1e-4, 5e-4, s / 10) for s in range(10)]
    expected += [5e-5 + 4.5e-4 * (1 + math.cos(math.pi * s / 30)) / 2 for s in range(30)]
    assert rates(curve) == pytest.approx([*expected, 5e-5, 5e-5])
    assert curve.taken_lr == curve.lr(0) == 1e-4 and curve.peak_lr == 5e-4
    from_zero = short.curve((short.move("checkpoint", 5e-4),), 10, lr_in_force=0.0)
    assert rates(from_zero, 0) == pytest.approx([5e-5 * s for s in range(10)])
    assert from_zero.taken_lr == 0.0


def test_wsd_s_returns_to_the_stable_rate_without_a_warm_up():
    up = short.move(0.0, 1.0, steps=4)
    stable, down = short.hold(1.0, steps=6, name="stable"), short.move(1.0, 0.1, steps=5)
    longer = short.hold(1.0, steps=12, name="longer")
    curve = short.curve((up, stable, down, stable, down, longer, down), 4 + 11 + 11 + 17)
    cycle = [1.0] * 6 + [lerp(1.0, 0.1, p / 5) for p in range(5)]
    last = [1.0] * 12 + [lerp(1.0, 0.1, p / 5) for p in range(5)]
    assert rates(curve) == pytest.approx([0, 0.25, 0.5, 0.75, *cycle, *cycle, *last, 0.1, 0.1])


@pytest.mark.parametrize("batch", [5, 35])
def test_power_scheduler_of_2408_13359(batch):
    """min(eta_max, B a n^b) over the tokens n, B rows of 5 tokens; a linear tail of 10 %."""
    total, cap = 70_000, 0.02 * (batch // 5)
    phases = (
        short.move(0.0, cap, steps=20),
        short.law(cap, name="power"),
        short.move("previous", 0.0, tokens=total // 10),
    )
    curve = short.curve(phases, batch=batch, total_tokens=total, row=5)

    def power(n):
        return min(cap, batch // 5 * 4.6 * n**-0.51)

    expected = []
    for n in range(0, total, batch):
        if n < 20 * batch:
            expected.append(cap * n / (20 * batch))
        elif n < total - total // 10:
            expected.append(power(n))
        else:
            expected.append(power(total - total // 10) * (total - n) / (total // 10))
    assert rates(curve, 0) == pytest.approx(expected)
    assert power(total - total // 10) < cap  # or the law was never seen


def test_power_scheduler_after_a_change_of_the_batch():
    """Tokens go on; twice the batch has twice the rate: B is the batch in force."""
    clock = clock_lib.constant(10).changed(100, 20)
    curve = short.curve((short.law(1e9),), clock=clock, total_tokens=3000, row=5)
    expected = [2 * 4.6 * (10 * s) ** -0.51 for s in range(1, 100)]
    expected += [4 * 4.6 * (1000 + 20 * s) ** -0.51 for s in range(100)]
    assert rates(curve, 0)[1:] == pytest.approx(expected)
    assert curve.lr(0) == 1e9  # n = 0: the cap


def test_power_of_olmo_core():
    """eta (s / W)^b after W steps of warm-up, and a linear tail."""
    phases = (
        short.move(0.0, 1e-3, steps=10),
        short.decay("previous", -0.51),
        short.move("previous", 0.0, steps=10),
    )
    expected = [1e-3 * s / 10 for s in range(10)]
    expected += [1e-3 * (s / 10) ** -0.51 for s in range(10, 90)]
    expected += [1e-3 * 9**-0.51 * (100 - s) / 10 for s in range(90, 100)]
    assert rates(short.curve(phases, 100), 0) == pytest.approx(expected)


def test_inverse_square_roots():
    up = short.move(0.0, 1.0, steps=10)
    t5 = short.curve((up, short.decay("previous")), 100)
    assert rates(t5, 0)[10:] == pytest.approx([math.sqrt(10 / s) for s in range(10, 100)])
    # Levanter: min(1, sqrt(timescale / s)), floor; the rate is the peak up to the timescale.
    levanter = short.curve(
        (up, short.hold("previous", steps=20), short.decay(1.0, floor=0.6, tau_steps=30)), 100
    )
    wanted = [max(0.6, min(1, math.sqrt(30 / s))) for s in range(10, 100)]
    assert rates(levanter, 0)[10:] == pytest.approx(wanted)
    # 1 / s, which reaches a tenth after 90 steps: tau = 90 / (10 - 1).
    inverse = short.curve((short.decay(1.0, -1.0, tau_steps=10),), 90)
    assert rates(inverse, 1) == pytest.approx([10 / (10 + s) for s in range(91)])
    # In tokens, whatever the batch; twice as many tokens a batch from update 3 on.
    clock = clock_lib.constant(10).changed(3, 20)
    tokens = short.curve((short.decay(1.0, tau_tokens=40),), clock=clock, total_tokens=90)
    wanted = [math.sqrt(40 / (40 + n)) for n in (0, 10, 20, 30, 50, 70)]
    assert rates(tokens, 0) == pytest.approx(wanted)


def test_infinite_cosine():
    """Ibrahim 2503.02844: warm-up, cosine to a constant, hold, exponential to the minimum."""
    curve = short.curve(
        (
            short.move(0.0, 1.0, steps=5),
            short.move("previous", 0.4, "cosine", steps=20),
            short.hold("previous"),
            short.move("previous", 0.01, "exponential", steps=10),
        ),
        60,
    )
    expected = [s / 5 for s in range(5)]
    expected += [0.4 + 0.6 * (1 + math.cos(math.pi * s / 20)) / 2 for s in range(20)]
    expected += [0.4] * 25 + [0.4 * (0.01 / 0.4) ** (s / 10) for s in range(10)]
    assert rates(curve) == pytest.approx([*expected, 0.01, 0.01])


def test_slow_then_fast_decay_turns_at_the_same_tokens_for_any_batch():
    for batch in (10, 30, 77):
        curve = short.curve(
            (
                short.move("checkpoint", 8e-4, "cosine", tokens=1000, name="slow"),
                short.move("previous", 0.0, "one_minus_sqrt", name="fast"),
            ),
            batch=batch, total_tokens=1500, lr_in_force=1e-3,
        )  # fmt: skip
        expected = [
            8e-4 + 2e-4 * (1 + math.cos(math.pi * n / 1000)) / 2
            if n < 1000
            else 8e-4 * (1 - math.sqrt((n - 1000) / 500))
            for n in range(0, 1500, batch)
        ]
        assert rates(curve, 0) == pytest.approx(expected)
        assert curve.span("fast").first_tokens == 1000
        assert curve.span("fast").first_update == math.ceil(1000 / batch)
        assert curve.lr(curve.total_steps) == 0


def test_wsd_in_phases_is_the_short_form():
    long = short.curve(
        (
            short.move(1e-4, 3e-3, steps=7),
            short.hold(3e-3),
            short.move(3e-3, 2e-5, "one_minus_sqrt", tokens=200),
        )
    )
    wsd = short.wsd(decay_shape="one_minus_sqrt", decay_steps=None, decay_tokens=200)
    assert rates(long) == rates(short.curve(wsd))


def test_places_are_exact_where_steps_and_tokens_mix():
    """15 tokens, 2 steps, the rest, 3 steps, 25 tokens, of 100 tokens in batches of 10."""
    curve = short.curve(
        (
            short.move(0.0, 1.0, tokens=15, name="a"),
            short.hold(1.0, steps=2, name="b"),
            short.hold(0.9, name="c"),
            short.move(0.8, 0.5, steps=3, name="d"),
            short.move(0.4, 0.0, tokens=25, name="e"),
        ),
        total_tokens=100,
    )
    assert [(float(s.first), float(s.first_tokens)) for s in curve.spans] == [
        (0, 0), (1.5, 15), (3.5, 35), (4.5, 45), (7.5, 75),
    ]  # fmt: skip
    third = 1 / 3
    expected = [0, 2 * third, 1, 1, 0.9, 0.8 - 0.3 / 6, 0.8 - 0.9 / 6, 0.8 - 1.5 / 6]
    expected += [0.4 * 20 / 25, 0.4 * 10 / 25, 0, 0]
    assert rates(curve) == pytest.approx(expected)


def test_decay_of_all_tokens_begins_at_once_though_the_last_batch_reaches_further():
    curve = short.curve(
        short.wsd(warmup_steps=0, decay_steps=None, decay_tokens=95, final_lr=0.0),
        batch=10, total_tokens=95,
    )  # fmt: skip
    assert rates(curve, 1) == pytest.approx([3e-3 * (95 - n) / 95 for n in range(0, 95, 10)] + [0])
    whole = short.curve((short.move(1.0, 0.0, tokens=40), short.move(0.0, 1.0, tokens=55)),
                        batch=10, total_tokens=95)  # fmt: skip
    assert whole.total_steps == 10 and whole.lr(9) == pytest.approx(50 / 55)


def test_a_phase_shorter_than_a_batch_has_no_update_and_still_hands_its_rate_on():
    curve = short.curve(
        (
            short.hold(1.0, tokens=11),
            short.move("previous", 0.5, tokens=5, name="jump"),
            short.hold("previous"),
        ),
        4,
    )
    assert rates(curve, 0) == [1.0, 1.0, 0.5, 0.5]
    jump = curve.span("jump")
    assert jump.first_update > jump.last_update


def test_phases_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(warm-up 7 steps, stable what is left, decay 20 steps"
                       r"\) do not fit into the run's 26 steps \(260 tokens\)"):  # fmt: skip
        short.curve(short.wsd(), 26)
    assert np.isfinite(short.curve(short.wsd(), 27).lrs(range(27))).all()
    hold, more = short.hold(1.0, steps=10), short.move(1.0, 0.0, tokens=50)
    with pytest.raises(ValueError, match="end after 15 of the run's 16 steps"):
        short.curve((hold, more), 16)
    with pytest.raises(ValueError, match="do not fit into the run's 14 steps"):
        short.curve((hold, more), 14)
    with pytest.raises(ValueError, match="move what is left"):
        short.curve((hold, short.move(1.0, 0.0)), 10)


def test_rates_that_cannot_be_taken_over():
    for rate in (None, 0.0):
        with pytest.raises(ValueError, match="has no learning rate in force"):
            short.curve(short.wsd(peak_lr="checkpoint"), lr_in_force=rate)
    with pytest.raises(ValueError, match="has no learning rate in force"):
        short.curve((short.move("checkpoint", 1.0),), lr_in_force=None)
    assert short.curve(short.wsd(), lr_in_force=1.0).taken_lr is None


def test_rates_that_make_no_sense():
    with pytest.raises(ValueError, match="above the peak"):
        short.curve(short.wsd(final_lr=1.0))
    down = short.move(1.0, 0.0, steps=25)
    with pytest.raises(ValueError, match="Hold 'hold' has a rate of 0"):
        short.curve((down, short.hold("previous")))
    with pytest.raises(ValueError, match="neither leaves nor reaches 0"):
        short.curve((down, short.move("previous", 1.0, "exponential")))
    with pytest.raises(ValueError, match=r"floor_lr = 2 is above the rate 1"):
        short.curve((short.decay(1.0, floor=2.0),))
