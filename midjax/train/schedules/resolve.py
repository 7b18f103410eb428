# SPDX-License-Identifier: Apache-2.0
"""A recipe's schedule, the clock and the rate in force at the checkpoint -> a curve.

    places: lengths -> where each phase begins and stops, exactly
    rates: "checkpoint", "previous" -> numbers, phase after phase

Phases before the one without a length are placed from the start, those after it from the end. The
end is `Train.train_tokens` for lengths in tokens and the last update's end for lengths in steps: a
decay of as many tokens as the run has begins at 0, though the last batch may reach further.
"""

import fractions
import itertools
import math
from collections.abc import Sequence
from typing import Any

from midjax.train.schedules import clock as clock_lib
from midjax.train.schedules import curve as curve_lib
from midjax.train.schedules import phases as phases_lib

_ZERO = fractions.Fraction(0)


def resolve(
    schedule: phases_lib.Schedule | phases_lib.Phases,
    *,
    clock: clock_lib.Clock,
    total_tokens: int,
    row_tokens: int,
    lr_in_force: float | None,
    batch_rule: curve_lib.BatchRule = "none",
    reference_tokens: int | None = None,
) -> curve_lib.Curve:
    """Every number of a schedule.

    Args:
      schedule: the recipe's.
      clock: updates to tokens since the schedule began.
      total_tokens: of the run, since the schedule began.
      row_tokens: of a row, for `PowerLaw`'s batch in rows.
      lr_in_force: what "checkpoint" stands for; None where there is no checkpoint.
      batch_rule: how rates follow the batch.
      reference_tokens: of the batch that `lr_in_force` goes with. Where no phase takes that rate,
        or None is given, rates are those of the schedule's first batch.

    Raises:
      ValueError: the phases do not fit the run, or there is no rate to take over.
    """
    parts = schedule.phases() if isinstance(schedule, phases_lib.Schedule) else schedule.phases
    if batch_rule != "none" and any(isinstance(p, phases_lib.PowerLaw) for p in parts):
        raise ValueError(
            f"Train.batch_lr_rule = {batch_rule!r} and the schedule has a PowerLaw, whose rate is "
            "in proportion to the batch by itself. Set the rule to 'none'."
        )
    total_steps = clock.updates(total_tokens)
    edges = _places(parts, clock, total_tokens)
    taken = _Taken(lr_in_force)
    spans: list[curve_lib.Span] = []
    for part, (first, stop) in zip(parts, itertools.pairwise(edges), strict=True):
        if first == stop:
            continue  # a stable phase for which nothing is left
        spans.append(_span(part, first, stop, clock, row_tokens, taken, spans))
    if isinstance(schedule, phases_lib.Schedule):
        _check_falls(schedule, spans[-1])
    return curve_lib.Curve(
        spans=tuple(spans),
        clock=clock,
        total_steps=total_steps,
        taken_lr=taken.used,
        batch_rule=batch_rule,
        reference_tokens=(taken.used is not None and reference_tokens) or clock.batch_tokens(0),
    )


# ---- places ----


def _places(
    parts: Sequence[phases_lib.Phase],
    clock: clock_lib.Clock,
    total_tokens: int,
) -> list[fractions.Fraction]:
    """Updates before each phase, and before the end: one more than phases."""
    total_steps = clock.updates(total_tokens)
    rest = [i for i, part in enumerate(parts) if part.steps is None and part.tokens is None]
    front = [_ZERO]
    for part in parts[: rest[0] if rest else None]:
        front.append(_moved(clock, front[-1], part, 1))
    if not rest:
        if math.ceil(front[-1]) != total_steps:
            raise ValueError(_misfit(parts, clock, total_tokens, front[-1]))
        return front
    back: list[fractions.Fraction] = []
    for part in reversed(parts[rest[0] + 1 :]):
        if not back:
            by_steps = part.steps is not None
            back.append(fractions.Fraction(total_steps) if by_steps else clock.count(total_tokens))
        back.append(_moved(clock, back[-1], part, -1))
    back = back or [clock.count(total_tokens)]
    may_be_empty = isinstance(parts[rest[0]], phases_lib.Hold)
    if front[-1] > back[-1] or (front[-1] == back[-1] and not may_be_empty):
        raise ValueError(_misfit(parts, clock, total_tokens, None))
    return [*front, *reversed(back)]


def _moved(
    clock: clock_lib.Clock, place: fractions.Fraction, part: phases_lib.Phase, sign: int
) -> fractions.Fraction:
    """A place moved by a phase's length."""
    if part.steps is not None:
        return place + sign * part.steps
    return clock.count(clock.tokens(place) + sign * (part.tokens or 0))


def _misfit(
    parts: Sequence[phases_lib.Phase],
    clock: clock_lib.Clock,
    total_tokens: int,
    end: fractions.Fraction | None,
) -> str:
    lengths = ", ".join(
        f"{part.name} {part.steps} steps"
        if part.steps is not None
        else f"{part.name} {part.tokens} tokens"
        if part.tokens is not None
        else f"{part.name} what is left"
        for part in parts
    )
    run = f"the run's {clock.updates(total_tokens)} steps ({total_tokens} tokens)"
    if end is not None and math.ceil(end) < clock.updates(total_tokens):
        return (
            f"The schedule's phases ({lengths}) end after {math.ceil(end)} of {run}. Let one phase "
            "take what is left (steps and tokens None), or add a Hold."
        )
    return f"The schedule's phases ({lengths}) do not fit into {run}. Shorten them or train longer."


# ---- rates ----


