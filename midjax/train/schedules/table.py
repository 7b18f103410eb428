# SPDX-License-Identifier: Apache-2.0
"""A schedule as rows of text: where it turns, and every twentieth of the run."""

import dataclasses
import math

from midjax import units
from midjax.train.schedules import curve as curve_lib

PARTS = 20
POINTS = 600
# Rates that differ by less, relatively, are the same rate.
SAME = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One update.

    Attributes:
      step: its number on the schedule, from 0.
      tokens: those before it.
      lr: its rate.
      note: why it is here; empty for a twentieth.
    """

    step: int
    tokens: int
    lr: float
    note: str


def rows(curve: curve_lib.Curve, position: int = 0) -> list[Row]:
    """First and last update of each phase, every 5 %, where a run goes on, and what is left after.

    Args:
      curve: the schedule.
      position: number of the run's first update on it; above 0 where a run goes on.
    """
    end = curve.total_steps
    notes: dict[int, list[str]] = {round(end * i / PARTS): [] for i in range(PARTS)}
    previous = None
    for span in curve.spans:
        if span.first_update > span.last_update:
            notes.setdefault(span.first_update, []).append(f"{span.name}: shorter than an update")
            continue
        jump = previous is not None and abs(previous - span.start_lr) > SAME * curve.peak_lr
        what = f"{span.name}: {span.kind.replace('_', ' ')}" + (", a jump" if jump else "")
        notes.setdefault(span.first_update, []).append(what)
        if span.last_update > span.first_update:
            notes.setdefault(span.last_update, []).append(f"last of {span.name}")
        previous = span.end_lr
    for first, _, batch in curve.clock.knees[1:]:
        notes.setdefault(first, []).append(f"batches of {batch} tokens")
    if 0 < position < end:
        notes.setdefault(position, []).append("this run goes on here")
    notes.setdefault(end, []).append("after the run")
    return [
        Row(
            step=step,
            tokens=math.ceil(curve.clock.tokens(step)),
            lr=curve.lr(step),
            note="; ".join(notes[step]),
        )
        for step in sorted(notes)
    ]


def sampled(curve: curve_lib.Curve) -> list[int]:
    """Updates for a plot: spread evenly, with both ends of each phase."""
    ends = {step for span in curve.spans for step in (span.first_update, span.last_update)}
    even = {round(curve.total_steps * i / POINTS) for i in range(POINTS + 1)}
    return sorted(step for step in ends | even if 0 <= step < curve.total_steps)


def text(found: list[Row]) -> str:
    """Rows in columns: step, tokens before it, both in full, the rate to 7 digits."""
    lines = [("step", "tokens", "", "learning rate", "")]
    lines += [
        (str(r.step), str(r.tokens), units.human(r.tokens), f"{r.lr:.6e}", r.note) for r in found
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=False))
        + (f"  {line[4]}" if line[4] else "")
        for line in lines
    )
