# SPDX-License-Identifier: Apache-2.0
"""Stages -> segments: stretches of rows, each with a table from which any block follows at once.

A stage is one segment, or two: its ramp and what comes after it. Blocks are counted from where
their segment begins.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from midjax.mixture import solve, spread, stages

# Attempts to meet caps in whole rows, of which two or three are the rule.
_MOST_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Rows whose shares are steady or change linearly.

    Attributes:
      stage: index of the stage.
      begin, end: its rows; None ends with the run, whose last block is not cut, so that a longer
        run begins with the same rows.
      first, last: rows of each source in PERIOD_BLOCKS blocks at both ends of the table.
      prefix: rows of each source before each block of the table, [blocks + 1, sources].
      steady: the table repeats without end.
      seed, block_rows: of the mixture.
    """

    stage: int
    begin: int
    end: int | None
    first: np.ndarray
    last: np.ndarray
    prefix: np.ndarray
    steady: bool
    seed: int
    block_rows: int

    @property
    def blocks(self) -> int:
        """Blocks of the table."""
        return len(self.prefix) - 1

    def before(self, block: int | np.ndarray) -> np.ndarray:
        """Rows of each source in the blocks before `block`, [..., sources]."""
        if not self.steady:
            return self.prefix[block]
        periods, rest = np.divmod(np.asarray(block), self.blocks)
        return periods[..., None] * self.prefix[-1] + self.prefix[rest]

    def shares(self, block: int) -> np.ndarray:
        """Share of each source in a block, [sources], before rounding to rows."""
        total = self.last.sum()
        if self.steady:
            return self.last / total
        after = (2 * block + 1) / (2 * self.blocks)
        return (self.first * (1 - after) + self.last * after) / total

    def whole_blocks(self) -> int | None:
        """Blocks that are not cut by the segment's end; None for no end."""
        return None if self.end is None else (self.end - self.begin) // self.block_rows

    def sources(self, first: int, last: int) -> np.ndarray:
        """Source of each row of the blocks [first, last), [rows]; the segment's end cuts them."""
        whole = self.whole_blocks()
        cut = whole is not None and last > whole
        end = whole if whole is not None and cut else last
        parts = [self._shuffled(np.diff(self.before(np.arange(first, end + 1)), axis=0), first)]
        if cut and self.end is not None and (rest := (self.end - self.begin) % self.block_rows):
            counts = spread.cut(
                self.first,
                self.last,
                self.blocks,
                block=end % self.blocks,
                before=self.prefix[end % self.blocks],
                rows=rest,
                block_rows=self.block_rows,
            )
            parts.append(self._shuffled(counts[None], end))
        return np.concatenate(parts)

    def count(self, rows: int) -> np.ndarray:
        """Rows of each source among the segment's first `rows`, [sources]."""
        block, place = divmod(rows, self.block_rows)
        found = self.before(block)
        if place:
            inside = self.sources(block, block + 1)[:place]
            found = found + np.bincount(inside, minlength=len(found))
        return found

    def _shuffled(self, counts: np.ndarray, block: int) -> np.ndarray:
        """Blocks with these counts [blocks, sources], each in an order of its own, flat."""
        blocks, sources = counts.shape
        if not blocks:
            return np.empty(0, np.int64)
        rows = int(counts[0].sum())
        placed = np.repeat(np.tile(np.arange(sources), blocks), counts.ravel())
        at = self.begin + block * self.block_rows + np.arange(blocks * rows)
        keys = noise(self.seed, at).reshape(blocks, rows)
        order = np.argsort(keys, axis=1, kind="stable")
        return np.take_along_axis(placed.reshape(blocks, rows), order, axis=1).ravel()


