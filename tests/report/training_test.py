# SPDX-License-Identifier: Apache-2.0
"""Stages, totals and lineage from rows whose sums are known."""

import pytest

from midjax.report import records, training

SOURCES = ("code", "prose")


def row(step, asked, seen, *, skipped=0):
    found = {"step": step, "tokens": 100 * step, "lr": 0.1 * step, "skipped": skipped}
    for name, share, tokens in zip(SOURCES, asked, seen, strict=True):
        found |= {
            f"tokens/{name}": tokens,
            f"asked/{name}": share,
            f"loss/{name}": 2.0 if tokens else None,
            f"rows/{name}": step,
            f"epochs/{name}": step / 8,
        }
    return found


def make(rows, events, label="anneal", folder="runs/anneal"):
    return records.Run(label=label, folder=folder, metrics=rows, events=events, config="")


BROAD, SHARP = (0.25, 0.75), (0.5, 0.5)
ROWS = [
    row(1, BROAD, (20, 60)),
    row(2, BROAD, (20, 80)),
    row(3, SHARP, (50, 40)),
    row(4, SHARP, (30, 0), skipped=1),
]
EVENTS = [
    {"event": "stage", "name": "broad", "step": 1, "weights": {"code": 1, "prose": 3}},
    {"event": "stage", "name": "sharp", "step": 3, "weights": {"code": 1, "prose": 1}},
]


@pytest.mark.parametrize("resumed", [False, True])
def test_stages_asked_and_seen(resumed):
    # A resumed run says the stage it is in again.
    extra = [{"event": "stage", "name": "sharp", "step": 4, "weights": {}}] if resumed else []
    broad, sharp = training.stages(make(ROWS, EVENTS + extra))
    assert (broad.name, broad.first_step, broad.last_step) == ("broad", 1, 2)
    assert (broad.first_token, broad.last_token) == (0, 200)
    assert broad.asked == {"code": 0.25, "prose": 0.75} and broad.tokens == {
        "code": 40,
        "prose": 140,
    }
    assert broad.seen == {"code": 40 / 180, "prose": 140 / 180}
    assert (sharp.name, sharp.first_step, sharp.last_step) == ("sharp", 3, 4)
    assert (sharp.first_token, sharp.last_token) == (200, 400)
    assert sharp.seen == {"code": 80 / 120, "prose": 40 / 120}


def test_a_stage_that_another_mixture_did_away_with_is_no_stage():
    """Said by a run that was killed; it went on from step 2 with other weights and no `sharp`."""
    changed = [
        {"event": "mixture_changed", "step": 2},
        {"event": "stage", "name": "broad (changed)", "step": 4, "weights": {}},
    ]
    found = training.stages(make(ROWS, EVENTS + changed))
    assert [(s.name, s.first_step) for s in found] == [("broad", 1), ("broad (changed)", 4)]


def test_without_stage_events_a_change_of_weights_makes_one():
    found = training.stages(make(ROWS, []))
    assert [(s.first_step, s.last_step) for s in found] == [(1, 2), (3, 4)]
    assert found[0].name != found[1].name


def test_totals_and_skipped():
    run = make(ROWS, EVENTS)
    code, prose = training.totals(run)
    assert (code.source, code.tokens, code.rows, code.epochs) == ("code", 120, 4, 0.5)
    assert (prose.source, prose.tokens) == ("prose", 180)
    assert training.skipped(run) == [("updates whose loss or gradient was not finite", [4])]
    many = [row(s, BROAD, (1, 1), skipped=1 if s < 21 else 3) for s in range(1, 24)]
    many[4] |= {"skipped": 2, "tokens/code": None}
    run = make(many, [])
    assert training.overview(run)["skipped"] == "23"
    assert [line["details"] for line in training.event_rows(run)] == [
        "updates whose loss or gradient was not finite: 19 (step 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, "
        "12, 13, ...)",
        "updates that were spikes: 1 (step 5)",
        "steps left out after a rollback: 3 (step 21, 22, 23)",
    ]


