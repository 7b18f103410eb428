# SPDX-License-Identifier: Apache-2.0
"""What a recipe may say about learning rates.

A phase has a length and a curve. Let u be the position inside it, L its length (both in steps or
both in tokens, as the length is given) and p = u / L:

    Hold        eta = lr
    Move        eta = end + (start - end) f(p)                    up or down
    PowerDecay  eta = max(floor, start ((tau + u) / tau)^b)       b < 0
    PowerLaw    eta = min(max_lr, B a n^b)                        n: tokens since the schedule began

The shapes f of `Move`, from 1 at p = 0 to 0 at p = 1:

    linear          1 - p                            warm-ups; the decay of OLMo 2
    cosine          (1 + cos(pi p)) / 2
    half_cosine     1 - sin(pi p / 2)                second half of a cosine (OLMo-core's HalfCos,
                                                     whose full cosine began at 2 start - end)
    one_minus_sqrt  1 - sqrt(p)                      Hagele et al. 2405.18392
    exponential     eta = start^(1 - p) end^p        MiniCPM 2404.06395, MPL 2503.12811

A phase has its start rate at u = 0: its first update uses `start`, and the last one is a step short
of `end` (as torchtitan and Hagele et al.; MaxText reaches the end with the last update).

What has a name elsewhere, in phases:

    full cosine          Move linear up, Move cosine to the floor
    inverse square root  Move linear up, PowerDecay with b = -1/2, tau = where it begins (T5, Noam)
    power, OLMo-core     Move linear up, PowerDecay with tau = where it begins, Move linear
    power, 2408.13359    PowerLaw (a = 4.6, b = -0.51 in the paper, for muP), then Move linear
    infinite cosine      Move linear up, Move cosine, Hold, Move exponential (2503.02844)
    re-warm-up           Move from "checkpoint" up to the new peak, Move down
    WSD-S                Move up, then Hold and Move down again and again (2410.05192): each Hold
                         names the stable rate, and returns to it at once, without a warm-up
    slow, then fast      two Moves; a mixture's stage that starts where the second one does
                         switches the data there
"""

import dataclasses
from typing import Literal