class _Taken:
    """The rate in force at the checkpoint, and whether anything asked for it."""

    def __init__(self, lr_in_force: float | None) -> None:
        self._lr = lr_in_force
        self.used: float | None = None

    def rate(self, given: Any, name: str, previous: float | None, *, may_be_zero: bool) -> float:
        if given == phases_lib.FROM_PREVIOUS:
            assert previous is not None, "Phases refuses it at the beginning"
            return previous
        if given != phases_lib.FROM_CHECKPOINT:
            return float(given)
        if self._lr is None or (self._lr == 0 and not may_be_zero):
            raise ValueError(
                f"The schedule's phase {name!r} takes its rate from the checkpoint, and the start "
                f"has no learning rate in force (found: {self._lr}). Start from a midjax "
                "checkpoint whose rate is above 0, or give a number."
            )
        self.used = self._lr
        return self._lr


def _span(
    part: phases_lib.Phase,
    first: fractions.Fraction,
    stop: fractions.Fraction,
    clock: clock_lib.Clock,
    row_tokens: int,
    taken: _Taken,
    before: Sequence[curve_lib.Span],
) -> curve_lib.Span:
    previous = before[-1].end_lr if before else None
    in_tokens = part.steps is None
    kind: curve_lib.Kind = "power"
    power = None
    if isinstance(part, phases_lib.Hold):
        kind = "hold"
        start = end = taken.rate(part.lr, part.name, previous, may_be_zero=False)
    elif isinstance(part, phases_lib.Move):
        kind = part.shape
        start = taken.rate(part.start_lr, part.name, previous, may_be_zero=True)
        end = taken.rate(part.end_lr, part.name, previous, may_be_zero=False)
        _check_move(part, start, end)
    elif isinstance(part, phases_lib.PowerDecay):
        start = taken.rate(part.start_lr, part.name, previous, may_be_zero=False)
        power, in_tokens = _power_decay(part, first, stop, clock, start)
    else:
        power, in_tokens = _power_law(part, first, stop, clock, row_tokens), True
    begin, finish = clock.tokens(first), clock.tokens(stop)
    if power:
        length = finish - begin if in_tokens else stop - first
        last_batch = clock.batch_tokens(math.ceil(stop) - 1)
        start = _power(power, _ZERO, clock.batch_tokens(math.ceil(first)))
        end = _power(power, length, last_batch)
    if start == end == 0:
        raise ValueError(
            f"{type(part).__name__} {part.name!r} has a rate of 0 throughout: nothing would be "
            "learnt. Give it a rate above 0."
        )
    return curve_lib.Span(
        name=part.name,
        kind=kind,
        in_tokens=in_tokens,
        first=first,
        stop=stop,
        first_tokens=begin,
        stop_tokens=finish,
        start_lr=start,
        end_lr=end,
        power=power,
    )


def _power_decay(
    part: phases_lib.PowerDecay,
    first: fractions.Fraction,
    stop: fractions.Fraction,
    clock: clock_lib.Clock,
    start: float,
) -> tuple[curve_lib.Power, bool]:
    """The power, and whether it is by tokens: as its timescale is given, else as its length."""
    if part.timescale_steps is not None:
        scale, in_tokens = fractions.Fraction(part.timescale_steps), False
    elif part.timescale_tokens is not None:
        scale, in_tokens = fractions.Fraction(part.timescale_tokens), True
    elif part.steps is not None:
        scale, in_tokens = max(first, fractions.Fraction(1)), False
    else:
        scale, in_tokens = max(clock.tokens(first), clock.tokens(1)), True
    if part.floor_lr > start:
        raise ValueError(
            f"PowerDecay {part.name!r}: floor_lr = {part.floor_lr:g} is above the rate {start:g} "
            "from which it falls."
        )
    power = curve_lib.Power(
        scale=start,
        exponent=part.exponent,
        offset=scale,
        unit=scale,
        floor=part.floor_lr,
        cap=start,
        per_row=None,
    )
    return power, in_tokens


def _power_law(
    part: phases_lib.PowerLaw,
    first: fractions.Fraction,
    stop: fractions.Fraction,
    clock: clock_lib.Clock,
    row_tokens: int,
) -> curve_lib.Power:
    # Tokens are measured by those at the phase's end: x is at most 1, and scale what it is there.
    unit = clock.tokens(stop)
    return curve_lib.Power(
        scale=part.amplitude * float(unit) ** part.exponent,
        exponent=part.exponent,
        offset=clock.tokens(first),
        unit=unit,
        floor=0.0,
        cap=part.max_lr,
        per_row=row_tokens,
    )


def _power(power: curve_lib.Power, position: fractions.Fraction, batch_tokens: int) -> float:
    x = float((power.offset + position) / power.unit)
    if x == 0:
        return power.cap
    rows = batch_tokens / power.per_row if power.per_row else 1.0
    return min(max(power.scale * rows * x**power.exponent, power.floor), power.cap)


def _check_move(part: phases_lib.Move, start: float, end: float) -> None:
    if part.shape == "exponential" and not (start > 0 and end > 0):
        raise ValueError(
            f"Move {part.name!r}: an exponential neither leaves nor reaches 0, got {start:g} to "
            f"{end:g}. Take rates above 0 or another shape."
        )


def _check_falls(schedule: phases_lib.Schedule, last: curve_lib.Span) -> None:
    if last.name == "decay" and schedule.final_lr > last.start_lr:
        raise ValueError(
            f"Schedule.final_lr = {schedule.final_lr:g} is above the peak {last.start_lr:g}."
        )
