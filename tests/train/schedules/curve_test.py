# SPDX-License-Identifier: Apache-2.0
"""Every shape against its closed form, in plain Python, and Optax where it has it."""

import math

import jax
import numpy as np
import optax
import pytest
import schedules as short

from midjax.train.schedules import clock as clock_lib
from midjax.train.schedules import curve as curve_lib

SHAPES = ["linear", "cosine", "half_cosine", "one_minus_sqrt", "exponential", "inverse_sqrt"]
PEAK, START, FINAL = 3e-3, 1e-4, 2e-5
W, D, S = 7, 20, 50
T = S - D


def fraction(shape, p):
    """f(p), from 1 to 0, straight from the formulas of the papers."""
    return {
        "linear": lambda: 1 - p,
        "cosine": lambda: (1 + math.cos(math.pi * p)) / 2,
        "half_cosine": lambda: 1 + math.cos(math.pi * (1 + p) / 2),
        "one_minus_sqrt": lambda: 1 - math.sqrt(p),
    }[shape]()


def decay(shape, p, start, end, begin, length):
    """A decay that begins `begin` after the schedule did, in the measure of `length`."""
    if shape == "exponential":
        return start ** (1 - p) * end**p
    if shape == "inverse_sqrt":
        return max(end, start * math.sqrt(begin / (begin + p * length)))
    return end + (start - end) * fraction(shape, p)


def closed_form(shape, s, warm=W, down=D, total=S):
    begin = total - down
    if s < warm:
        return START + (PEAK - START) * s / warm
    if s < begin:
        return PEAK
    return decay(shape, min((s - begin) / down, 1.0), PEAK, FINAL, begin, down)


def f32(curve, counts):
    return np.asarray(jax.jit(curve_lib.learning_rate(curve))(np.asarray(counts)), np.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_steps_at_every_step_and_after_the_end(shape):
    curve = short.curve(short.wsd(decay_shape=shape))
    expected = [closed_form(shape, s) for s in range(S + 3)]
    assert [curve.lr(s) for s in range(S + 3)] == pytest.approx(expected, rel=1e-12)
    assert f32(curve, range(S + 3)) == pytest.approx(expected, rel=1e-6)
    rate = curve.lr
    assert rate(0) == START and rate(W) == rate(T) == PEAK  # s = T has p = 0
    assert rate(S - 1) > rate(S) == rate(10 * S)
    assert (rate(S) == FINAL) == (shape != "inverse_sqrt")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 7, 10, 33])
