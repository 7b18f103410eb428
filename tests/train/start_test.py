# SPDX-License-Identifier: Apache-2.0
"""Where a run starts from: the precedence, the named starts, and damaged checkpoints."""

import json
import pathlib

import pytest
import tiny_run as tiny

from midjax import checkpoint
from midjax.train import loop, prepare, start


def rows(run_dir):
    return [json.loads(line) for line in (pathlib.Path(run_dir) / "metrics.jsonl").open()]


def events(run_dir, name):
    lines = (pathlib.Path(run_dir) / "events.jsonl").open()
    return [e for e in map(json.loads, lines) if e["event"] == name]


def test_an_anneal_from_the_start_rate_to_zero(source):
    config = tiny.anneal(source)
    loop.run(config)
    lrs = [row["lr"] for row in rows(config.run_dir)]
    assert lrs == pytest.approx([1e-2 * (1 - s / 8) for s in range(8)], rel=1e-5)
    (event,) = events(config.run_dir, "start")
    assert event["kind"] == "anneal" and event["from_step"] == 8
    assert event["parts"] == {
        "params": "keep", "moments": "keep", "adam_count": "keep", "schedule": "reset",
        "step": "reset", "data": "reset", "rng": "reset",
    }  # fmt: skip
    assert event["lr_in_force"] == pytest.approx(1e-2) == event["first_lr"]
    parent, _ = checkpoint.read_facts(config.run_dir, 8)["manifest"]["lineage"]
    assert parent["run"] == str(source / "run") and parent["step"] == 8
    seal = checkpoint.read_facts(parent["run"], 8)["manifest"]["seal"]
    assert parent["hash"] == seal == event["from_hash"]


def test_missing_checkpoints_are_named(source):
    nowhere = tiny.begin("anneal", run=str(source / "nowhere"))
    with pytest.raises(
        start.StartError, match=r"holds no finished checkpoint.*Nothing was started"
    ):
        prepare.prepare(tiny.anneal(source, "x", start=nowhere))
    step = tiny.begin("anneal", run=str(source / "run"), step=5)
    with pytest.raises(start.StartError, match=r"step = 5, and .* holds the steps \[4, 8\]"):
        prepare.prepare(tiny.anneal(source, "x", start=step))
    older = tiny.begin("anneal", run=str(source / "run"), step=4)
    assert prepare.prepare(tiny.anneal(source, "x", start=older)).origin.step == 4


def test_own_checkpoint_wins_over_the_branch_source(source):
    config = tiny.anneal(source, "twice")
    loop.run(config)
    origin = prepare.prepare(config).origin
    assert origin.kind == "own" and origin.step == 8
    assert loop.run(config) == {}  # nothing left to do, and nothing done
    assert len(rows(config.run_dir)) == 8


def damage(run_dir, step):
    root = pathlib.Path(checkpoint.folder(run_dir)) / str(step) / "params" / "d"
    for file in root.iterdir():
        file.write_bytes(bytes(b ^ 0x55 for b in file.read_bytes()))


def test_a_damaged_newest_checkpoint_falls_back_and_is_kept_aside(source, tmp_path):
    tiny.write_tokens(tmp_path / "tokens")
    config = tiny.train(tmp_path)
    straight = loop.run(config)
    damage(config.run_dir, 8)
    again = loop.run(config)
    assert {k: v for k, v in again.items() if "perf" not in k} == {
        k: v for k, v in straight.items() if "perf" not in k
    }
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["4", "8", "8.damaged-0"]
    assert events(config.run_dir, "rows_redone")[0]["rows"] == 4
    assert [row["step"] for row in rows(config.run_dir)] == list(range(1, 9))


def test_a_damaged_manifest_falls_back_too(source, tmp_path, capsys):
    tiny.write_tokens(tmp_path / "tokens")
    config = tiny.train(tmp_path)
    straight = loop.run(config)
    file = pathlib.Path(checkpoint.folder(config.run_dir)) / "8" / "manifest" / "metadata"
    file.write_text(file.read_text()[:-20])
    assert loop.run(config)["loss"] == straight["loss"]
    assert "checkpoint 8 is damaged, moved to" in capsys.readouterr().out


def test_another_runs_damaged_checkpoint_is_left_where_it_is(tmp_path):
    tiny.write_tokens(tmp_path / "tokens")
    loop.run(tiny.train(tmp_path))
    damage(str(tmp_path / "run"), 8)
    with pytest.raises(checkpoint.DamagedError, match="use an earlier step|cannot be restored"):
        loop.run(tiny.anneal(tmp_path))
    assert checkpoint.steps(str(tmp_path / "run")) == [4, 8]
    earlier = tiny.begin("anneal", run=str(tmp_path / "run"), step=4)
    assert loop.begin(tiny.anneal(tmp_path, start=earlier)).prepared.origin.step == 4


def test_a_bug_or_a_full_memory_sets_nothing_aside(tmp_path, monkeypatch):
    tiny.write_tokens(tmp_path / "tokens")
    config = tiny.train(tmp_path)
    loop.run(config)
    for error in (MemoryError("no room"), PermissionError("no"), checkpoint.CheckpointError("net")):

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr(checkpoint, "restore", fails)
        with pytest.raises(type(error)):
            loop.run(config)
    assert checkpoint.steps(config.run_dir) == [4, 8]


def test_a_run_whose_only_checkpoint_is_damaged_does_not_start_over(tmp_path):
    tiny.write_tokens(tmp_path / "tokens")
    config = tiny.train(tmp_path, steps=4)
    loop.run(config)
    damage(config.run_dir, 4)
    with pytest.raises(start.UnusableError, match="Going on would mean starting over") as told:
        loop.run(config)
    assert told.value.exit_code == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "anneal"}, "every other kind exactly one"),
        ({"kind": "fresh", "run": "x"}, "'fresh' takes neither"),
        ({"kind": "weights", "run": "x", "huggingface": "y"}, "exactly one"),
        ({"kind": "anneal", "huggingface": "y"}, "holds parameters only"),
        ({"kind": "anneal", "run": "x", "reset": ("params",)}, "would be a fresh start"),
        ({"kind": "anneal", "run": "x", "reset": ("adam_count",)}, "only one of"),
        ({"kind": "anneal", "run": "x", "allow_lr_jump": " "}, "is the reason for the jump"),
        ({"kind": "anneal", "run": "x", "keep": ("data",), "reset": ("data",)}, "both name"),
    ],
)
def test_bad_starts(change, message):
    with pytest.raises(ValueError, match=message):
        tiny.begin(**change)
