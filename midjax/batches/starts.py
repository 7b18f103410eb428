# SPDX-License-Identifier: Apache-2.0
"""Where each batch of a run begins, where batches may have other sizes at other steps."""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Mapping

import numpy as np

Starts = range | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp:
    """Batches whose size changes on the way, as Llama 3 405B's (4M to 8M to 16M tokens).

    Attributes:
      rows: of a batch, size after size.
      start_tokens: tokens of the run (padding included) before the first batch of each size, the
        first 0. A change waits for the end of the batch before it.
    """

    rows: tuple[int, ...]
    start_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in itertools.pairwise(self.start_tokens))
        fits = len(self.rows) == len(self.start_tokens) > 0
        if not fits or self.start_tokens[0] != 0 or not rising or min(self.rows) < 1:
            raise ValueError(
                "Ramp needs as many rows (1 or more) as start_tokens, which begin at 0 and rise; "
                f"got rows={self.rows}, start_tokens={self.start_tokens}."
            )

    def at(self, tokens: int) -> int:
        """Rows of a batch that begins after `tokens` of the run."""
        return self.rows[bisect.bisect_right(self.start_tokens, tokens) - 1]


def starts(
    batch_rows: Callable[[int], int] | Mapping[int, int],
    *,
    first_step: int,
    next_row: int,
    total_rows: int,
) -> Starts:
    """First global row of each batch, and of the one after the last whole batch.

    Costs nothing where the size stays the same, else 8 bytes for each step that is left.

    Args:
      batch_rows: rows of the batch of a step, as a function of the step or as {first step of which
        it holds: rows}.
      first_step: the step of the first batch, which begins at row `next_row`.
      total_rows: where the run ends.

    Raises:
      ValueError: a batch without a row, or no size for the first step.
    """
    if callable(batch_rows):
        found = [next_row]
        while (end := found[-1] + _size(batch_rows(first_step + len(found) - 1))) <= total_rows:
            found.append(end)
        return np.array(found, np.int64)
    table = sorted((step, _size(rows)) for step, rows in batch_rows.items())
    at = bisect.bisect_right([step for step, _ in table], first_step) - 1
    if at < 0:
        raise ValueError(
            f"No number of rows is given for step {first_step}: the table {dict(table)} begins "
            f"later. Let it begin at step {first_step} or before."
        )
    if at + 1 == len(table):
        return range(next_row, max(total_rows, next_row) + 1, table[at][1])
    parts = [np.array([next_row])]
    for k in range(at, len(table)):
        begin, rows = int(parts[-1][-1]), table[k][1]
        left = max(total_rows - begin, 0) // rows
        lasts = left
        if k + 1 < len(table):
            lasts = table[k + 1][0] - max(first_step, table[k][0])
        parts.append(begin + rows * np.arange(1, min(left, lasts) + 1))
        if left < lasts:  # the run ends among these, even if smaller ones come later
            break
    return np.concatenate(parts)


def check_divides(starts: Starts, readers: int) -> None:
    """Every batch divides over the readers.

    Raises:
      ValueError: one does not.
    """
    if isinstance(starts, range):
        sizes = [starts.step]
    else:
        sizes = np.unique(np.diff(starts)).tolist()
    if wrong := [rows for rows in sizes if rows % readers]:
        raise ValueError(
            f"A batch of {wrong[0]} rows (Data.batch_rows) does not divide over {readers} readers "
            "(hosts). Choose a multiple."
        )


def _size(rows: int) -> int:
    if rows < 1:
        raise ValueError(f"A batch needs 1 row or more, got {rows}.")
    return rows
