# SPDX-License-Identifier: Apache-2.0
"""What the programs themselves find of a run that was killed and went on."""

import dataclasses
import importlib.util
import pathlib

import pytest

from midjax.trackers import tools


@pytest.fixture
def run(tmp_path):
    return tools.Run(
        run_dir=str(tmp_path / "my_run"), config={"seed": 1}, first_step=0, newest_step=0
    )


def killed_and_resumed(tool, run):
    """Updates 1 to 6, then 4 to 8 from a checkpoint of update 3."""
    for first, newest, steps in ((0, 0, range(1, 7)), (3, 6, range(4, 9))):
        writer = tool.open(dataclasses.replace(run, first_step=first, newest_step=newest))
        for step in steps:
            writer.write(step, {"loss": 1.0 / step, "loss/prose": 2.0})
        writer.close()


def test_tensorboard_has_each_update_once(run):
    """Read with TensorFlow; as TensorBoard does, what lies after a restart's step is dropped."""
    pytest.importorskip("tensorboardX")
    tf = pytest.importorskip("tensorflow")
    killed_and_resumed(tools.TensorBoard(), run)
    shown, hidden = [], 0
    for file in sorted(tf.io.gfile.glob(f"{run.run_dir}/tensorboard/events*")):
        for event in tf.compat.v1.train.summary_iterator(file):
            if event.session_log.status == event.session_log.START:
                kept = [found for found in shown if found[0] < event.step]
                hidden += len(shown) - len(kept)
                shown = kept
            shown += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    assert hidden == 2 * 3
    wanted = [(step, {"loss": 1 / step, "loss/prose": 2.0}) for step in range(1, 9)]
    assert shown == [
        (step, name, pytest.approx(number)) for step, row in wanted for name, number in row.items()
    ]


def records(file):
    """The records of a LevelDB log, the format of wandb's files, after a header of 7 bytes."""
    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := -at % 32768) < 7 and room:  # what is left of a block of 32 KB is padding
            at += room
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_goes_on_with_its_run(run):
    """Offline: both processes write under one id, and no step twice."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    killed_and_resumed(tools.Wandb(project="p", mode="offline"), run)
    ids, steps = set(), []
    for file in sorted(pathlib.Path(run.run_dir).glob("wandb/offline-run-*/*.wandb")):
        ids.add(file.stem)
        for data in records(file):
            items = wandb_internal_pb2.Record.FromString(data).history.item
            found = {"/".join([i.key, *i.nested_key]).strip("/"): i.value_json for i in items}
            if found:
                steps.append((int(found["_step"]), float(found["loss"])))
    assert len(ids) == 1 and steps == [(step, 1.0 / step) for step in range(1, 9)]


def test_trackio_goes_on_with_its_run(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    killed_and_resumed(tools.Trackio(project="p"), run)
    (name,) = sqlite_storage.SQLiteStorage.get_runs("p")
    assert name.startswith("my_run-")
    rows = sqlite_storage.SQLiteStorage.get_logs("p", name)
    assert [(row["step"], row["loss"]) for row in rows] == [(s, 1.0 / s) for s in range(1, 9)]


def test_a_package_that_is_not_there_is_named_before_the_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tools.check(())
    with pytest.raises(ValueError, match=r"Trackio.*trackio is not.*midjax\[trackio\]"):
        tools.check((tools.Trackio(project="p"),))


def test_programs_that_know_local_files_only_write_beside_the_working_folder_for_a_bucket(run):
    assert run.folder == run.run_dir
    far = dataclasses.replace(run, run_dir="gs://bucket/runs/one")
    assert far.folder == "midjax-trackers/bucket/runs/one" and far.name == "one"
