# SPDX-License-Identifier: Apache-2.0
"""Every shape against its closed form in double precision, and Optax where it has it."""

import math

import numpy as np
import optax
import pytest

from midjax.train import schedule as schedule_lib

SHAPES = ["linear", "cosine", "exponential", "inverse_sqrt", "one_minus_sqrt"]
PEAK, START, FINAL = 3e-3, 1e-4, 2e-5
W, D, S = 7, 20, 50
T = S - D


def schedule(**kwargs):
    given = {
        "peak_lr": PEAK, "start_lr": START, "final_lr": FINAL, "warmup_steps": W,
        "warmup_tokens": None, "decay_steps": D, "decay_tokens": None, "decay_shape": "linear",
    }  # fmt: skip
    return schedule_lib.Schedule(**(given | kwargs))


def resolve(config, total_steps=S, batch_tokens=10, lr_in_force=None):
    return schedule_lib.resolve(
        config, total_steps=total_steps, batch_tokens=batch_tokens, lr_in_force=lr_in_force
    )


def eta(config, **kwargs):
    rate = schedule_lib.learning_rate(resolve(config, **kwargs))
    return lambda s: float(rate(s))


def closed_form(shape, s):
    if s < W:
        return START + (PEAK - START) * s / W
    if s < T:
        return PEAK
    if s >= S:
        return FINAL
    p = (s - T) / D
    return {
        "linear": FINAL + (PEAK - FINAL) * (1 - p),
        "cosine": FINAL + (PEAK - FINAL) * (1 + math.cos(math.pi * p)) / 2,
        "exponential": PEAK ** (1 - p) * FINAL**p,
        "inverse_sqrt": max(FINAL, PEAK * math.sqrt(T / (T + s - T))),
        "one_minus_sqrt": FINAL + (PEAK - FINAL) * (1 - math.sqrt(p)),
    }[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_closed_form_at_every_step(shape):
    rate = eta(schedule(decay_shape=shape))
    for s in range(S + 3):
        assert rate(s) == pytest.approx(closed_form(shape, s), rel=2e-6), s


@pytest.mark.parametrize("shape", SHAPES)
def test_edges(shape):
    rate = eta(schedule(decay_shape=shape))
    assert rate(0) == pytest.approx(START)
    assert rate(W - 1) == pytest.approx(START + (PEAK - START) * (W - 1) / W)
    assert rate(W) == pytest.approx(PEAK)  # s = W is the first stable step
    assert rate(T) == pytest.approx(PEAK)  # s = T has p = 0
    assert rate(S - 1) == pytest.approx(closed_form(shape, S - 1), rel=2e-6) and rate(S - 1) > FINAL
    assert rate(S) == rate(S + 1000) == pytest.approx(FINAL)


@pytest.mark.parametrize(
    ("shape", "peer"),
    [
        ("linear", optax.linear_schedule(PEAK, FINAL, D)),
        ("cosine", optax.cosine_decay_schedule(PEAK, D, FINAL / PEAK)),
        ("exponential", optax.exponential_decay(PEAK, D, FINAL / PEAK)),
    ],
)
def test_decay_equals_optax(shape, peer):
    rate = eta(schedule(decay_shape=shape))
    for s in range(T, S):
        assert rate(s) == pytest.approx(float(peer(s - T)), rel=1e-5)


def test_wsd_of_minicpm_stable_rate_does_not_move():
    rate = eta(schedule(decay_steps=0))
    assert [rate(s) for s in (W, S - 1, S, 10 * S)] == pytest.approx([PEAK] * 4)


def test_olmo2_anneal_starts_at_the_checkpoints_rate():
    """OLMo 2 7B: the cosine's rate at step 928,646 is the anneal's initial rate 6.135e-5."""
    peak, floor, warm, total = 3e-4, 3e-5, 2000, 5 * 10**12 // 4_194_304
    cosine = schedule(
        peak_lr=peak, start_lr=0.0, final_lr=floor, warmup_steps=warm, decay_steps=total - warm,
        decay_shape="cosine",
    )  # fmt: skip
    in_force = eta(cosine, total_steps=total)(928_646)
    assert in_force == pytest.approx(6.135098e-5, rel=2e-6)
    anneal = schedule(
        peak_lr="checkpoint", start_lr=0.0, final_lr=0.0, warmup_steps=0, decay_steps=100
    )
    rate = eta(anneal, total_steps=100, lr_in_force=in_force)
    assert rate(0) == pytest.approx(in_force) and rate(99) == pytest.approx(in_force / 100)
    assert rate(100) == 0.0


def test_no_warm_up_no_stable():
    rate = eta(schedule(warmup_steps=0, decay_steps=S))
    assert rate(0) == pytest.approx(PEAK)
    assert rate(S // 2) == pytest.approx((PEAK + FINAL) / 2)


def test_tokens_are_rounded_up_to_steps():
    in_tokens = schedule(warmup_steps=None, warmup_tokens=61, decay_steps=None, decay_tokens=200)
    resolved = resolve(in_tokens)
    assert (resolved.warmup_steps, resolved.decay_steps, resolved.decay_start) == (7, 20, 30)
    assert [eta(in_tokens)(s) for s in range(S)] == [eta(schedule())(s) for s in range(S)]


def test_arrays_and_jit():
    import jax

    rate = schedule_lib.learning_rate(resolve(schedule()))
    steps = np.arange(S)
    assert np.asarray(jax.jit(rate)(steps)) == pytest.approx([float(rate(s)) for s in steps])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_tokens": 5}, "give warmup_steps or warmup_tokens"),
        ({"decay_steps": None}, "give decay_steps or decay_tokens"),
        ({"warmup_steps": -1}, "must not be negative"),
        ({"final_lr": -1e-3}, "must not be negative"),
        ({"peak_lr": 0.0}, "must be above 0"),
        ({"decay_shape": "exponential", "final_lr": 0.0}, "never reaches 0"),
    ],
)
def test_bad_schedules(change, message):
    with pytest.raises(ValueError, match=message):
        schedule(**change)


def test_phases_longer_than_the_run():
    with pytest.raises(ValueError, match="7 warm-up and 20 decay steps are more than the run's 26"):
        resolve(schedule(), total_steps=26)


def test_no_rate_to_take_over():
    for rate in (None, 0.0):
        with pytest.raises(ValueError, match="has no learning rate in force"):
            resolve(schedule(peak_lr="checkpoint"), lr_in_force=rate)


def test_final_above_peak():
    with pytest.raises(ValueError, match="above the peak"):
        resolve(schedule(final_lr=1.0))
