# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints an average takes, and their weights.

method --checkpoints()--> [(run, step), ...]      method --parts()--> weights, in that order
"""

import dataclasses
import math
from collections.abc import Sequence

from midjax import checkpoint

# Weights that people write down, such as (0.333333, 0.333333, 0.333333), are off by this much. The
# average is divided by their sum.
SUM_TOLERANCE = 1e-5
# Beyond it, 1 - weight loses digits of the 1.
MOST_WEIGHT = 1e6

Checkpoint = tuple[str, int | None]  # run directory, step; None is the newest


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastN:
    """Checkpoints of one run (LAWA, 2209.14981; OLMo 3: the last three).

    Attributes:
      run: run directory.
      newest: how many of its newest checkpoints; None where `steps` names them.
      steps: which ones; None where `newest` counts them.
      weights: one per checkpoint, oldest first, that sum to 1; None for equal ones. To stand in
        for a decay whose factors after each checkpoint but the last are f_1 >= ... >= f_k, they
        are 1 - f_1, f_1 - f_2, ..., f_k (2507.17634).
    """

    run: str
    newest: int | None
    steps: tuple[int, ...] | None
    weights: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if (self.newest is None) == (self.steps is None):
            raise ValueError(
                f"LastN.newest = {self.newest} and LastN.steps = {self.steps}: set one of them, "
                "the other to None."
            )
        if self.newest is not None and self.newest < 1:
            raise ValueError(f"LastN.newest must be 1 or more, got {self.newest}.")
        if self.steps is not None and list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"LastN.steps must rise, got {self.steps}.")
        _check("LastN", self.newest or len(self.steps or ()), self.weights)

    def checkpoints(self) -> list[Checkpoint]:
        """Oldest first.

        Raises:
          CheckpointError: the run has fewer.
        """
        if self.steps is not None:
            return [(self.run, step) for step in self.steps]
        assert self.newest is not None
        found = checkpoint.steps(self.run)
        if len(found) < self.newest:
            raise checkpoint.CheckpointError(
                f"{self.run} holds the checkpoints {found}, asked for the newest {self.newest}. "
                "Ask for fewer, or let the run keep more: Keep.last, Keep.forever_every_steps."
            )
        return [(self.run, step) for step in found[-self.newest :]]

    def parts(self) -> list[float]:
        """How much of each; equal ones are 1."""
        return _parts(self.newest or len(self.steps or ()), self.weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup:
    """The ends of several runs (2203.05482, uniform soup).

    Attributes:
      runs: run directories.
      steps: one per run, None in it for the newest; None takes the newest of each.
      weights: one per run, that sum to 1; None for equal ones.
    """

    runs: tuple[str, ...]
    steps: tuple[int | None, ...] | None
    weights: tuple[float, ...] | None

    def __post_init__(self) -> None:
        _check("Soup", len(self.runs), self.weights)
        _check_steps("Soup", self.runs, self.steps)

    def checkpoints(self) -> list[Checkpoint]:
        """In the order of `runs`."""
        return _paired(self.runs, self.steps)

    def parts(self) -> list[float]:
        """How much of each; equal ones are 1."""
        return _parts(len(self.runs), self.weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedySoup:
    """Of the ends of several runs, those that do the average good (2203.05482, recipe 1).

    The score is the mean of the domains' bits per byte. The text that chooses is then no longer
    held out: report the result on other text.

    Attributes:
      runs, steps: as in `Soup`.
      tokens, domains, row_tokens, batch_rows, tokenizer: what is scored, as in `Eval`.
    """

    runs: tuple[str, ...]
    steps: tuple[int | None, ...] | None
    tokens: str
    domains: tuple[str, ...]
    row_tokens: int
    batch_rows: int
    tokenizer: str

    def __post_init__(self) -> None:
        _check("GreedySoup", len(self.runs), None)
        _check_steps("GreedySoup", self.runs, self.steps)

    def checkpoints(self) -> list[Checkpoint]:
        """In the order of `runs`."""
        return _paired(self.runs, self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolation:
    """(1 - weight) * first + weight * second, such as a mid-trained model and what it came from.

    SmolLM3 mended its long context with 0.9 and 0.1.

    Attributes:
      first_run, first_step, second_run, second_step: the checkpoints; a step of None is the newest.
      weight: of the second, from 0 to 1.
      extrapolate: lets `weight` lie outside, which goes on beyond one of the two.
    """

    first_run: str
    first_step: int | None
    second_run: str
    second_step: int | None
    weight: float
    extrapolate: bool

    def __post_init__(self) -> None:
        if not abs(self.weight) <= MOST_WEIGHT:
            raise ValueError(
                f"Interpolation.weight must lie within +-{MOST_WEIGHT:g}, got {self.weight}."
            )
        if not 0 <= self.weight <= 1 and not self.extrapolate:
            raise ValueError(
                f"Interpolation.weight = {self.weight} lies outside [0, 1], beyond both "
                "checkpoints. Ask for that with Interpolation.extrapolate = True, or choose a "
                "weight between 0 (the first) and 1 (the second)."
            )

    def checkpoints(self) -> list[Checkpoint]:
        """First, second."""
        return [(self.first_run, self.first_step), (self.second_run, self.second_step)]

    def parts(self) -> list[float]:
        """How much of each; equal ones are 1."""
        return [1.0 - self.weight, self.weight]


def _check(owner: str, count: int, weights: Sequence[float] | None) -> None:
    if not count:
        raise ValueError(f"{owner} names no checkpoint. Name one or more.")
    if weights is None:
        return
    if len(weights) != count:
        raise ValueError(
            f"{owner}.weights has {len(weights)} numbers for {count} checkpoints: {weights}. Give "
            "one for each, or None for equal ones."
        )
    if not all(0 < w <= 1 for w in weights) or abs(math.fsum(weights) - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"{owner}.weights must be over 0 and sum to 1, got {weights}, which sum to "
            f"{math.fsum(weights):.6g}. To go beyond a checkpoint, use Interpolation with "
            "extrapolate = True."
        )


def _check_steps(owner: str, runs: Sequence[str], steps: Sequence[int | None] | None) -> None:
    if steps is not None and len(steps) != len(runs):
        raise ValueError(
            f"{owner}.steps has {len(steps)} entries for {len(runs)} runs: {steps}. Give one for "
            "each (None in it is the newest), or None for the newest of all."
        )


def _paired(runs: Sequence[str], steps: Sequence[int | None] | None) -> list[Checkpoint]:
    return list(zip(runs, steps or [None] * len(runs), strict=True))


def _parts(count: int, weights: Sequence[float] | None) -> list[float]:
    return [1.0] * count if weights is None else list(weights)
