# SPDX-License-Identifier: Apache-2.0
"""How fast a run is and what it holds in memory: the numbers `perf/` of a row of metrics."""

import dataclasses
import resource
import time
from collections.abc import Sequence
from typing import Any

import jax

from midjax import log
from midjax.batches import batch as batch_lib
from midjax.batches import loader
from midjax.model import architecture, flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a batch is worth.

    Attributes:
      places: in its rows, padding included.
      tokens: places that are not padding.
      flops: see `model/flops.py`.
    """

    places: int
    tokens: int
    flops: int


class Speed:
    """Measures updates, from the moment it is made.

    `row` gives

        perf/step_seconds       time since the row before, whatever it went to: of a session's
                                first row compiling, after a checkpoint saving, after an evaluation
                                that. Rows are made when the device is done, but late where the host
                                is: look at medians
        perf/tokens_per_second  tokens of the batch that are not padding, by these seconds
        perf/padding            share of the batch's places that are padding
        perf/model_flops        of the update: forward and backward products of the model for the
                                tokens that are not padding, attention by the documents packed; the
                                formula is in `model/flops.py`
        perf/mfu                model FLOPs utilisation: model_flops / (step_seconds * devices *
                                peak of one in bfloat16); null where that peak is not known
        perf/device_bytes, perf/device_peak_bytes
                                in use at this row, and the most so far, on the fullest of this
                                process's devices; null where the backend does not say (CPU)
        perf/host_peak_bytes    the most memory that this process has held resident
        perf/time               when the row was made, seconds since 1970

    Args:
      model: the model.
      devices: all that the run computes on.
      device_flops_per_second: peak of one; None takes that of its kind.
      journal: gets an event if the peak is not known.
    """

    def __init__(
        self,
        model: architecture.TransformerConfig,
        devices: Sequence[jax.Device],
        device_flops_per_second: float | None,
        journal: log.Journal,
    ) -> None:
        self._model, self._count = model, len(devices)
        here = jax.process_index()
        self._local = [device for device in devices if device.process_index == here]
        kind = devices[0].device_kind
        self._peak = device_flops_per_second or flops.peak_flops_per_second(kind)
        if self._peak is None:
            journal.event(
                "mfu_unknown",
                device_kind=kind,
                what="perf/mfu is null: give Train.device_flops_per_second",
            )
        self._time = time.monotonic()

    def work(self, batch: batch_lib.Batch | loader.Places) -> Work:
        """What a batch is worth, counted on the host: of all of its rows."""
        tokens = int((batch.segments > 0).sum())
        counted = flops.of_rows(self._model, batch.segments, batch.positions)
        return Work(places=batch.segments.size, tokens=tokens, flops=counted)

    def row(self, work: Work | None) -> dict[str, float | int | None]:
        """The numbers of an update that is done; what is by its work is null where it had none."""
        now = time.monotonic()
        seconds, self._time = max(now - self._time, 1e-9), now
        utilisation = None
        if self._peak is not None and work is not None:
            utilisation = work.flops / (seconds * self._count * self._peak)
        in_use, peak = device_bytes(self._local)
        return {
            "perf/step_seconds": seconds,
            "perf/tokens_per_second": work.tokens / seconds if work else None,
            "perf/padding": 1 - work.tokens / work.places if work else None,
            "perf/model_flops": work.flops if work else None,
            "perf/mfu": utilisation,
            "perf/device_bytes": in_use,
            "perf/device_peak_bytes": peak,
            "perf/host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "perf/time": round(time.time(), 3),
        }


def device_bytes(devices: Sequence[Any]) -> tuple[int | None, int | None]:
    """(bytes in use, most bytes so far) on the fullest device; None where it is not said."""
    found = [device.memory_stats() or {} for device in devices]
    numbers = [
        [stats[key] for stats in found if key in stats]
        for key in ("bytes_in_use", "peak_bytes_in_use")
    ]
    in_use, peak = (max(values, default=None) for values in numbers)
    return in_use, peak
