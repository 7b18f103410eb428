# SPDX-License-Identifier: Apache-2.0
"""The mixture as a pure function: global row index -> (source, how many rows of it came before).

In every block and every prefix of blocks each source has its share to within one row; inside a
block the order is shuffled by seed. Prefix counts make any row computable, so the position of a run
is one integer, the same for any number of hosts. Rows have a fixed number of tokens and hold one
source each: weights are shares of tokens, not of documents.
"""

import bisect
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from midjax.mixture import segments as segments_lib
from midjax.mixture import stages as stages_lib

# Rows that are computed at once, or one block, whichever is more.
_CHUNK_ROWS = 1024
_CHUNKS_KEPT = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Past:
    """Rows of a run that were drawn under an earlier mixture: they stay what they were.

    Attributes:
      first_row: first global row of the mixture in force.
      drawn: source -> rows of it among the rows before; sources that the mixture leaves out too.
    """

    first_row: int
    drawn: Mapping[str, int]


NOTHING = Past(first_row=0, drawn={})


class Order:
    """`order[i] -> (source index, row number of that source)`; satisfies Grain's selection map.

    Row numbers of a source count on, over stages, epochs, mixtures and runs.

    Attributes:
      names: sources, sorted; an index is a place here.
      source_rows: rows in one epoch of each, [sources].
      base: rows of each that were drawn before the run, [sources].
      first_row: first global row that this mixture orders.

    Args:
      mixture: stages, caps, seed.
      source_rows: source -> rows in one epoch of it.
      row_tokens: tokens per row.
      total_rows: rows of the run.
      base_rows: source -> rows of it that were drawn before this run began (a branch that keeps
        its data position); 0 where absent. Caps do not count them.
      past: rows of this run that another mixture drew. Caps count them.

    Raises:
      ValueError: a source is missing or empty, a weight is too small to be drawn, a cap is broken,
        a stage begins after the run ends.
    """

    def __init__(
        self,
        mixture: stages_lib.Mixture,
        *,
        source_rows: Mapping[str, int],
        row_tokens: int,
        total_rows: int,
        base_rows: Mapping[str, int] | None = None,
        past: Past = NOTHING,
    ) -> None:
        self.mixture, self.names, self.past = mixture, mixture.names, past
        self.row_tokens, self.total_rows = row_tokens, total_rows
        self.first_row = past.first_row
        _check_sources(mixture, source_rows, row_tokens)
        self.source_rows = self._column(source_rows)
        self.base = self._column(base_rows or {})
        self._before = self._column(past.drawn)
        self.stages = stages_lib.in_rows(mixture, source_rows, row_tokens, total_rows)
        caps = np.array([mixture.max_epochs[name] for name in self.names])
        # Rows of each source that the run may draw; 2^62 is no limit.
        self.most = np.minimum(caps * self.source_rows + 1e-9, 2.0**62).astype(np.int64)
        shifts = mixture.over_cap == "shift"
        self._segments = segments_lib.build(
            mixture,
            self.stages,
            first_row=self.first_row,
            room=self.most - self._before if shifts else None,
        )
        self._starts = [segment.begin for segment in self._segments]
        totals = [np.zeros(len(self.names), np.int64)]
        for segment in self._segments[:-1]:
            assert segment.end is not None
            totals.append(totals[-1] + segment.count(segment.end - segment.begin))
        self._totals = totals
        self._cached()
        # What this mixture would have drawn before its first row is not what was drawn.
        self._moved = self._before - self._virtual(self.first_row)
        self._check_caps()

    def _column(self, rows: Mapping[str, int]) -> np.ndarray:
        return np.array([rows.get(name, 0) for name in self.names], np.int64)

    def _cached(self) -> None:
        self._chunk = functools.lru_cache(maxsize=_CHUNKS_KEPT)(self._make_chunk)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_chunk"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cached()

    def __len__(self) -> int:
        return self.total_rows

    def __getitem__(self, index: int) -> tuple[int, int]:
        sources, numbers = self.rows(int(index), int(index) + 1)
        return int(sources[0]), int(numbers[0])

    def rows(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Global rows [begin, end): (source indices [rows] int64, row numbers [rows] int64).

        `self[i]` for each of them; any `begin` from `first_row` on, in time that depends on
        `end - begin` only.
        """
        assert self.first_row <= begin <= end, (self.first_row, begin, end)
        sources, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while begin < end:
            at = bisect.bisect_right(self._starts, begin) - 1
            chunk, place = divmod(begin - self._starts[at], self._chunk_rows)
            piece = slice(place, place + end - begin)
            inside = self._chunk(at, chunk)
            sources.append(inside[0][piece])
            numbers.append(inside[1][piece])
            begin += len(sources[-1])
        found = np.concatenate(sources)
        return found, np.concatenate(numbers) + (self.base + self._moved)[found]

    def stage_at(self, index: int) -> int:
        """Index of the stage that row `index` belongs to."""
        return self._segment_at(index).stage

    def shares(self, index: int) -> np.ndarray:
        """Share of each source in force at row `index`, [sources]: rounded, shifted, ramped."""
        segment = self._segment_at(index)
        return segment.shares((int(index) - segment.begin) // self.mixture.block_rows)

    def stage_shares(self, stage: int) -> np.ndarray:
        """Shares in force at the end of a stage, [sources]."""
        last = [segment for segment in self._segments if segment.stage == stage][-1].last
        return last / last.sum()

    def counts(self, index: int) -> np.ndarray:
        """Rows of each source among the run's rows [0, index), [sources]; without `base_rows`.

        Exact at every index from `first_row` on, in time that doesn't depend on it.
        """
        assert index >= self.first_row, (index, self.first_row)
        return self._moved + self._virtual(index)

    def drawn(self, index: int) -> dict[str, int]:
        """`counts` by name, with the sources that only an earlier mixture of the run had."""
        now = dict(zip(self.names, self.counts(index).tolist(), strict=True))
        return dict(self.past.drawn) | now

    def epochs(self, index: int) -> np.ndarray:
        """Epochs of each source seen before global row `index`, those before the run included."""
        return (self.base + self.counts(index)) / self.source_rows

    def fingerprint(self) -> str:
        """Hash of everything that decides the order: equal fingerprints give equal rows."""
        return fingerprint(
            self.mixture,
            source_rows=dict(zip(self.names, self.source_rows.tolist(), strict=True)),
            row_tokens=self.row_tokens,
            total_rows=self.total_rows,
            base_rows=dict(zip(self.names, self.base.tolist(), strict=True)),
            past=self.past,
        )

    def _segment_at(self, index: int) -> segments_lib.Segment:
        return self._segments[bisect.bisect_right(self._starts, int(index)) - 1]

    @property
    def _chunk_blocks(self) -> int:
        return max(1, _CHUNK_ROWS // self.mixture.block_rows)

    @property
    def _chunk_rows(self) -> int:
        return self._chunk_blocks * self.mixture.block_rows

    def _virtual(self, index: int) -> np.ndarray:
        """Counts as if this mixture had been in force from row 0 on."""
        if index == 0:
            return np.zeros(len(self.names), np.int64)
        at = bisect.bisect_right(self._starts, index - 1) - 1
        segment = self._segments[at]
        block, place = divmod(index - segment.begin, self.mixture.block_rows)
        found = self._totals[at] + segment.before(block)
        if place:
            chunk, inside = divmod(block, self._chunk_blocks)
            first = inside * self.mixture.block_rows
            sources = self._chunk(at, chunk)[0][first : first + place]
            found = found + np.bincount(sources, minlength=len(self.names))
        return found

    def _make_chunk(self, at: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, `_virtual` count of that source) of each row of some blocks of a segment."""
        segment = self._segments[at]
        first = chunk * self._chunk_blocks
        sources = segment.sources(first, first + self._chunk_blocks)
        # Numbers count on inside each source: places sorted by source, less where each begins.
        by_source = np.argsort(sources, kind="stable")
        counts = np.bincount(sources, minlength=len(self.names))
        begins = np.cumsum(counts) - counts
        start = self._totals[at] + segment.before(first)
        numbers = np.empty_like(sources)
        numbers[by_source] = np.arange(len(sources)) + (start - begins)[sources[by_source]]
        return sources, numbers

    def _check_caps(self) -> None:
        drawn = self.counts(self.total_rows)
        broken = []
        for k in np.nonzero(drawn > self.most)[0].tolist():
            rows, cap = self.source_rows[k], self.mixture.max_epochs[self.names[k]]
            dry = self._dry_row(k)
            broken.append(
                f"{self.names[k]}: {drawn[k]} of {rows} rows = {drawn[k] / rows:.2f} epochs, cap "
                f"{cap:g}, dry at {dry * self.row_tokens} tokens in stage "
                f"{self.mixture.stages[self.stage_at(dry)].name!r}"
            )
        if broken:
            raise ValueError(
                "The mixture needs more epochs than its caps allow: "
                + "; ".join(broken)
                + ". Lower these weights, train on fewer tokens, add text, raise max_epochs, or "
                "let the other sources fill in with Mixture.over_cap = 'shift'."
            )

    def _dry_row(self, source: int) -> int:
        """First row at which a source has no row left under its cap."""
        rows = range(self.first_row, self.total_rows)
        return self.first_row + bisect.bisect_left(
            rows, True, key=lambda row: bool(self.counts(row + 1)[source] > self.most[source])
        )


def _check_sources(
    mixture: stages_lib.Mixture, source_rows: Mapping[str, int], row_tokens: int
) -> None:
    if missing := sorted(set(mixture.names) - set(source_rows)):
        raise ValueError(
            f"The mixture has weights for {missing}, and the sources are "
            f"{sorted(source_rows)}. Add the source or drop the weight."
        )
    if empty := [name for name in mixture.names if source_rows[name] == 0]:
        raise ValueError(
            f"{empty} hold no row of {row_tokens} tokens. Give more text or drop them."
        )


def fingerprint(
    mixture: stages_lib.Mixture,
    *,
    source_rows: Mapping[str, int],
    row_tokens: int,
    total_rows: int,
    base_rows: Mapping[str, int] | None = None,
    past: Past = NOTHING,
) -> str:
    """`Order.fingerprint` of an order with these arguments, which need not keep its caps."""
    _check_sources(mixture, source_rows, row_tokens)
    facts = {
        "rows": [source_rows[name] for name in mixture.names],
        "base": [(base_rows or {}).get(name, 0) for name in mixture.names],
        "row_tokens": row_tokens,
        "past": [past.first_row, dict(past.drawn)],
    }
    found = stages_lib.in_rows(mixture, source_rows, row_tokens, total_rows)
    return stages_lib.fingerprint(mixture, found, facts, total_rows)
