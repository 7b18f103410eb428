# SPDX-License-Identifier: Apache-2.0
"""What a recipe says of a mixture, and the same in rows."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from midjax import units
from midjax.mixture import spread, weights

# One table of counts holds a ramp: a limit of memory and of seconds.
MOST_RAMP_BLOCKS = 1 << 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Weights from some point of the run on, until the next stage starts.

    Attributes:
      name: for logs and reports.
      weights: source -> share of tokens, or a rule that computes it. Shares need not sum to 1: they
        are normalised, and the run says so. Zero means that the source rests in this stage.
      start_tokens: tokens since the run began, rounded up to whole rows; or
      start_share: share of the run's tokens, rounded to whole rows. The first stage starts at 0.
      ramp_tokens: tokens over which the shares go linearly from those of the stage before, at
        their end, to this stage's, rounded up to whole blocks; or
      ramp_share: the same as a share of the run. None of both: one step.
    """

    name: str
    weights: Mapping[str, float] | weights.Temperature | weights.UniMax
    start_tokens: int | None = None
    start_share: float | None = None
    ramp_tokens: int | None = None
    ramp_share: float | None = None

    def __post_init__(self) -> None:
        given = self.weights
        if isinstance(given, Mapping):
            bad = {k: w for k, w in given.items() if not 0 <= w < float("inf")}
            if bad or not sum(given.values()) > 0:
                raise ValueError(
                    f"Stage {self.name!r}: weights must be 0 or more, with a sum above 0, got "
                    f"{dict(given)}."
                )
        if (self.start_tokens is None) == (self.start_share is None):
            raise ValueError(
                f"Stage {self.name!r} needs start_tokens or start_share, and not both, got "
                f"{self.start_tokens} and {self.start_share}."
            )
        if self.ramp_tokens is not None and self.ramp_share is not None:
            raise ValueError(
                f"Stage {self.name!r} has both ramp_tokens and ramp_share. Give one, or none for a "
                "step."
            )
        for field, most in (
            ("start_tokens", None),
            ("ramp_tokens", None),
            ("start_share", 1),
            ("ramp_share", 1),
        ):
            value = getattr(self, field)
            if value is not None and not (value >= 0 and (most is None or value <= most)):
                allowed = "0 or more" if most is None else "between 0 and 1"
                raise ValueError(f"Stage {self.name!r}: {field} must be {allowed}, got {value}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Sources that it gives a weight, sorted."""
        if isinstance(self.weights, Mapping):
            return tuple(sorted(self.weights))
        return tuple(sorted(self.weights.sources))

    def start_row(self, row_tokens: int, total_rows: int) -> int:
        """First row of the stage in a run of `total_rows`."""
        if self.start_tokens is not None:
            return units.rows_of_tokens(self.start_tokens, row_tokens)
        assert self.start_share is not None
        return round(self.start_share * total_rows)

    def ramp_rows(self, row_tokens: int, total_rows: int) -> int:
        """Rows of the ramp, not yet rounded to blocks."""
        if self.ramp_tokens is not None:
            return units.rows_of_tokens(self.ramp_tokens, row_tokens)
        if self.start_share is None:
            return int((self.ramp_share or 0) * total_rows)
        # Its end is rounded as the start of a stage is: shares that fit give rows that fit.
        end = round((self.start_share + (self.ramp_share or 0)) * total_rows)
        return end - self.start_row(row_tokens, total_rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Staged weights with caps.

    Attributes:
      stages: in the order in which they start, the first at 0 and without a ramp.
      max_epochs: source -> how often its rows may be seen in this run (1.0 = once). Checked before
        the run starts. Every source that has a weight needs a cap.
      seed: of the order inside blocks and of each source's permutations.
      block_rows: rows between two points at which the shares are kept to within one row.
      over_cap: what happens where the weights ask for more than a cap. "error": the run is refused.
        "shift": stage by stage, sources over what is left of their cap are set to it and the others
        of the stage grow in proportion. Earlier stages take what they ask for first.
    """

    stages: tuple[Stage, ...]
    max_epochs: Mapping[str, float]
    seed: int
    block_rows: int
    over_cap: Literal["error", "shift"] = "error"

    def __post_init__(self) -> None:
        firsts = [s.start_share if s.start_tokens is None else s.start_tokens for s in self.stages]
        tokens = [s.start_tokens for s in self.stages if s.start_tokens is not None]
        shares = [s.start_share for s in self.stages if s.start_share is not None]
        if not firsts or firsts[0] != 0 or any(x != sorted(set(x)) for x in (tokens, shares)):
            raise ValueError(
                "Mixture.stages must start at 0 tokens and rise, got the starts "
                f"{firsts}. Put the stages in order and the first at 0."
            )
        if self.stages[0].ramp_tokens or self.stages[0].ramp_share:
            raise ValueError(
                f"Stage {self.stages[0].name!r} is the first and has a ramp: there is nothing "
                "before it. Drop the ramp, or put a stage before it."
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"Mixture.stages must have names of their own, got {names}.")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"Mixture.seed must lie in [0, 2^32), got {self.seed}.")
        if not 1 <= self.block_rows <= 1 << 16:
            raise ValueError(f"Mixture.block_rows must be 1 to 65,536, got {self.block_rows}.")
        if missing := sorted(set(self.names) - set(self.max_epochs)):
            raise ValueError(
                f"Mixture.max_epochs has no cap for {missing}. Say how many epochs of each source "
                "this run may see."
            )
        if unused := sorted(set(self.max_epochs) - set(self.names)):
            raise ValueError(
                f"Mixture.max_epochs caps {unused}, which no stage gives a weight; the stages know "
                f"{list(self.names)}."
            )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Sources of all stages, sorted: a source's index is its place here."""
        return tuple(sorted({name for stage in self.stages for name in stage.names}))

    def unnormalised(self) -> list[str]:
        """One sentence for each stage whose weights do not sum to 1."""
        return [
            f"weights of stage {s.name!r} sum to {total:.6g}; normalised to 1"
            for s in self.stages
            if isinstance(s.weights, Mapping) and abs((total := sum(s.weights.values())) - 1) > 1e-6
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InRows:
    """A stage of a run whose length and sources are known.

    Attributes:
      name: of the stage.
      begin, end: its rows. The last stage ends with the run.
      ramp_blocks: blocks of the ramp at its beginning; 0 for a step.
      counts: rows of each source in PERIOD_BLOCKS blocks that are asked for after the ramp.
      shares: the same before rounding, sum 1.
    """

    name: str
    begin: int
    end: int
    ramp_blocks: int
    counts: np.ndarray
    shares: np.ndarray


def in_rows(
    mixture: Mixture, source_rows: Mapping[str, int], row_tokens: int, total_rows: int
) -> list[InRows]:
    """The stages in rows, their weights computed and rounded.

    Raises:
      ValueError: a stage starts after the run ends or before the one before it, a ramp is longer
        than its stage, a weight is too small to be drawn.
    """
    starts = [stage.start_row(row_tokens, total_rows) for stage in mixture.stages]
    ends = [*starts[1:], max(total_rows, starts[-1])]
    found = []
    for stage, begin, end in zip(mixture.stages, starts, ends, strict=True):
        if begin >= total_rows and begin > 0:
            raise ValueError(
                f"Stage {stage.name!r} begins at {begin * row_tokens} tokens and the run ends "
                f"at {total_rows * row_tokens}: it would never be reached. Begin it earlier, "
                "train on more tokens, or drop it."
            )
        if end <= begin and total_rows:
            raise ValueError(
                f"Stage {stage.name!r} begins at {begin * row_tokens} tokens and the next one at "
                f"{end * row_tokens}: it would hold no row. Put the stages in order."
            )
        ramp = stage.ramp_rows(row_tokens, total_rows)
        blocks = units.ceil_div(ramp, mixture.block_rows)
        if ramp > end - begin or blocks > MOST_RAMP_BLOCKS:
            raise ValueError(
                f"Stage {stage.name!r}: its ramp of {ramp} rows is longer than the stage's "
                f"{end - begin} rows or than {MOST_RAMP_BLOCKS} blocks of {mixture.block_rows} "
                "rows. Shorten the ramp or raise Mixture.block_rows."
            )
        shares = _shares(mixture, stage, source_rows, row_tokens, (end - begin) * row_tokens)
        counts = _counts(mixture, stage, shares)
        found.append(
            InRows(
                name=stage.name,
                begin=begin,
                end=end,
                ramp_blocks=blocks,
                counts=counts,
                shares=shares,
            )
        )
    return found


def _shares(
    mixture: Mixture,
    stage: Stage,
    source_rows: Mapping[str, int],
    row_tokens: int,
    stage_tokens: int,
) -> np.ndarray:
    given = stage.weights
    if not isinstance(given, Mapping):
        tokens = {name: source_rows[name] * row_tokens for name in stage.names}
        given = given.weights(tokens, max(stage_tokens, 1))
    values = np.array([given.get(name, 0.0) for name in mixture.names], np.float64)
    return values / max(values.sum(), np.finfo(np.float64).tiny)


def _counts(mixture: Mixture, stage: Stage, shares: np.ndarray) -> np.ndarray:
    period = spread.PERIOD_BLOCKS * mixture.block_rows
    counts = spread.largest_remainder(shares, period)
    for name, share, count in zip(mixture.names, shares, counts, strict=True):
        if share > 0 and count == 0:
            raise ValueError(
                f"Stage {stage.name!r}: the weight of {name!r} is {share:.2g} of the tokens, "
                f"less than one row in {period}. Raise the weight, drop the source, or "
                "raise Mixture.block_rows."
            )
    return counts


def fingerprint(
    mixture: Mixture, stages: Sequence[InRows], facts: Mapping[str, Any], total_rows: int
) -> str:
    """Hash of everything that decides the order: equal fingerprints give equal rows.

    Args:
      mixture: as asked.
      stages: `in_rows` of it.
      facts: what else decides, plain JSON: rows of the sources, where they stand.
      total_rows: rows of the run, which matter where caps shift weights.
    """
    found: dict[str, Any] = {
        "names": mixture.names,
        "seed": mixture.seed,
        "block_rows": mixture.block_rows,
        "period_blocks": spread.PERIOD_BLOCKS,
        "stages": [[s.begin, s.ramp_blocks, s.counts.tolist()] for s in stages],
        "facts": dict(facts),
    }
    if mixture.over_cap == "shift":
        found["caps"] = [mixture.max_epochs[name] for name in mixture.names]
        found["shares"] = [stage.shares.tolist() for stage in stages]
        found["total_rows"] = total_rows
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