def test_in_tokens_the_batch_plays_no_part(shape, batch):
    """61 and 203 tokens of 500: update s has the rate of its tokens, whole batches or not."""
    schedule = short.wsd(
        warmup_steps=None, warmup_tokens=61, decay_steps=None, decay_tokens=203, decay_shape=shape
    )
    curve = short.curve(schedule, batch=batch, total_tokens=500)
    assert curve.total_steps == math.ceil(500 / batch)
    steps = range(curve.total_steps + 2)
    expected = [closed_form(shape, s * batch, 61, 203, 500) for s in steps]
    assert curve.lrs(steps) == pytest.approx(expected, rel=1e-12)
    assert f32(curve, steps) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_change_of_the_batch_keeps_the_place_in_tokens_or_in_steps(shape):
    """From update 20 on, inside the decay of the one and the stable phase of the other."""
    clock = clock_lib.constant(10).changed(20, 25).changed(25, 5)
    tokens = [10 * s for s in range(20)] + [200 + 25 * s for s in range(5)]
    tokens += [325 + 5 * s for s in range(36)]
    in_tokens = short.wsd(
        warmup_steps=None, warmup_tokens=61, decay_steps=None, decay_tokens=390, decay_shape=shape
    )
    curve = short.curve(in_tokens, clock=clock, total_tokens=500)
    assert curve.total_steps == 60
    expected = [closed_form(shape, n, 61, 390, 500) for n in tokens]
    assert curve.lrs(range(61)) == pytest.approx(expected, rel=1e-12)
    assert f32(curve, range(61)) == pytest.approx(expected, rel=1e-6)
    in_steps = short.curve(short.wsd(decay_shape=shape), clock=clock, total_tokens=450)
    expected = [closed_form(shape, s) for s in range(S + 3)]
    assert in_steps.lrs(range(S + 3)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rule", "exponent"), [("none", 0.0), ("linear", 1.0), ("sqrt", 0.5)])
def test_the_rate_follows_the_batch_by_the_rule_that_is_named(shape, rule, exponent):
    """10, 40 and 5 tokens: times (batch / 10)^exponent, within the closed form of each update."""
    clock = clock_lib.constant(10).changed(20, 40).changed(25, 5)
    batches = [10] * 20 + [40] * 5 + [5] * 36
    tokens = [sum(batches[:s]) for s in range(61)]
    schedule = short.wsd(
        warmup_steps=None, warmup_tokens=61, decay_steps=None, decay_tokens=390, decay_shape=shape
    )
    total = sum(batches)
    curve = short.curve(schedule, clock=clock, total_tokens=total, batch_rule=rule)
    expected = [
        closed_form(shape, n, 61, 390, total) * (batch / 10) ** exponent
        for n, batch in zip(tokens, batches, strict=True)
    ]
    assert curve.lrs(range(61)) == pytest.approx(expected, rel=1e-12)
    assert f32(curve, range(61)) == pytest.approx(expected, rel=1e-6)
    after = closed_form(shape, total, 61, 390, total) * 0.5**exponent
    assert curve.lr(99) == pytest.approx(after, rel=1e-12)


def test_a_power_law_counts_the_batch_itself():
    law = short.law(max_lr=1.0)
    with pytest.raises(ValueError, match="'linear' and the schedule has a PowerLaw"):
        short.curve((law,), batch_rule="linear")


@pytest.mark.parametrize(
    ("shape", "peer"),
    [
        ("linear", optax.linear_schedule(PEAK, FINAL, D)),
        ("cosine", optax.cosine_decay_schedule(PEAK, D, FINAL / PEAK)),
        ("exponential", optax.exponential_decay(PEAK, D, FINAL / PEAK)),
    ],
)
def test_decay_equals_optax(shape, peer):
    curve = short.curve(short.wsd(decay_shape=shape))
    for s in range(T, S):
        assert curve.lr(s) == pytest.approx(float(peer(s - T)), rel=1e-5)


OLMO_STEPS, OLMO_BATCH = 5 * 10**12 // 4_194_304, 4_194_304


def olmo2(shape="cosine", floor=3e-5, *, tokens=False):
    """OLMo 2 7B: 1,192,092 steps, 2,000 of them warm-up."""
    lengths = (2000, OLMO_STEPS - 2000)
    if tokens:
        lengths = tuple(length * OLMO_BATCH for length in lengths)
    unit, other = ("tokens", "steps") if tokens else ("steps", "tokens")
    schedule = short.wsd(
        peak_lr=3e-4, start_lr=0.0, final_lr=floor, decay_shape=shape,
        **{f"warmup_{unit}": lengths[0], f"decay_{unit}": lengths[1],
           f"warmup_{other}": None, f"decay_{other}": None},
    )  # fmt: skip
    return short.curve(schedule, OLMO_STEPS, batch=OLMO_BATCH, row=4096)


@pytest.mark.parametrize("tokens", [False, True], ids=["steps", "tokens"])
def test_olmo2_anneal_starts_at_the_checkpoints_rate(tokens):
    """The cosine's rate at step 928,646 is 6.135e-5, initial rate of its authors' anneals."""
    curve = olmo2(tokens=tokens)
    assert OLMO_STEPS == 1_192_092
    p = (928_646 - 2000) / (OLMO_STEPS - 2000)
    in_force = curve.lr(928_646)
    assert in_force == pytest.approx(3e-5 + 2.7e-4 * (1 + math.cos(math.pi * p)) / 2, rel=1e-12)
    assert f"{in_force:.6e}" == "6.135098e-05"
    assert f32(curve, [928_646])[0] == pytest.approx(6.135098e-5, rel=1e-6)
    anneal = short.curve((short.move("checkpoint", 0.0),), 11_921, batch=OLMO_BATCH,
                         lr_in_force=in_force)  # fmt: skip
    assert anneal.lr(0) == anneal.taken_lr == in_force
    assert f32(anneal, [0, 11_920, 11_921]) == pytest.approx([in_force, in_force / 11_921, 0.0])


@pytest.mark.parametrize("tokens", [False, True], ids=["steps", "tokens"])
@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision_is_enough_for_a_million_updates(shape, tokens):
    """Every one of 1,192,092 rates within 1e-6, down to a floor of 0.1 % of the peak."""
    curve = olmo2(shape, 3e-7, tokens=tokens)
    steps = np.arange(OLMO_STEPS + 2)
    p = np.clip((steps - 2000) / (OLMO_STEPS - 2000), 0.0, 1.0)
    start, end = 3e-4, 3e-7
    expected = {
        "linear": end + (start - end) * (1 - p),
        "cosine": end + (start - end) * (1 + np.cos(np.pi * p)) / 2,
        "half_cosine": end + (start - end) * (1 - np.sin(np.pi * p / 2)),
        "one_minus_sqrt": end + (start - end) * (1 - np.sqrt(p)),
        "exponential": start * (end / start) ** p,
        "inverse_sqrt": start * np.sqrt(2000 / np.clip(steps, 2000, OLMO_STEPS)),
    }[shape]
    expected = np.where(steps < 2000, start * steps / 2000, expected)
    np.testing.assert_allclose(f32(curve, steps), expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(curve.lrs(steps), expected, rtol=1e-9, atol=0)


def test_the_last_updates_before_zero_are_exact_too():
    """An anneal's last rates are small differences of large numbers, if computed carelessly."""
    for shape in ("linear", "cosine", "half_cosine", "one_minus_sqrt"):
        curve = olmo2(shape, 0.0)
        last = np.arange(OLMO_STEPS - 50, OLMO_STEPS)
        q = (OLMO_STEPS - last) / (OLMO_STEPS - 2000)  # way to go
        expected = (
            3e-4
            * {
                "linear": q,
                "cosine": np.sin(np.pi * q / 2) ** 2,
                "half_cosine": 2 * np.sin(np.pi * q / 4) ** 2,
                "one_minus_sqrt": q / (1 + np.sqrt(1 - q)),
            }[shape]
        )
        np.testing.assert_allclose(f32(curve, last), expected, rtol=1e-6, atol=0)
        assert f32(curve, [OLMO_STEPS])[0] == 0.0


def test_wsd_without_decay_stays_at_its_peak():
    curve = short.curve(short.wsd(decay_steps=0))
    assert [curve.lr(s) for s in (W, S - 1, S, 10 * S)] == [PEAK] * 4 and curve.peak_lr == PEAK


def test_scalar_array_and_jit_give_the_same_bits():
    rate = curve_lib.learning_rate(short.curve(short.wsd(decay_shape="cosine")))
    whole = np.asarray(jax.jit(rate)(np.arange(S)))
    assert whole.dtype == np.float32
    one = jax.jit(rate)
    assert [np.float32(one(np.int32(s))) for s in range(S)] == whole.tolist()


def test_a_phase_by_name():
    curve = short.curve((short.move(1.0, 0.5, tokens=123, name="slow"),
                         short.move("previous", 0.0, name="fast")))  # fmt: skip
    turn = curve.span("fast")
    assert (turn.first_tokens, turn.first_update, turn.last_update) == (123, 13, S - 1)
    with pytest.raises(ValueError, match="has 0 phases called 'turn', of"):
        curve.span("turn")
    with pytest.raises(ValueError, match="2 phases called 'hold'"):
        short.curve((short.hold(1.0, steps=20), short.hold(2.0))).span("hold")