def start(kind, source=None, step=None):
    return {"event": "start", "kind": kind, "from": source, "from_step": step}


def test_runs_are_laid_behind_the_run_that_they_left():
    pretrain = make(ROWS, [start("fresh")], "pretrain", "runs/pretrain")
    anneal = make(
        ROWS, [start("anneal", "runs/pretrain", 3), start("own", "runs/a", 2)], "a", "r/a"
    )
    extend = make(ROWS, [start("weights", "r/a/checkpoints/4", 4)], "e", "r/e")
    kept = make([row(5, BROAD, (1, 1))], [start("resume", "runs/pretrain", 4)], "k", "r/k")
    other = make(ROWS, [start("anneal", "elsewhere/run", 9)], "o", "r/o")
    # In any order; a kept step counts on, so that run needs no shift.
    found = training.offsets([extend, kept, anneal, other, pretrain])
    assert found == pytest.approx({"pretrain": 0, "a": 300, "e": 700, "k": 0, "o": 0})


def test_a_run_that_names_itself_is_laid_at_zero():
    assert training.offsets([make(ROWS, [start("anneal", "runs/anneal", 2)])]) == {"anneal": 0.0}


def test_overview():
    events = [start("anneal", "runs/pretrain", 3), start("own", "runs/anneal", 2)]
    found = training.overview(make(ROWS, events))
    assert found["start"] == "anneal from runs/pretrain, step 3"
    assert (found["updates"], found["tokens"], found["skipped"]) == ("4", "400", "1")
    assert found["resumed"] == "1" and found["lr"] == "0.1 → 0.4 → 0.4" and found["speed"] == "–"


def test_overview_of_speed_memory_and_time():
    rows = [
        row(step, SHARP, (1, 1))
        | {"perf/tokens_per_second": speed, "perf/mfu": speed / 1e4, "perf/host_peak_bytes": 2e9}
        for step, speed in ((1, 100.0), (2, 4000.0), (3, 5000.0))
    ]
    told = [
        {"event": "goodput", "run_seconds": {"step": s, "start": 30.0, "eval": 0.0}}
        for s in (9, 90)
    ]
    found = training.overview(make(rows, told))
    assert (found["speed"], found["mfu"]) == ("4K tokens/s", "40.0%")
    assert (found["memory"], found["goodput"]) == ("2 GB (host)", "75% of 2m00s")
    for each, peak in zip(rows, (3e9, 4e9, None), strict=True):
        each["perf/device_peak_bytes"] = peak
    assert training.overview(make(rows, []))["memory"] == "4 GB"
    found = training.overview(make(ROWS, [{"event": "goodput", "run_seconds": None}]))
    assert (found["mfu"], found["memory"], found["goodput"]) == ("–", "–", "–")


def test_events_for_people():
    events = [
        start("anneal", "runs/pretrain", 3) | {"time": 100.0, "lr_in_force": 0.003}
        | {"first_lr": 0.002, "parts": {"params": "keep", "schedule": "reset"}},
        *EVENTS,
        {"event": "checkpoint", "step": 2},
        {"event": "checkpoint", "step": 4},
        start("own", "runs/anneal", 4) | {"time": 190.0},
        {"event": "rows_redone", "step": 4, "rows": 2},
    ]  # fmt: skip
    found = training.event_rows(make(ROWS, events))
    assert [e["event"] for e in found] == [
        "start", "stage", "stage", "resume", "rows_redone", "checkpoints", "skipped"
    ]  # fmt: skip
    assert found[0]["details"] == (
        "anneal from runs/pretrain, step 3; rate at the source 0.003; first rate 0.002; "
        "keep: params; reset: schedule"
    )
    assert found[3]["after"] == "1m30s" and found[4]["details"] == "rows 2"
    assert found[5]["details"] == "2 written, the newest at step 4"
