# SPDX-License-Identifier: Apache-2.0
"""Phases and curves in few words, for the tests of learning rates."""

from midjax.train.schedules import clock as clock_lib
from midjax.train.schedules import curve as curve_lib
from midjax.train.schedules import phases, resolve


def wsd(**kwargs) -> phases.Schedule:
    given = {
        "peak_lr": 3e-3, "start_lr": 1e-4, "final_lr": 2e-5, "warmup_steps": 7,
        "warmup_tokens": None, "decay_steps": 20, "decay_tokens": None, "decay_shape": "linear",
    }  # fmt: skip
    return phases.Schedule(**(given | kwargs))


def hold(lr, *, steps=None, tokens=None, name="hold") -> phases.Hold:
    return phases.Hold(name=name, steps=steps, tokens=tokens, lr=lr)


def move(start, end, shape="linear", *, steps=None, tokens=None, name="move") -> phases.Move:
    return phases.Move(
        name=name, steps=steps, tokens=tokens, start_lr=start, end_lr=end, shape=shape
    )


def decay(start, exponent=-0.5, *, floor=0.0, steps=None, tokens=None, tau_steps=None,
          tau_tokens=None, name="power") -> phases.PowerDecay:  # fmt: skip
    return phases.PowerDecay(
        name=name,
        steps=steps,
        tokens=tokens,
        start_lr=start,
        exponent=exponent,
        timescale_steps=tau_steps,
        timescale_tokens=tau_tokens,
        floor_lr=floor,
    )


def law(max_lr, *, steps=None, tokens=None, a=4.6, b=-0.51, name="law") -> phases.PowerLaw:
    return phases.PowerLaw(
        name=name, steps=steps, tokens=tokens, max_lr=max_lr, amplitude=a, exponent=b
    )


def curve(
    schedule,
    total_steps=50,
    *,
    batch=10,
    total_tokens=None,
    clock=None,
    lr_in_force=None,
    row=5,
    batch_rule="none",
) -> curve_lib.Curve:
    """Of a schedule, or of a tuple of phases."""
    clock = clock or clock_lib.constant(batch)
    if isinstance(schedule, tuple):
        schedule = phases.Phases(phases=schedule)
    tokens = int(clock.tokens(total_steps)) if total_tokens is None else total_tokens
    return resolve.resolve(
        schedule,
        clock=clock,
        total_tokens=tokens,
        row_tokens=row,
        lr_in_force=lr_in_force,
        batch_rule=batch_rule,
    )
