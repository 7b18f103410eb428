# SPDX-License-Identifier: Apache-2.0
"""The run as a whole: what it counts, what it leaves, and where it stops."""

import itertools
import json
import pathlib
import threading

import faults
import jax
import numpy as np
import pytest
import tiny_run as tiny

from midjax import checkpoint, lineage
from midjax.mixture import plan as plan_lib
from midjax.model import flops
from midjax.trackers import sink, tools
from midjax.train import goodput, guard, loop, prepare, rollback


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    tiny.write_tokens(folder / "tokens")
    loop.run(tiny.train(folder))
    return folder


def read(folder, name):
    return [json.loads(line) for line in (folder / "run" / f"{name}.jsonl").open()]


def test_a_run_learns_what_its_data_repeats(folder):
    losses = [row["loss"] for row in read(folder, "metrics")]
    assert losses[0] == pytest.approx(np.log(tiny.VOCAB), rel=0.1) and losses[-1] < losses[0] - 0.1


def test_every_token_is_accounted_for(folder):
    rows, prepared = read(folder, "metrics"), prepare.prepare(tiny.train(folder, "other"))
    plan = {row.source: row.rows for row in plan_lib.rows(prepared.loader.order)}
    assert {name: rows[-1][f"rows/{name}"] for name in plan} == plan
    data = checkpoint.read_facts(str(folder / "run"), 8)["data"]
    assert data["drawn_rows"] == plan and data["next_row"] == sum(plan.values()) == 8 * tiny.B
    start_event = next(e for e in read(folder, "events") if e["event"] == "start")
    assert {p["source"]: p["rows"] for p in start_event["plan"]} == plan
    for name, packing in start_event["packing"].items():
        pairs = int((prepared.opened.plans[name].length).sum())
        assert packing["rows"] * tiny.T == pairs + packing["padding"] and not packing["dropped"]
    for row in rows:
        assert sum(row[f"tokens/{name}"] for name in plan) <= tiny.T * tiny.B
        assert row["tokens"] == row["step"] * tiny.T * tiny.B


def test_the_checkpoint_knows_the_rate_in_force(folder):
    """After the last of 8 updates the stable rate is still in force: it is not the final rate."""
    rate = checkpoint.read_facts(str(folder / "run"), 8)["manifest"]["lr"]
    assert rate["last"] == rate["next"] == pytest.approx(1e-2)
    annealed = tiny.anneal(folder, "annealed")
    loop.run(annealed)
    rate = checkpoint.read_facts(annealed.run_dir, 8)["manifest"]["lr"]
    assert rate["next"] == 0 and rate["last"] == pytest.approx(1e-2 / 8)
    stages = lineage.of(annealed.run_dir, 8)
    assert [(stage["run"], stage["step"]) for stage in stages] == [
        (str(folder / "run"), 8), (annealed.run_dir, 8)
    ]  # fmt: skip


def test_a_source_too_small_for_its_cap_is_refused_before_the_run(folder):
    data = tiny.data(folder / "tokens", tiny.mixture(cap=0.2))
    with pytest.raises(ValueError, match=r"needs more epochs than its caps allow: .*prose: "):
        loop.run(tiny.train(folder, "capped", data=data))
    assert not (folder / "capped").exists()


@pytest.fixture(scope="module")
def bad_batch(folder):
    """A run whose third batch has a row that is not finite; norms by layer are asked for."""
    with pytest.MonkeyPatch.context() as patch:
        faults.corrupt(patch, {3: (5, np.nan)})
        config = tiny.train(folder, "bad batch", steps=5, layer_norms_every_steps=2)
        loop.run(config)
    return config


def read_of(config, name):
    return [json.loads(line) for line in (pathlib.Path(config.run_dir) / f"{name}.jsonl").open()]


