# SPDX-License-Identifier: Apache-2.0
"""Speed, utilisation and memory of updates whose duration is given."""

import json
import resource

import jax
import numpy as np
import pytest
import tiny_run as tiny

from midjax import log
from midjax.batches import batch as batch_lib
from midjax.model import flops
from midjax.train import speed


class Device:
    """What `Speed` asks of a device."""

    process_index = 0

    def __init__(self, kind, stats=None):
        self.device_kind, self._stats = kind, stats

    def memory_stats(self):
        return self._stats


def batch():
    """Two rows of 8: one of two documents, one of one document and 5 places of padding."""
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0, 0]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 0, 0, 0, 0, 0]], np.int32)
    fields = dict.fromkeys(batch_lib.FIELDS, segments) | {"positions": positions}
    fields["weights"] = np.ones((2, 8), np.float32)
    return batch_lib.Batch(**fields)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Row of an update that took 0.5 s on some devices, and the events."""
    now = iter([10.0, 10.5])
    monkeypatch.setattr("time.monotonic", lambda: next(now))

    def measure(devices, peak=None):
        journal = log.Journal(str(tmp_path), step=0, is_writer=True)
        made = speed.Speed(tiny.model(), devices, peak, journal)
        row = made.row(made.work(batch()))
        events = tmp_path / "events.jsonl"
        return row, [json.loads(x) for x in events.open()] if events.exists() else []

    return measure


def test_padding_is_no_work(measured):
    row, events = measured([Device("TPU v5p"), Device("TPU v5p")])
    assert row["perf/step_seconds"] == 0.5 and not events
    assert row["perf/tokens_per_second"] == 11 / 0.5
    assert row["perf/padding"] == pytest.approx(5 / 16)
    model = tiny.model()
    worth = 6 * 11 * flops.matrix_entries(model)
    worth += 12 * model.heads * model.head_dim * model.layers * (6 + 15 + 6)
    assert row["perf/model_flops"] == worth
    assert row["perf/mfu"] == pytest.approx(worth / 0.5 / (2 * 459e12))
    assert row["perf/device_bytes"] is None and row["perf/device_peak_bytes"] is None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 1e7 < row["perf/host_peak_bytes"] <= most


def test_an_unknown_device_has_no_utilisation_and_an_event_says_so(measured):
    row, events = measured([Device("abacus")])
    assert row["perf/mfu"] is None
    assert [(e["event"], e["device_kind"]) for e in events] == [("mfu_unknown", "abacus")]


def test_the_peak_may_be_given(measured):
    row, events = measured([Device("abacus")], peak=1e9)
    assert row["perf/mfu"] == pytest.approx(row["perf/model_flops"] / 0.5 / 1e9) and not events


def test_memory_is_that_of_the_fullest_device(measured):
    stats = [
        {"bytes_in_use": 5, "peak_bytes_in_use": 9},
        {"bytes_in_use": 7, "peak_bytes_in_use": 8},
    ]
    row, _ = measured([Device("TPU v4", s) for s in stats])
    assert (row["perf/device_bytes"], row["perf/device_peak_bytes"]) == (7, 9)


def test_this_machine_s_devices_are_asked_in_the_same_way():
    in_use, peak = speed.device_bytes(jax.local_devices())
    assert (in_use is None) == (peak is None)