Shape = Literal["linear", "cosine", "half_cosine", "one_minus_sqrt", "exponential"]
FROM_CHECKPOINT: Literal["checkpoint"] = "checkpoint"
FROM_PREVIOUS: Literal["previous"] = "previous"
# Where a rate comes from: a number; the rate in force at the checkpoint that the run starts from;
# the rate at which the phase before ended.
Rate = float | Literal["checkpoint"]
StartRate = float | Literal["checkpoint", "previous"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hold:
    """A constant rate.

    Attributes:
      name: for tables and messages.
      steps, tokens: length; at most one is given. One phase of a tuple may leave both None: it
        takes what the others leave of the run.
      lr: the rate.
    """

    name: str
    steps: int | None
    tokens: int | None
    lr: StartRate

    def __post_init__(self) -> None:
        _check_length(self)
        _check_rates(self, "lr", above=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
    """From one rate to another.

    Attributes:
      name, steps, tokens: as in `Hold`.
      start_lr: rate of the first update.
      end_lr: rate at the end, which the phase after may take over.
      shape: one of the shapes above.
    """

    name: str
    steps: int | None
    tokens: int | None
    start_lr: StartRate
    end_lr: Rate
    shape: Shape

    def __post_init__(self) -> None:
        _check_length(self)
        _check_rates(self, "start_lr", "end_lr", above=self.shape == "exponential")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerDecay:
    """A power of the position, from a rate that is given.

    Attributes:
      name, steps, tokens: as in `Hold`.
      start_lr: rate of the first update.
      exponent: b, below 0: -1/2 for the inverse square root, -1 for 1 / s.
      timescale_steps, timescale_tokens: tau, the position at which the power would have `start_lr`;
        both None for where the phase begins on the schedule, so that eta = start (s / W)^b after
        W steps of warm-up.
      floor_lr: the rate never falls below; 0 for none.
    """

    name: str
    steps: int | None
    tokens: int | None
    start_lr: StartRate
    exponent: float
    timescale_steps: int | None
    timescale_tokens: int | None
    floor_lr: float

    def __post_init__(self) -> None:
        _check_length(self)
        _check_rates(self, "start_lr", above=True)
        _check_rates(self, "floor_lr", above=False)
        given = [t for t in (self.timescale_steps, self.timescale_tokens) if t is not None]
        if len(given) > 1 or any(t < 1 for t in given):
            raise ValueError(
                f"PowerDecay {self.name!r}: give timescale_steps or timescale_tokens, 1 or more, "
                f"or neither, got {self.timescale_steps}, {self.timescale_tokens}."
            )
        if not self.exponent < 0:
            raise ValueError(
                f"PowerDecay {self.name!r}: exponent must be below 0, got {self.exponent}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """The power scheduler, Shen et al. 2408.13359: a rate by batch and tokens, not by length.

    eta = min(max_lr, B a n^b), where n is the tokens since the schedule began, phases before this
    one included, and B the batch in sequences (rows).

    Attributes:
      name, steps, tokens: as in `Hold`.
      max_lr: the cap, which holds at the beginning.
      amplitude, exponent: a above 0 and b below 0; in the paper 4.6 and -0.51, found with muP.
    """

    name: str
    steps: int | None
    tokens: int | None
    max_lr: float
    amplitude: float
    exponent: float

    def __post_init__(self) -> None:
        _check_length(self)
        if not (self.max_lr > 0 and self.amplitude > 0 and self.exponent < 0):
            raise ValueError(
                f"PowerLaw {self.name!r}: max_lr and amplitude must be above 0 and exponent below "
                f"0, got {self.max_lr}, {self.amplitude}, {self.exponent}."
            )


Phase = Hold | Move | PowerDecay | PowerLaw


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phases:
    """Phases one after another, from the schedule's start to the end of the run.

    Their lengths are relative to the phase before. A phase may stand in the tuple more than once.

    Attributes:
      phases: in order. Together they are as long as the run: one of them may have no length.
    """

    phases: tuple[Hold | Move | PowerDecay | PowerLaw, ...]

    def __post_init__(self) -> None:
        rest = [p.name for p in self.phases if p.steps is None and p.tokens is None]
        if not self.phases or len(rest) > 1:
            raise ValueError(
                "Phases.phases needs one phase or more, of which one may leave steps and tokens "
                f"None, got {len(self.phases)} phases, without a length: {rest}."
            )
        first = self.phases[0]
        start = getattr(first, "start_lr", getattr(first, "lr", None))
        if start == FROM_PREVIOUS:
            raise ValueError(
                f"Phases: the first phase, {first.name!r}, has no previous one whose rate it could "
                "take over. Give a number, or 'checkpoint'."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Warm-up, stable, decay (WSD): the short form of three phases. Of each pair, one is None.

    Attributes:
      peak_lr: learning rate of the stable phase; `"checkpoint"` takes the rate in force at the
        checkpoint that the run starts from.
      start_lr: rate of the first warm-up step; without warm-up it is not used.
      final_lr: rate after the last step.
      warmup_steps, warmup_tokens: length of the warm-up; 0 for none.
      decay_steps, decay_tokens: length of the decay, which ends with the run; 0 for none.
      decay_shape: a shape of `Move`, or "inverse_sqrt": `PowerDecay` with b = -1/2 from where the
        decay begins, and `final_lr` as its floor.
    """

    peak_lr: Rate
    start_lr: float
    final_lr: float
    warmup_steps: int | None
    warmup_tokens: int | None
    decay_steps: int | None
    decay_tokens: int | None
    decay_shape: Literal[
        "linear", "cosine", "half_cosine", "one_minus_sqrt", "exponential", "inverse_sqrt"
    ]

    def __post_init__(self) -> None:
        for phase in ("warmup", "decay"):
            steps, tokens = getattr(self, f"{phase}_steps"), getattr(self, f"{phase}_tokens")
            if (steps is None) == (tokens is None):
                raise ValueError(
                    f"Schedule: give {phase}_steps or {phase}_tokens and set the other to None, "
                    f"got {phase}_steps={steps}, {phase}_tokens={tokens}. Use 0 for no {phase}."
                )
            if (steps or 0) < 0 or (tokens or 0) < 0:
                raise ValueError(f"Schedule: {phase} must not be negative: {steps}, {tokens}.")
        if self.start_lr < 0 or self.final_lr < 0:
            raise ValueError(
                f"Schedule: rates must not be negative: {self.start_lr}, {self.final_lr}."
            )
        if self.peak_lr != FROM_CHECKPOINT and not self.peak_lr > 0:
            raise ValueError(f"Schedule.peak_lr must be above 0, got {self.peak_lr}.")
        decays = bool(self.decay_steps or self.decay_tokens)
        if self.decay_shape == "exponential" and decays and self.final_lr == 0:
            raise ValueError(
                "Schedule: an exponential decay never reaches 0. Set final_lr above 0 or take "
                "another decay_shape."
            )

    def phases(self) -> tuple[Phase, ...]:
        """The same in phases. The stable one takes what is left, which may be nothing."""
        made: list[Phase] = []
        if self.warmup_steps or self.warmup_tokens:
            made.append(
                Move(
                    name="warm-up",
                    steps=self.warmup_steps,
                    tokens=self.warmup_tokens,
                    start_lr=self.start_lr,
                    end_lr=self.peak_lr,
                    shape="linear",
                )
            )
        made.append(Hold(name="stable", steps=None, tokens=None, lr=self.peak_lr))
        if self.decay_steps or self.decay_tokens:
            made.append(self._decay())
        return tuple(made)

    def _decay(self) -> Phase:
        if self.decay_shape == "inverse_sqrt":
            return PowerDecay(
                name="decay",
                steps=self.decay_steps,
                tokens=self.decay_tokens,
                start_lr=self.peak_lr,
                exponent=-0.5,
                timescale_steps=None,
                timescale_tokens=None,
                floor_lr=self.final_lr,
            )
        return Move(
            name="decay",
            steps=self.decay_steps,
            tokens=self.decay_tokens,
            start_lr=self.peak_lr,
            end_lr=self.final_lr,
            shape=self.decay_shape,
        )


def _check_length(phase: Phase) -> None:
    given = [length for length in (phase.steps, phase.tokens) if length is not None]
    if len(given) > 1 or any(length < 1 for length in given):
        raise ValueError(
            f"{type(phase).__name__} {phase.name!r}: give steps or tokens, 1 or more, or neither "
            f"for what is left of the run, got steps={phase.steps}, tokens={phase.tokens}."
        )


def _check_rates(phase: Phase, *fields: str, above: bool) -> None:
    for field in fields:
        rate = getattr(phase, field)
        if not isinstance(rate, str) and not (rate > 0 or (rate == 0 and not above)):
            raise ValueError(
                f"{type(phase).__name__} {phase.name!r}: {field} must be "
                f"{'above 0' if above else '0 or more'}, got {rate}."
            )
