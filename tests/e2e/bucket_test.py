# SPDX-License-Identifier: Apache-2.0
"""A run in a bucket: it trains, saves, is preempted and resumes, as on a disk, bit for bit.

TensorStore and the run's own files go to one server that speaks Google's interface, see
`gcs_bucket`; the files through gcsfs where that is installed.
"""

import json

import gcs_bucket
import pytest
import tiny_run as tiny

from midjax import checkpoint, config, log
from midjax.train import loop, preemption, sessions

RUN, OBJECTS = "gs://bucket/runs/one", "runs/one"


@pytest.fixture
def bucket(monkeypatch):
    return gcs_bucket.install(monkeypatch)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bucket")
    tiny.write_tokens(folder / "tokens")
    return folder


def recipe(tokens, run_dir, *, last=9):
    keep = checkpoint.Keep(every_steps=3, last=last, forever_every_steps=None)
    root = tiny.train(tokens, steps=6, checkpoint=keep, model=tiny.model(layers=1))
    return tiny.replace(root, run_dir=run_dir)


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def rows(text):
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in lines(text)]


def digests(run_dir, step):
    return checkpoint.read_facts(run_dir, step)["manifest"]["digests"]


def preempted(root, monkeypatch, step):
    with monkeypatch.context() as patch:
        patch.setattr(preemption.Stop, "reached", lambda self, at: at >= step)
        with pytest.raises(preemption.PreemptedError, match=f"step {step}, which is saved"):
            loop.run(root)


def test_preempted_and_resumed_it_is_the_run_on_a_disk(tokens, bucket, monkeypatch):
    local, root = recipe(tokens, str(tokens / "local")), recipe(tokens, RUN)
    loop.run(local)
    config.save(root, RUN)
    preempted(root, monkeypatch, 4)
    assert checkpoint.steps(RUN) == [3, 4] and config.guard_resume(root, RUN, ()) == []
    assert loop.run(root)["step"] == 6
    assert checkpoint.steps(RUN) == [3, 4, 6]

    for step in (3, 6):
        assert digests(RUN, step) == digests(local.run_dir, step)
    wanted = rows((tokens / "local" / "metrics.jsonl").read_text())
    assert [row["step"] for row in wanted] == list(range(1, 7))
    assert rows(bucket.text(f"{OBJECTS}/metrics.jsonl")) == wanted
    events = lines(bucket.text(f"{OBJECTS}/events.jsonl"))
    told = [(e["event"], e["step"]) for e in events if e["event"] in ("checkpoint", "preempted")]
    assert told == [("checkpoint", 3), ("checkpoint", 4), ("preempted", 4), ("checkpoint", 6)]
    assert events[-1]["event"] == "end" and len(sessions.read(RUN)) == 2
    assert json.loads(bucket.text(f"{OBJECTS}/config.json"))["config"]["run_dir"] == RUN


def test_a_killed_run_has_the_rows_behind_its_checkpoint(tokens, bucket, monkeypatch):
    """A kill uploads nothing more. It also tears a save; and old checkpoints go as on a disk."""
    root = recipe(tokens, RUN, last=2)
    monkeypatch.setattr(log.Journal, "close", lambda self: None)
    preempted(root, monkeypatch, 4)
    monkeypatch.undo()
    gcs_bucket.reinstall(monkeypatch)
    assert [row["step"] for row in rows(bucket.text(f"{OBJECTS}/metrics.jsonl"))] == [1, 2, 3, 4]
    del bucket.stored[f"{OBJECTS}/checkpoints/4/commit_success.txt"]
    loop.run(tiny.replace(root, checkpoint=tiny.replace(root.checkpoint, every_steps=1)))
    assert [row["step"] for row in rows(bucket.text(f"{OBJECTS}/metrics.jsonl"))] == [*range(1, 7)]
    events = lines(bucket.text(f"{OBJECTS}/events.jsonl"))
    assert [e["rows"] for e in events if e["event"] == "rows_redone"] == [1]
    assert {n.split("/")[3] for n in bucket.names(f"{OBJECTS}/checkpoints/")} == {"5", "6"}
    assert checkpoint.steps(RUN) == [5, 6]


def test_a_damaged_checkpoint_is_moved_and_the_run_goes_on_from_the_one_before(tokens, bucket):
    root = recipe(tokens, RUN)
    loop.run(root)
    whole = digests(RUN, 6)
    before = bucket.names(f"{OBJECTS}/checkpoints/6/")
    for name in (n for n in before if "/params/ocdbt.process_0/d/" in n):
        generation, data = bucket.stored[name]
        bucket.stored[name] = (generation, bytes(len(data)))
    loop.run(root)
    assert checkpoint.steps(RUN) == [3, 6] and digests(RUN, 6) == whole
    moved = bucket.names(f"{OBJECTS}/checkpoints/6.damaged-0/")
    assert [name.replace("6.damaged-0/", "6/") for name in moved] == before
