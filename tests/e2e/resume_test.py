# SPDX-License-Identifier: Apache-2.0
"""20 updates straight = 10 + kill -9 + resume for 10 more, bit for bit, in real processes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tiny_run as tiny

from midjax import checkpoint, config
from midjax.batches import starts

# Runs the ordinary verb, notes the row ids of every batch, and kills itself with SIGKILL when the
# metrics of a given step were written and the checkpoint before it is whole.
DRIVER = """
import json, os, signal, sys
import midjax.__main__ as cli
from midjax import checkpoint, log
from midjax.batches import loader

gin_file, ids_file, run_dir, kill_after = *sys.argv[1:4], int(sys.argv[4])
batches, metrics = loader.Loader.batches, log.Journal.metrics

def noted(self, *, first_step, **kwargs):
    for at, (batch, ids) in enumerate(batches(self, first_step=first_step, **kwargs)):
        with open(ids_file, "a") as file:
            file.write(json.dumps({"step": first_step + at, "ids": ids.tolist()}) + "\\n")
        yield batch, ids

def counted(self, row):
    metrics(self, row)
    if row["step"] == kill_after:
        while checkpoint.steps(run_dir) != [10]:
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGKILL)

loader.Loader.batches, log.Journal.metrics = noted, counted
sys.exit(cli.main(["train", "--gin_file=" + gin_file]))
"""


def recipe(folder: pathlib.Path, name: str):
    """A recipe with two stages, the second from row 77 on: inside a block and inside a batch.

    Its batches grow before the kill and after it: 6 updates of 4 rows, 9 of 8, 5 of 12.
    """
    tokens = tiny.T * 6 * 4, tiny.T * (6 * 4 + 9 * 8)
    ramp = starts.Ramp(rows=(4, 8, 12), start_tokens=(0, *tokens))
    mix = tiny.mixture(
        (0, {"prose": 0.6, "code": 0.3, "maths": 0.1}),
        (77 * tiny.T, {"prose": 0.2, "code": 0.3, "maths": 0.5}),
    )
    return tiny.train(
        folder,
        name,
        train_tokens=tokens[1] + tiny.T * 5 * 12,
        batch_lr_rule="sqrt",
        data=tiny.data(folder / "tokens", mix, batch_rows=ramp),
        schedule=tiny.wsd(decay_steps=12, decay_shape="one_minus_sqrt"),
        checkpoint=checkpoint.Keep(every_steps=10, last=3, forever_every_steps=None),
        microbatches=2,
    )


def run(folder: pathlib.Path, name: str, kill_after: int = -1) -> subprocess.CompletedProcess:
    root = recipe(folder, name)
    config.save(root, folder / f"{name}-recipe")
    arguments = [
        str(folder / f"{name}-recipe" / "config.gin"),
        str(folder / f"{name}.ids"),
        root.run_dir,
        str(kill_after),
    ]
    return subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def rows(folder: pathlib.Path, name: str):
    lines = map(json.loads, (folder / name / "metrics.jsonl").open())
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in lines]


def row_ids(folder: pathlib.Path, name: str):
    """Step -> row ids; of a step that was computed twice, both must agree."""
    found: dict[int, list] = {}
    for line in map(json.loads, (folder / f"{name}.ids").open()):
        assert found.setdefault(line["step"], line["ids"]) == line["ids"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    tiny.write_tokens(folder / "tokens")
    straight = run(folder, "straight")
    assert straight.returncode == 0, straight.stderr
    killed = run(folder, "killed", kill_after=13)
    assert killed.returncode == -9, killed.stderr
    assert checkpoint.steps(str(folder / "killed")) == [10]
    assert len(rows(folder, "killed")) == 13
    resumed = run(folder, "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "start: own" in resumed.stdout
    return folder


def test_metrics_are_bit_identical(folder):
    assert [row["step"] for row in rows(folder, "straight")] == list(range(1, 21))
    assert rows(folder, "killed") == rows(folder, "straight")


def test_batches_are_identical(folder):
    straight, killed = row_ids(folder, "straight"), row_ids(folder, "killed")
    assert all(straight[step] == killed[step] for step in range(1, 21))
    assert len({tuple(i) for ids in straight.values() for i in ids}) > 100


def test_final_state_is_bit_identical(folder):
    facts = [checkpoint.read_facts(str(folder / name), 20) for name in ("straight", "killed")]
    digests = [f["manifest"]["digests"] for f in facts]
    assert digests[0] == digests[1] and len(digests[0]) == 3 * 12 + 2
    assert facts[0]["data"] == facts[1]["data"] and facts[0]["data"]["next_row"] == 156


def test_rows_that_were_redone_are_counted(folder):
    events = [json.loads(line) for line in (folder / "killed" / "events.jsonl").open()]
    assert [e["rows"] for e in events if e["event"] == "rows_redone"] == [3]
    assert [e["kind"] for e in events if e["event"] == "start"] == ["fresh", "own"]
