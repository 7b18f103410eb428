# SPDX-License-Identifier: Apache-2.0
"""Device metrics of each update -> a row of `metrics.jsonl`, with exact counts by source."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from midjax import log
from midjax.batches import batch as batch_lib
from midjax.batches import loader
from midjax.mixture import order as order_lib
from midjax.trackers import sink
from midjax.train import layer_norms, noise, skips
from midjax.train import speed as speed_lib
from midjax.train import step as step_lib
from midjax.train import timeline as timeline_lib

_OPTIONAL = (
    "balance_loss", "router_z_loss", "expert_load_max",
    "loss_median", "loss_limit", "grad_norm_median", "grad_norm_limit",
)  # fmt: skip


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
        skipped                  0, or why only the counts moved: 1 loss or gradient not finite, 2 a
                                 spike, 3 left out after a rollback (its batch was not looked at)
        loss_median, loss_limit, grad_norm_median, grad_norm_limit
                                 with `Train.spikes`: above which limits the update is a spike; null
                                 while there is too little history
        loss/NAME                nats per token; null where the batch has none of the source
        tokens/NAME              loss-bearing tokens of the batch
        asked/NAME               share of tokens in force at the batch's first row: as the weights
                                 ask, on a ramp or shifted by caps
        rows/NAME                rows drawn since global row 0, which a kept step does not reset;
                                 times T, the source's tokens so far
        epochs/NAME              epochs drawn, those before the run included
        noise/...                on the steps of `Train.noise_scale_every_steps`: one measurement
                                 of "covariance_trace" and "gradient_square", see `noise`, and
                                 "scale_tokens", of the means since the process began
        perf/...                 speed, utilisation and memory: see `speed.Speed`

    Args:
      data, order, journal, timeline, trackers, speed: of the run.
      first_row: where it goes on.
      watch: is shown every row.
      restarted: this run goes on from its own checkpoint, with the same mixture.
      layers_of, layer_norms_every_steps: for norms by layer, see `layer_norms.row`.
      noise_every_steps: see `recipe.Train`.

    Attributes:
      watch: see above.
      last: the newest row.
      note: a few words about it.
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
        watch: skips.Watch,
        restarted: bool,
        layers_of: Mapping[str, tuple[int, ...]] | None = None,
        layer_norms_every_steps: int | None = None,
        noise_every_steps: int | None = None,
    ) -> None:
        self._data, self._order, self._journal = data, order, journal
        self._timeline, self._first_row = timeline, first_row
        self._trackers, self._speed = trackers, speed
        self._pending: tuple[int, step_lib.Metrics, speed_lib.Work | None] | None = None
        # A stage that began before the checkpoint is not said again.
        self._stage = order.stage_at(first_row - 1) if restarted and first_row else -1
        self.watch = watch
        self._layers_of, self._every = layers_of or {}, layer_norms_every_steps
        self._noise, self._noise_every = noise.Running(), noise_every_steps
        self.last: dict[str, Any] = {}
        self.note = ""

    def put(
        self, step: int, metrics: step_lib.Metrics, batch: batch_lib.Batch | loader.Places | None
    ) -> None:
        """Takes update `step`'s metrics and its batch on the host; writes those of the one before.

        The device has this update to do meanwhile. A step that is left out has no batch.
        """
        work = self._speed.work(batch) if batch is not None else None
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
          skips.StreakError: one skipped update too many.
        """
        if self._pending is None:
            return
        step, metrics, work = self._pending
        self._pending = None
        # These stay on the device, but for the few updates that need them.
        metrics = dict(metrics)
        loss_by_row = metrics.pop("loss_by_row", None)
        norms = metrics.pop("layer_norms", None)
        values = jax.device_get(metrics)
        self.last = self._row(step, values) | self._speed.row(work)
        self._journal.metrics(self.last)
        self._trackers.put(self.last)
        if norms is not None and self._every and step % self._every == 0:
            found = layer_norms.row(step, jax.device_get(norms), self._layers_of)
            self._journal.layer_norms(found)
        self.watch.see(self.last, loss_by_row)
        mfu = self.last["perf/mfu"]
        self.note = f"loss {self.last['loss']:.3f}"
        self.note += f"  MFU {mfu:.0%}" if mfu is not None else ""
        self.note += f"  skipped {self.watch.count}" if self.watch.count else ""

    def _row(self, step: int, values: dict[str, Any]) -> dict[str, Any]:
        order, timeline = self._order, self._timeline
        rows_done = self._first_row + timeline.rows(step)
        batch_rows = timeline.batch_rows(step)
        asked = self._asked(step, rows_done - batch_rows)
        row: dict[str, Any] = {"step": step, "tokens": timeline.tokens(step)}
        for name in ("loss", "z_loss", "grad_norm", "update_norm", "param_norm", "lr"):
            row[name] = float(values[name])
        row |= {name: float(values[name]) for name in _OPTIONAL if name in values}
        row["skipped"] = int(values["skipped"])
        row |= self._noise_row(step, values)
        counts, epochs = order.counts(rows_done), order.epochs(rows_done)
        for k, name in enumerate(order.names):
            weight = float(values["weight_by_source"][k])
            row[f"loss/{name}"] = float(values["nll_by_source"][k]) / weight if weight else None
            row[f"tokens/{name}"] = int(weight) if math.isfinite(weight) else None
            row[f"asked/{name}"] = float(asked[k])
            row[f"rows/{name}"] = int(counts[k])
            row[f"epochs/{name}"] = float(epochs[k])
        return row

    def _noise_row(self, step: int, values: dict[str, Any]) -> dict[str, float | None]:
        found = values.get("noise")
        if found is None or not self._noise_every or step % self._noise_every:
            return {}
        measured = {name: float(value) for name, value in found.items()}
        if all(map(math.isfinite, measured.values())):
            self._noise.add(**measured)
        named = {f"noise/{name}": value for name, value in measured.items()}
        return named | {"noise/scale_tokens": self._noise.scale_tokens}

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