def noise(seed: int, at: np.ndarray) -> np.ndarray:
    """Random bits by place, [n] uint64: SplitMix64 (Steele, Lea, Flood 2014), the same everywhere.

    A function of the seed and the global row alone, so that a stage that is put in later changes
    nothing elsewhere.
    """
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        return _mix(start + at.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def build(
    mixture: stages.Mixture,
    found: Sequence[stages.InRows],
    *,
    first_row: int,
    room: np.ndarray | None,
) -> list[Segment]:
    """The segments of a run.

    Args:
      mixture: as asked.
      found: its stages in rows.
      first_row: rows before it were drawn under another mixture and take no room.
      room: rows of each source that its cap leaves, [sources] int64; None leaves weights as asked.

    Raises:
      ValueError: the caps leave no source to shift to.
    """
    segments: list[Segment] = []
    for index, stage in enumerate(found):
        is_last = index == len(found) - 1
        start = segments[-1].last if segments else stage.counts
        if room is None or stage.end <= first_row:
            segments += _segments(mixture, index, stage, start, stage.counts, is_last)
            continue
        made, used = _shifted(mixture, index, stage, start, is_last, first_row, room)
        room = room - used
        segments += made
    return segments


def _segments(
    mixture: stages.Mixture,
    index: int,
    stage: stages.InRows,
    start: np.ndarray,
    last: np.ndarray,
    is_last: bool,
) -> list[Segment]:
    ramp_end = stage.begin + stage.ramp_blocks * mixture.block_rows
    end = None if is_last else stage.end
    if end is not None:
        ramp_end = min(ramp_end, end)
    pieces: list[tuple[int, int | None, np.ndarray, int]] = []
    if stage.ramp_blocks:
        pieces.append((stage.begin, ramp_end, start, stage.ramp_blocks))
    if is_last or ramp_end < stage.end:
        pieces.append((ramp_end, end, last, spread.PERIOD_BLOCKS))
    return [
        Segment(
            stage=index,
            begin=begin,
            end=to,
            first=first,
            last=last,
            prefix=spread.prefix(first, last, blocks),
            steady=first is last,
            seed=mixture.seed,
            block_rows=mixture.block_rows,
        )
        for begin, to, first, blocks in pieces
    ]


def _shifted(
    mixture: stages.Mixture,
    index: int,
    stage: stages.InRows,
    start: np.ndarray,
    is_last: bool,
    first_row: int,
    room: np.ndarray,
) -> tuple[list[Segment], np.ndarray]:
    """A stage within its caps: its segments and the rows of each source that it draws.

    Shares are solved for, rounded and counted; where rounding still brought a source over its cap,
    it is asked for so much less, and all again.
    """
    begin = max(stage.begin, first_row)
    ramp = stage.ramp_blocks * mixture.block_rows
    # Rows times how much of the ramp is still ahead of them, summed from a row to the ramp's end.
    ramp_end = stage.begin + ramp
    ahead = [max(ramp_end - row, 0) ** 2 / (2 * max(ramp, 1)) for row in (begin, stage.end)]
    start_rows = ahead[0] - ahead[1]
    end_rows = stage.end - begin - start_rows
    period = int(stage.counts.sum())
    target = room.astype(np.float64)
    for _ in range(_MOST_ATTEMPTS):
        try:
            low, high, capped = solve.shift(
                start / period,
                stage.shares,
                start_rows=start_rows,
                end_rows=end_rows,
                room=target,
            )
        except solve.AllCappedError as error:
            raise ValueError(
                f"Stage {stage.name!r}: every source that it draws from is at its cap, and about "
                f"{error.rows:.0f} rows are left. Add text, raise Mixture.max_epochs, or train on "
                "fewer tokens."
            ) from error
        if capped.any():
            first, last = (_rounded(shares, capped, period) for shares in (low, high))
        else:
            first, last = start, stage.counts
        made = _segments(mixture, index, stage, first, last, is_last)
        used = count(made, stage.end) - count(made, begin)
        if (used <= room).all():
            return made, used
        target = np.where(used > room, np.minimum(target, room) - (used - room), target)
    raise AssertionError(f"caps of stage {stage.name!r} not met in {_MOST_ATTEMPTS} attempts")


def _rounded(shares: np.ndarray, capped: np.ndarray, period: int) -> np.ndarray:
    """Rows in a period: those of capped sources rounded down, the others to the rest."""
    counts = np.where(capped, np.floor(shares * period), 0).astype(np.int64)
    free = np.where(capped, 0, shares)
    if not free.sum() > 0:
        free = shares
    return counts + spread.largest_remainder(free / free.sum(), period - int(counts.sum()))


def count(segments: Sequence[Segment], row: int) -> np.ndarray:
    """Rows of each source from the begin of the first segment to global row `row`, [sources]."""
    found = np.zeros_like(segments[0].first)
    for segment in segments:
        end = row if segment.end is None else min(row, segment.end)
        if end > segment.begin:
            found = found + segment.count(end - segment.begin)
    return found
