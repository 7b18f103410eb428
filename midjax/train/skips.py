# SPDX-License-Identifier: Apache-2.0
"""Skipped updates, told: why, what was measured, and which rows of the data they were.

metrics of update n --Watch.see--> an event `skipped`; too many in a row --> StreakError
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from midjax import log
from midjax.batches import loader as loader_lib
from midjax.train import guard

# What a row of metrics may say of an update, and its event repeats.
_VALUES = ("loss", "grad_norm", "update_norm", "lr", "loss_limit", "grad_norm_limit")


class StreakError(Exception):
    """As many updates in a row were skipped as the recipe allows; `rollback.answer` decides.

    Attributes:
      steps: of these updates, rising.
      why: of the last one.
      rows: to blame, as the events name them; those that this process saw.
    """

    def __init__(self, steps: Sequence[int], why: str, rows: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(f"updates {list(steps)} were skipped: {why}")
        self.steps, self.why, self.rows = tuple(steps), why, tuple(rows)


class Watch:
    """Counts the skipped updates of a run and names their rows.

    Args:
      loader: of the run.
      journal: takes the events.
      rows_of: step -> its global rows [begin, end).
      most: this many skipped updates in a row are a `StreakError`.
      steps: skipped updates in a row that an earlier process ended with.

    Attributes:
      count: skipped updates that this process saw.
      steps: those in a row now.
    """

    def __init__(
        self,
        loader: loader_lib.Loader,
        journal: log.Journal,
        rows_of: Callable[[int], tuple[int, int]],
        *,
        most: int,
        steps: Sequence[int] = (),
    ) -> None:
        self._loader, self._journal, self._rows_of, self._most = loader, journal, rows_of, most
        self.count, self.steps = 0, list(steps)
        self._rows: list[dict[str, Any]] = []

    def see(self, row: dict[str, Any], loss_by_row: Any) -> None:
        """Takes one update.

        Args:
          row: of metrics.
          loss_by_row: mean loss of each row of the batch, [B], on device: fetched if need be.

        Raises:
          StreakError: with this one there are too many in a row.
        """
        why = row["skipped"]
        if why == guard.LEFT_OUT:  # says nothing about the run: a streak goes on behind it
            return
        if not why:
            self.steps, self._rows = [], []
            return
        self.count += 1
        self.steps.append(row["step"])
        rows = self._named(row["step"], np.asarray(jax.device_get(loss_by_row)))
        self._rows += rows
        values = {k: row[k] for k in _VALUES if k in row}
        self._journal.event(
            "skipped",
            step=row["step"],
            why=guard.WORDS[why],
            **{k: v if math.isfinite(v) else None for k, v in values.items()},
            rows=rows,
            in_a_row=len(self.steps),
        )
        if len(self.steps) >= self._most:
            raise StreakError(self.steps, guard.WORDS[why], self._rows)

    def _named(self, step: int, losses: np.ndarray) -> list[dict[str, Any]]:
        """The rows whose own loss is not finite; all of the batch where none is to be blamed."""
        named = self._loader.named(*self._rows_of(step))
        fine = np.isfinite(losses)
        rows = np.arange(len(losses)) if fine.all() else np.flatnonzero(~fine)
        return [named[k] | {"loss": float(losses[k]) if fine[k] else None} for k in rows.tolist()]
