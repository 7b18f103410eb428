# SPDX-License-Identifier: Apache-2.0
"""Device metrics of each update -> a row of `metrics.jsonl`, with exact counts by source."""

from typing import Any

import jax

from midjax import log
from midjax.batches import batch as batch_lib
from midjax.batches import loader
from midjax.mixture import order as order_lib
from midjax.trackers import sink
from midjax.train import speed as speed_lib
from midjax.train import step as step_lib
from midjax.train import timeline as timeline_lib

_ROUTERS = ("balance_loss", "router_z_loss", "expert_load_max")


class DivergedError(ValueError):
    """Too many updates in a row were skipped."""


class Recorder:
    """Turns device metrics into rows, one step late: the device never waits for the host.

    A row of `metrics.jsonl`; NAME stands for each source:

        step                     updates done, this one included
        tokens                   places in batches so far, padding included
        loss, z_loss             nats, and squared nats, per loss-bearing token of the batch
        grad_norm                before clipping
        update_norm, param_norm  of the change (not applied if skipped), of the parameters after it
        lr                       that this update used
        balance_loss, router_z_loss
                                 of a model with experts: means over its layers
        expert_load_max          load of the busiest expert of any layer; 1 when all are equal
        skipped                  1 if loss or gradient was not finite: nothing but `step` changed
        loss/NAME                nats per token; null where the batch has none of the source
        tokens/NAME              loss-bearing tokens of the batch
        asked/NAME               share of tokens in force at the batch's first row: as the weights
                                 ask, on a ramp or shifted by caps
        rows/NAME                rows drawn since global row 0, which a kept step does not reset;
                                 times T, the source's tokens so far
        epochs/NAME              epochs drawn, those before the run included
        perf/...                 speed, utilisation and memory: see `speed.Speed`

    Args:
      data, order, journal, timeline, trackers, speed: of the run.
      first_row: where it goes on.
      max_consecutive_skips: see `recipe.Train`.
      restarted: this run goes on from its own checkpoint, with the same mixture.
    """

    def __init__(
        self,
        data: loader.Data,
        order: order_lib.Order,
        journal: log.Journal,
        timeline: timeline_lib.Timeline,
        *,
        trackers: sink.Trackers,
        speed: speed_lib.Speed,
        first_row: int,
        max_consecutive_skips: int,
        restarted: bool,
    ) -> None:
        self._data, self._order, self._journal = data, order, journal
        self._timeline, self._first_row = timeline, first_row
        self._trackers, self._speed = trackers, speed
        self._pending: tuple[int, step_lib.Metrics, speed_lib.Work] | None = None
        # A stage that began before the checkpoint is not said again.
        self._stage = order.stage_at(first_row - 1) if restarted and first_row else -1
        self.skipped = self._skipped_in_a_row = 0
        self._max_skips = max_consecutive_skips
        self.last: dict[str, Any] = {}
        self.note = ""

    def put(self, step: int, metrics: step_lib.Metrics, batch: batch_lib.Batch) -> None:
        """Takes update `step`'s metrics and its batch on the host; writes those of the one before.

        The device has this update to do meanwhile.
        """
        work = self._speed.work(batch)
        self.flush()
        self._pending = (step, metrics, work)

    def device_is_busy(self) -> bool:
        """Whether the newest update is not done yet. Does not wait."""
        if self._pending is None:
            return False
        loss: Any = self._pending[1]["loss"]
        return not loss.is_ready()

    def flush(self) -> None:
        """Writes what is pending; waits for the device.

        Raises:
          DivergedError: one skipped update too many.
        """
        if self._pending is None:
            return
        step, metrics, work = self._pending
        self._pending = None
        values = jax.device_get(metrics)
        self.last = self._row(step, values) | self._speed.row(work)
        self._journal.metrics(self.last)
        self._trackers.put(self.last)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if values["skipped"] else 0
        if values["skipped"]:
            self.skipped += 1
            self._journal.event("skipped", step=step, why="loss or gradient not finite")
        if self._skipped_in_a_row > self._max_skips:
            raise DivergedError(
                f"Step {step}: loss or gradient was not finite {self._skipped_in_a_row} times in a "
                f"row, Train.max_consecutive_skips is {self._max_skips}. No update since step "
                f"{step - self._skipped_in_a_row} was applied. Look at the learning rate and at "
                "the data of these steps; the checkpoints are kept."
            )
        mfu = self.last["perf/mfu"]
        self.note = f"loss {self.last['loss']:.3f}"
        self.note += f"  MFU {mfu:.0%}" if mfu is not None else ""
        self.note += f"  skipped {self.skipped}" if self.skipped else ""

    def _row(self, step: int, values: dict[str, Any]) -> dict[str, Any]:
        order, timeline = self._order, self._timeline
        rows_done = self._first_row + timeline.rows(step)
        batch_rows = timeline.batch_rows(step)
        asked = self._asked(step, rows_done - batch_rows)
        row: dict[str, Any] = {"step": step, "tokens": timeline.tokens(step)}
        for name in ("loss", "z_loss", "grad_norm", "update_norm", "param_norm", "lr"):
            row[name] = float(values[name])
        row |= {name: float(values[name]) for name in _ROUTERS if name in values}
        row["skipped"] = int(values["skipped"])
        counts, epochs = order.counts(rows_done), order.epochs(rows_done)
        for k, name in enumerate(order.names):
            weight = float(values["weight_by_source"][k])
            row[f"loss/{name}"] = float(values["nll_by_source"][k]) / weight if weight else None
            row[f"tokens/{name}"] = int(weight)
            row[f"asked/{name}"] = float(asked[k])
            row[f"rows/{name}"] = int(counts[k])
            row[f"epochs/{name}"] = float(epochs[k])
        return row

    def _asked(self, step: int, first_row: int) -> Any:
        """Shares in force at a batch's first row; an event says when a stage begins."""
        at, shares = self._order.stage_at(first_row), self._order.shares(first_row)
        if at != self._stage:
            self._stage = at
            name = self._data.mixture.stages[at].name
            weights = dict(zip(self._order.names, shares.tolist(), strict=True))
            # Rows before it were drawn by another mixture, whose stage may have this name too.
            if first_row == self._order.first_row > 0:
                name = f"{name} (changed)"
            self._journal.event("stage", name=name, step=step, weights=weights)
        return shares
