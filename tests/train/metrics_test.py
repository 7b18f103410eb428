# SPDX-License-Identifier: Apache-2.0
"""Rows of metrics against the batches that they describe."""

import json

import jax
import numpy as np
import pytest
import tiny_run as tiny

from midjax import log
from midjax.batches import loader
from midjax.trackers import sink, tools
from midjax.train import metrics, skips, speed, start, timeline

STAGES = ((0, {"prose": 0.6, "code": 0.4}), (10 * tiny.T, {"prose": 0.1, "code": 0.9}))


@pytest.fixture
def written(tmp_path):
    """Rows, events and batches of five updates; device metrics are made from the batches."""
    tiny.write_tokens(tmp_path / "tokens")
    data = tiny.data(tmp_path / "tokens", tiny.mixture(*STAGES))
    made = loader.Loader(data, loader.Opened(data), total_rows=5 * tiny.B)
    journal = log.Journal(str(tmp_path / "run"), step=0, is_writer=True)
    tracked = tools.Run(run_dir=str(tmp_path), config={}, first_step=0, newest_step=0)
    sent = sink.Trackers((), tracked, journal)
    recorder = metrics.Recorder(
        data,
        made.order,
        journal,
        timeline.of(data, 5 * tiny.B * tiny.T, start.FRESH),
        trackers=sent,
        speed=speed.Speed(tiny.model(), jax.local_devices(), 1e12, journal),
        first_row=0,
        watch=skips.Watch(made, journal, lambda step: ((step - 1) * tiny.B, step * tiny.B), most=2),
        layers_of={"wq": (0, 1)},
        layer_norms_every_steps=2,
        restarted=False,
    )
    batches = [batch for batch, _ in made.batches(next_row=0, prefetch=0)]
    for step, batch in enumerate(batches, 1):
        weight = np.array([(batch.weights * (batch.source == k)).sum() for k in range(2)])
        recorder.put(
            step,
            {
                "loss": 1.5, "z_loss": 0.0, "grad_norm": 1.0, "update_norm": 1.0,
                "param_norm": 1.0, "lr": 0.1, "skipped": int(step == 2),
                "nll_by_source": 2.0 * weight, "weight_by_source": weight,
                "loss_by_row": np.ones(tiny.B), "loss_limit": 3.0 if step > 1 else np.inf,
                "layer_norms": {"grad": {"embed": np.float32(step), "layers/wq": np.array([3, 4])}},
            },
            batch,
        )  # fmt: skip
    recorder.flush()
    assert not recorder.device_is_busy()
    read = [
        [json.loads(line) for line in (tmp_path / "run" / f"{name}.jsonl").open()]
        for name in ("metrics", "events", "layer_norms")
    ]
    return made, batches, *read, recorder


def test_counts_by_source_are_those_of_the_batches(written):
    made, batches, rows, *_ = written
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    drawn = np.zeros(2, int)
    for row, batch in zip(rows, batches, strict=True):
        drawn += np.bincount(batch.source[:, 0], minlength=2)
        for k, name in enumerate(("code", "prose")):
            assert row[f"rows/{name}"] == drawn[k]
            assert row[f"tokens/{name}"] == (batch.weights * (batch.source == k)).sum()
            assert row[f"epochs/{name}"] == drawn[k] / made.order.source_rows[k]
            assert row[f"loss/{name}"] == (2.0 if row[f"tokens/{name}"] else None)
        assert row["perf/padding"] == (batch.segments == 0).mean()
        assert row["tokens"] == row["step"] * tiny.T * tiny.B


def test_shares_asked_and_stages_are_said_where_they_change(written):
    _, _, rows, events, *_ = written
    assert [row["asked/code"] for row in rows] == pytest.approx([0.4, 0.4, 0.9, 0.9, 0.9])
    stages = [(e["name"], e["step"]) for e in events if e["event"] == "stage"]
    assert stages == [("s0", 1), ("s1", 3)]


def test_skipped_updates_are_events(written):
    _, _, rows, events, *_ = written
    assert [row["skipped"] for row in rows] == [0, 1, 0, 0, 0]
    assert [e["step"] for e in events if e["event"] == "skipped"] == [2]
    assert [row["loss_limit"] for row in rows] == [None, 3.0, 3.0, 3.0, 3.0]


def test_norms_by_layer_are_written_when_they_are_due(written):
    assert written[-2] == [
        {"step": step, "grad_norm/embed": step, "grad_norm/layers/0/wq": 3,
         "grad_norm/layers/1/wq": 4}
        for step in (2, 4)
    ]  # fmt: skip


def test_the_device_is_busy_until_the_newest_update_is_done(written):
    *_, recorder = written

    class Loss:
        ready = False

        def is_ready(self):
            return self.ready

    recorder.put(6, {"loss": Loss()}, written[1][0])
    assert recorder.device_is_busy()
    Loss.ready = True
    assert not recorder.device_is_busy()