def test_one_bad_batch_costs_one_update_and_is_named(folder, bad_batch):
    assert [row["skipped"] for row in read_of(bad_batch, "metrics")] == [0, 0, 1, 0, 0]
    facts = checkpoint.read_facts(bad_batch.run_dir, 5)["manifest"]
    assert facts["adam_count"] == 4 and facts["schedule_count"] == 5
    (event,) = (e for e in read_of(bad_batch, "events") if e["event"] == "skipped")
    (named,) = event["rows"]
    loader = prepare.prepare(tiny.train(folder, "other")).loader
    *_, (_, row_ids) = itertools.islice(loader.batches(next_row=0, prefetch=0), 3)
    source, row = row_ids[5].tolist()
    assert event["step"] == 3 and event["why"] == "loss or gradient not finite"
    assert (named["source"], named["row"], named["loss"]) == (loader.names[source], row, None)
    assert named["document"].startswith(named["source"])


def test_norms_by_layer_add_up_to_the_norms_of_the_whole(folder, bad_batch):
    rows, norms = read_of(bad_batch, "metrics"), read_of(bad_batch, "layer_norms")
    assert [row["step"] for row in norms] == [2, 4]
    for row in norms:
        for kind in ("grad", "update", "param"):
            squares = [x**2 for name, x in row.items() if name.startswith(f"{kind}_norm/")]
            whole = rows[row["step"] - 1][f"{kind}_norm"]
            assert sum(squares) == pytest.approx(whole**2, rel=1e-5)
    # To ask for them changes nothing.
    assert [row["loss"] for row in rows[:2]] == [r["loss"] for r in read(folder, "metrics")[:2]]


def test_ten_bad_batches_in_a_row_end_the_run(folder, monkeypatch):
    """Nine do not. No checkpoint is saved among them, which would push out the good ones."""
    faults.corrupt(monkeypatch, dict.fromkeys((*range(2, 11), *range(13, 23)), (0, np.inf)))
    keep = checkpoint.Keep(every_steps=4, last=2, forever_every_steps=None)
    config = tiny.train(folder, "ten bad", steps=30, max_consecutive_skips=10, checkpoint=keep)
    with pytest.raises(rollback.DivergedError, match=r"Steps 13 to 22: 10 .* step 12, .*/12\. Ro"):
        loop.run(config)
    assert checkpoint.steps(config.run_dir) == [11, 12]
    with pytest.raises(rollback.DivergedError, match=r"Steps 13 to 22: 10 .* step 12, .*/12\. Ro"):
        loop.run(config)
    *_, last = read_of(config, "events")
    assert (last["event"], last["final"], last["skipped_updates"]) == ("goodput", True, 10)


