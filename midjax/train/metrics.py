# SPDX-License-Identifier: Apache-2.0
"""Device metrics of each update -> a row of `metrics.jsonl`, with exact counts by source."""

import time
from typing import Any

import jax

from midjax import log
from midjax.batches import loader
from midjax.mixture import order as order_lib
from midjax.train import step as step_lib


class Recorder:
    """Turns device metrics into rows, one step late: the device never waits for the host."""

    def __init__(
        self,
        data: loader.Data,
        order: order_lib.Order,
        journal: log.Journal,
        *,
        first_step: int,
        first_row: int,
    ) -> None:
        self._data, self._order, self._journal = data, order, journal
        self._first_step, self._first_row = first_step, first_row
        self._pending: tuple[int, step_lib.Metrics] | None = None
        self._time = time.monotonic()
        self._stage = -1
        self._skipped = 0
        self.last: dict[str, Any] = {}
        self.note = ""

    def put(self, step: int, metrics: step_lib.Metrics) -> None:
        """Takes update `step`'s metrics and writes those of the update before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Writes what is pending; waits for the device."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = jax.device_get(metrics)
        now = time.monotonic()
        self.last = self._row(step, values, now - self._time)
        self._time = now
        self._journal.metrics(self.last)
        if values["skipped"]:
            self._skipped += 1
            self._journal.event("skipped", step=step, why="loss or gradient not finite")
        skipped = f"  skipped {self._skipped}" if self._skipped else ""
        self.note = f"loss {self.last['loss']:.3f}{skipped}"

    def _row(self, step: int, values: dict[str, Any], seconds: float) -> dict[str, Any]:
        data, order = self._data, self._order
        rows_done = self._first_row + (step - self._first_step) * data.batch_rows
        asked = self._asked(step, rows_done - data.batch_rows)
        row: dict[str, Any] = {"step": step, "tokens": step * data.batch_tokens}
        for name in ("loss", "z_loss", "grad_norm", "update_norm", "param_norm", "lr"):
            row[name] = float(values[name])
        row["skipped"] = int(values["skipped"])
        counts, epochs = order.counts(rows_done), order.epochs(rows_done)
        for k, name in enumerate(order.names):
            weight = float(values["weight_by_source"][k])
            row[f"loss/{name}"] = float(values["nll_by_source"][k]) / weight if weight else None
            row[f"tokens/{name}"] = int(weight)
            row[f"asked/{name}"] = float(asked[k])
            row[f"rows/{name}"] = int(counts[k])
            row[f"epochs/{name}"] = float(epochs[k])
        row["perf/step_seconds"] = seconds
        row["perf/tokens_per_second"] = data.batch_tokens / seconds
        return row

    def _asked(self, step: int, first_row: int) -> Any:
        """Shares in force at a batch's first row; an event says when they change."""
        at = self._order.stage_at(first_row)
        stage = self._data.mixture.stages[at]
        shares = stage.shares(self._order.names)
        if at != self._stage:
            self._stage = at
            weights = dict(zip(self._order.names, shares.tolist(), strict=True))
            self._journal.event("stage", name=stage.name, step=step, weights=weights)
        return shares
