# SPDX-License-Identifier: Apache-2.0
"""Update's number -> learning rate, of a schedule whose every number is known.

A *span* is a phase with its place on the clock. Between two changes of the batch the progress
through a span is linear in the update's number s, so spans are cut there into *pieces*, and a piece
is a row of numbers: the work of one evaluation is a search for the row and one formula, however
many phases there are.

Single precision is enough for a million updates, because nothing is ever the difference of two
close numbers: the way gone, p, and the way to go, q = 1 - p, are each computed from integers, and
every shape is written as start * a(p, q) + end * b(p, q) with a, b >= 0 and a + b = 1. For
example (1 + cos(pi p)) / 2 = sin^2(pi q / 2).
"""

import dataclasses
import fractions
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from midjax.train.schedules import clock as clock_lib
from midjax.train.schedules import phases as phases_lib

Kind = Literal[phases_lib.Shape, "hold", "power"]
# How rates follow the batch: not at all, in proportion, or with its square root.
BatchRule = Literal["none", "linear", "sqrt"]
_KINDS: tuple[Kind, ...] = (
    "hold",
    "linear",
    "cosine",
    "half_cosine",
    "one_minus_sqrt",
    "exponential",
    "power",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Power:
    """eta = clip(scale x^exponent, floor, cap), x = (offset + position in the span) / unit.

    Attributes:
      scale: rate at x = 1; with `per_row`, that of a batch of one row, times the rows of the batch.
      exponent: below 0.
      offset, unit: in the span's own measure, steps or tokens.
      floor, cap: bounds of the rate.
      per_row: tokens of a row, or None where the batch plays no part.
    """

    scale: float
    exponent: float
    offset: fractions.Fraction
    unit: fractions.Fraction
    floor: float
    cap: float
    per_row: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """A phase in its place.

    Attributes:
      name: of the phase.
      kind: shape of the curve.
      in_tokens: progress is by tokens, else by updates.
      first, stop: updates before it begins and ends; fractions where a length in tokens is no
        multiple of the batch.
      first_tokens, stop_tokens: the same in tokens.
      start_lr, end_lr: rates at both ends.
      power: of kind "power".
    """

    name: str
    kind: Kind
    in_tokens: bool
    first: fractions.Fraction
    stop: fractions.Fraction
    first_tokens: fractions.Fraction
    stop_tokens: fractions.Fraction
    start_lr: float
    end_lr: float
    power: Power | None = None

    @property
    def first_update(self) -> int:
        """Number of the first update with a rate of this span."""
        return math.ceil(self.first)

    @property
    def last_update(self) -> int:
        """Number of the last one; below `first_update` where the span is shorter than a batch."""
        return math.ceil(self.stop) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A schedule in numbers.

    Attributes:
      spans: in order, without gaps, from 0.
      clock: updates to tokens.
      total_steps: updates of the run; after them the rate stays where the last span ended.
      taken_lr: what "checkpoint" stood for; None where nothing asked.
      batch_rule: how rates follow the batch.
      reference_tokens: of a batch that has the spans' own rates.
    """

    spans: tuple[Span, ...]
    clock: clock_lib.Clock
    total_steps: int
    taken_lr: float | None
    batch_rule: BatchRule
    reference_tokens: int

    @property
    def peak_lr(self) -> float:
        """The highest rate of a batch of `reference_tokens`."""
        return max(max(span.start_lr, span.end_lr) for span in self.spans)

    def factor(self, count: int) -> float:
        """What the batch rule multiplies the rate of update `count` by.

        1, n or sqrt(n), where n = batch / reference batch: linear is Goyal et al. 1706.02677, the
        square root Krizhevsky 1404.5997, section 3, and what is usual with Adam (2205.10287).
        """
        return self.factor_of(self.clock.batch_tokens(count) / self.reference_tokens)

    def factor_of(self, ratio: float) -> float:
        """`factor` of a batch that is `ratio` times another."""
        return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.batch_rule]

    def lr(self, count: int) -> float:
        """The rate of update `count`, in double precision, without a device."""
        with np.errstate(all="ignore"):
            return float(_evaluate(self._pieces, np.asarray(count, np.int64), np, np.float64))

    def lrs(self, counts: Any) -> np.ndarray:
        """`lr` of many updates at once."""
        with np.errstate(all="ignore"):
            return _evaluate(self._pieces, np.asarray(counts, np.int64), np, np.float64)

    def span(self, name: str) -> Span:
        """The only span of this name: where it begins is where a mixture may switch.

        Raises:
          ValueError: there is none, or more than one.
        """
        found = [span for span in self.spans if span.name == name]
        if len(found) != 1:
            names = [span.name for span in self.spans]
            raise ValueError(f"The schedule has {len(found)} phases called {name!r}, of {names}.")
        return found[0]

    def facts(self) -> dict[str, Any]:
        """What a run that keeps this schedule must know, for the checkpoint's manifest."""
        return {
            "taken_lr": self.taken_lr,
            "clock": self.clock.to_json(),
            "reference_tokens": self.reference_tokens,
        }

    @functools.cached_property
    def _pieces(self) -> dict[str, np.ndarray]:
        rows = [row for span in self.spans for row in _cut(span, self.clock, self.factor)]
        end = self.spans[-1].end_lr * self.factor(math.ceil(self.spans[-1].stop) - 1)
        rows.append(_row("hold", math.ceil(self.spans[-1].stop), 0, start=end, end=end))
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def learning_rate(curve: Curve) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """Update's number (int32, scalar or array) -> its rate in float32; traceable."""
    return functools.partial(_traceable, curve)


def _traceable(curve: Curve, count: jax.typing.ArrayLike) -> jax.Array:
    return _evaluate(curve._pieces, jnp.asarray(count, jnp.int32), jnp, jnp.float32)


def _row(kind: Kind, first: int, last: int, **kwargs: float) -> dict[str, Any]:
    """A piece: p = p0 + (s - first) slope, q = q0 + (last - s) slope, x = x0 + (s - first) dx."""
    zeros = dict.fromkeys(("start", "end", "p0", "q0", "slope", "log_ratio"), 0.0)
    power = {"x0": 1.0, "dx": 0.0, "scale": 1.0, "exponent": 0.0, "floor": 0.0, "cap": 1.0}
    return {"kind": _KINDS.index(kind), "first": first, "last": last} | zeros | power | kwargs


def _cut(
    span: Span, clock: clock_lib.Clock, factor: Callable[[int], float]
) -> list[dict[str, Any]]:
    """A span's pieces. Every number is rounded once, from an exact fraction."""
    stop = span.last_update + 1
    changes = [first for first, _, _ in clock.knees if span.first_update < first < stop]
    edges = [span.first_update, *changes, stop]
    begin, end = (
        (span.first_tokens, span.stop_tokens) if span.in_tokens else (span.first, span.stop)
    )
    rows = []
    for first, after in itertools.pairwise(edges):
        if first >= after:
            continue
        batch = clock.batch_tokens(first)
        step = fractions.Fraction(batch if span.in_tokens else 1)
        at = clock.tokens(first) if span.in_tokens else fractions.Fraction(first)
        to_go = end - at - (after - 1 - first) * step
        numbers = {
            "start": span.start_lr * factor(first),
            "end": span.end_lr * factor(first),
            "p0": float((at - begin) / (end - begin)),
            "q0": float(to_go / (end - begin)),
            "slope": float(step / (end - begin)),
        }
        if span.kind == "exponential":
            numbers["log_ratio"] = math.log(span.end_lr / span.start_lr)
        if power := span.power:
            numbers |= {
                "x0": float((power.offset + at - begin) / power.unit),
                "dx": float(step / power.unit),
                "scale": power.scale * (batch / power.per_row if power.per_row else factor(first)),
                "exponent": power.exponent,
                "floor": power.floor * factor(first),
                "cap": power.cap * factor(first),
            }
        rows.append(_row(span.kind, first, after - 1, **numbers))
    return rows


def _evaluate(pieces: dict[str, np.ndarray], count: Any, xp: Any, dtype: Any) -> Any:
    """The rate, by numpy in float64 or by jax.numpy in float32."""
    firsts = xp.asarray(pieces["first"], count.dtype)
    at = xp.maximum(xp.searchsorted(firsts, count, side="right") - 1, 0)

    def take(name: str) -> Any:
        return xp.asarray(pieces[name], dtype)[at]

    start, end, slope = take("start"), take("end"), take("slope")
    gone = (count - firsts[at]).astype(dtype)
    to_go = (xp.asarray(pieces["last"], count.dtype)[at] - count).astype(dtype)
    p, q = take("p0") + gone * slope, take("q0") + to_go * slope
    kind = xp.asarray(pieces["kind"], count.dtype)[at]
    rate = start
    for code in sorted(set(pieces["kind"].tolist())):
        if _KINDS[code] == "hold":
            continue
        if _KINDS[code] == "power":
            x = take("x0") + gone * take("dx")
            value = xp.clip(take("scale") * x ** take("exponent"), take("floor"), take("cap"))
        elif _KINDS[code] == "exponential":
            ratio = take("log_ratio")  # from the nearer end: the exponent's error counts in full
            value = xp.where(p < q, start * xp.exp(p * ratio), end * xp.exp(-q * ratio))
        else:
            of_start, of_end = _shares(_KINDS[code], p, q, xp)
            # The rate in force at a checkpoint goes on to the last bit, whatever the shape.
            value = xp.where(p == 0, start, start * of_start + end * of_end)
        rate = xp.where(kind == code, value, rate)
    return rate


def _shares(kind: str, p: Any, q: Any, xp: Any) -> tuple[Any, Any]:
    """(f, 1 - f) of a shape, each without cancellation."""
    quarter = math.pi / 2
    if kind == "linear":
        return q, p
    if kind == "cosine":
        return xp.sin(quarter * q) ** 2, xp.sin(quarter * p) ** 2
    if kind == "half_cosine":
        return 2 * xp.sin(quarter / 2 * q) ** 2, xp.sin(quarter * p)
    assert kind == "one_minus_sqrt", kind
    return q / (1 + xp.sqrt(p)), xp.sqrt(p)