def test_spikes_are_skipped_and_a_resumed_run_knows_the_history(folder, monkeypatch):
    """Weights below 0 count as none, but make their sum negative: nothing is divided by tokens."""
    faults.corrupt(monkeypatch, {5: (0, np.nan), 6: (1, -300.0), 10: (1, -300.0)})
    rule = guard.Spikes(window_steps=6, deviations=20.0, least_history_steps=3)
    config = tiny.train(folder, "spikes", steps=12, spikes=rule)
    loop.run(config)
    arrays = jax.device_get(loop.begin(config).state)
    rows = read_of(config, "metrics")
    assert [row["skipped"] for row in rows] == [0, 0, 0, 0, 1, 2, 0, 0, 0, 2, 0, 0]
    taken = [row["grad_norm"] for row in rows if not row["skipped"]]
    for row in rows[3:]:
        before = taken[: sum(not r["skipped"] for r in rows[: row["step"] - 1])][-6:]
        assert row["grad_norm_median"] == pytest.approx(np.median(before), rel=1e-6)
    for step in (8, 12):
        checkpoint.set_aside(config.run_dir, step)
    loop.run(config)  # from step 4, when the history was just long enough
    again = jax.device_get(loop.begin(config).state)
    assert int(again.guard.count) == 9
    for x, y in zip(jax.tree.leaves(arrays), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_new_stage_begins_a_new_history(folder):
    stages = (0, {"prose": 0.5, "code": 0.5}), (3 * tiny.T * tiny.B, {"prose": 0.1, "code": 0.9})
    data = tiny.data(folder / "tokens", tiny.mixture(*stages))
    rule = guard.Spikes(window_steps=9, deviations=99.0, least_history_steps=2)
    config = tiny.train(folder, "new stage", steps=7, data=data, spikes=rule)
    loop.run(config)
    rows = read_of(config, "metrics")
    known = [row["loss_limit"] is not None for row in rows]
    assert known == [False, False, True, False, False, True, True]
    assert int(loop.begin(config).state.guard.count) == 4


def test_processes_that_did_not_meet_are_refused(folder, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="JAX sees 2 processes, and 1 met"):
        loop.run(tiny.train(folder, "x"))


def test_a_restart_does_not_repeat_what_was_said(folder):
    stages = (0, {"prose": 0.5, "code": 0.5}), (2 * tiny.T * tiny.B, {"prose": 0.1, "code": 0.9})
    data = tiny.data(folder / "tokens", tiny.mixture(*stages))
    config = tiny.train(folder, "stages", data=data)
    loop.run(config)
    checkpoint.set_aside(config.run_dir, 8)
    loop.run(config)
    events = [json.loads(line) for line in (folder / "stages" / "events.jsonl").open()]
    assert [(e["name"], e["step"]) for e in events if e["event"] == "stage"] == [
        ("s0", 1), ("s1", 3)
    ]  # fmt: skip


def test_a_run_says_where_its_time_went_and_how_well_it_used_the_devices(folder):
    told = [e for e in read(folder, "events") if e["event"] == "goodput"]
    assert [(e["step"], e["final"]) for e in told] == [
        (0, False),
        (4, False),
        (8, False),
        (8, True),
    ]
    sums = [sum(e["run_seconds"].values()) for e in told]
    assert sums == sorted(sums) and set(told[0]["run_seconds"]) == {*goodput.BUCKETS, "down"}
    assert told[0]["run_seconds"]["step"] == 0 < told[-1]["run_seconds"]["compile"]
    rows = read(folder, "metrics")
    # A CPU has no known peak, and an event says so.
    assert {row["perf/mfu"] for row in rows} == {None}
    assert [e["event"] for e in read(folder, "events")].count("mfu_unknown") == 1
    least = 6 * flops.matrix_entries(tiny.model())
    for row in rows:
        tokens = tiny.T * tiny.B * (1 - row["perf/padding"])
        assert row["perf/tokens_per_second"] * row["perf/step_seconds"] == pytest.approx(tokens)
        assert least * tokens < row["perf/model_flops"] < 2 * least * tokens


def test_trackers_of_a_recipe_get_every_row(folder, monkeypatch):
    """One takes them, one hangs, one cannot be opened: the run is the same."""
    release, taken = threading.Event(), []

    class Taking:
        def open(self, run):
            assert run.config["seed"] == 0 and (run.first_step, run.newest_step) == (0, 0)
            return self

        def write(self, step, numbers):
            taken.append((step, numbers))

        def close(self):
            pass

    class Hanging(Taking):
        def write(self, step, numbers):
            release.wait()

    class Failing(Taking):
        def open(self, run):
            raise OSError("no network")

    monkeypatch.setattr(tools, "check", lambda trackers: None)
    monkeypatch.setattr(sink, "CLOSE_SECONDS", 1.0)
    config = tiny.train(folder, "tracked", steps=4, trackers=(Hanging(), Failing(), Taking()))
    last = loop.run(config)
    release.set()
    assert [step for step, _ in taken] == [1, 2, 3, 4] and taken[-1][1]["loss"] == last["loss"]
    events = [json.loads(x) for x in (folder / "tracked" / "events.jsonl").open()]
    ends = {e["tracker"]: e for e in events if e["event"] == "tracker_end"}
    assert ends["Hanging"]["left"] == ends["Failing"]["dropped"] == ends["Taking"]["written"] == 4
    with pytest.raises(ValueError, match="device_flops_per_second must be positive"):
        tiny.train(folder, device_flops_per_second=0.0)


def test_nothing_is_compiled_after_the_second_step(folder):
    """Neither by a step nor by a checkpoint: a compilation in the midst of a run is a stall."""
    seen = []

    def compiled(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            rows = folder / "counted" / "metrics.jsonl"
            seen.append(rows.read_text().count("\n") if rows.exists() else 0)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        loop.run(tiny.train(folder, "counted"))
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
    assert checkpoint.steps(str(folder / "counted")) == [4, 8]
    # Step 2 is dispatched, and its row not written, when there is one row.
    assert seen and max(seen) <= 1
