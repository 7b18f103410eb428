# SPDX-License-Identifier: Apache-2.0
"""20 updates straight = 10 + kill -9 + resume for 10 more, bit for bit, in real processes.

So they are where SIGTERM asked the process to end, in time and too late. And every second of them
is in one bucket of the goodput.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
import tiny_run as tiny

from midjax import checkpoint, config
from midjax.batches import starts

# Runs the ordinary verb, notes the row ids of every batch, and signals itself when the metrics of
# a given step were written. With SIGKILL that is when the checkpoint before it is whole. SIGTERM
# comes twice; "late" is SIGKILL after it, while the process waits for its last save.
DRIVER = """
import json, os, signal, sys, time
import midjax.__main__ as cli
from midjax import checkpoint, log
from midjax.batches import loader

gin_file, ids_file, run_dir, how, signal_after = *sys.argv[1:5], int(sys.argv[5])
batches, metrics = loader.Loader.batches, log.Journal.metrics

def noted(self, *, first_step, **kwargs):
    for at, (batch, ids) in enumerate(batches(self, first_step=first_step, **kwargs)):
        with open(ids_file, "a") as file:
            file.write(json.dumps({"step": first_step + at, "ids": ids.tolist()}) + "\\n")
        yield batch, ids

def counted(self, row):
    metrics(self, row)
    if row["step"] != signal_after:
        return
    if how == "kill":
        while checkpoint.steps(run_dir) != [10]:
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    if how == "late":
        checkpoint.Store.wait = lambda store: os.kill(os.getpid(), signal.SIGKILL)

loader.Loader.batches, log.Journal.metrics = noted, counted
sys.argv[1:] = ["train", "--gin_file=" + gin_file]  # as if this were all that was asked
code = cli.main()
print("DONE AT", time.time())
sys.exit(code)
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


def run(
    folder: pathlib.Path, name: str, how: str = "", signal_after: int = -1
) -> subprocess.CompletedProcess:
    root = recipe(folder, name)
    config.save(root, folder / f"{name}-recipe")
    arguments = [
        str(folder / f"{name}-recipe" / "config.gin"),
        str(folder / f"{name}.ids"),
        root.run_dir,
        how,
        str(signal_after),
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
    clock = {"straight": time.time()}
    straight = run(folder, "straight")
    assert straight.returncode == 0, straight.stderr
    clock |= {"straight done": done_at(straight), "killed": time.time()}
    killed = run(folder, "killed", "kill", 13)
    assert killed.returncode == -9, killed.stderr
    assert checkpoint.steps(str(folder / "killed")) == [10]
    assert len(rows(folder, "killed")) == 13
    clock["last row"] = newest(folder / "killed" / "metrics.jsonl")["perf/time"]
    clock["resumed"] = time.time()
    resumed = run(folder, "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "start: own" in resumed.stdout
    clock["killed done"] = done_at(resumed)
    (folder / "clock.json").write_text(json.dumps(clock))
    return folder


@pytest.fixture(scope="module")
def asked(folder):
    """A run that SIGTERM asked to end while it saved step 10, too late; then in step 13."""
    late = run(folder, "asked", "late", 10)
    assert late.returncode == -9, late.stderr
    # The save in flight was waited for; the last one is there, or it is not listed.
    assert checkpoint.steps(str(folder / "asked")) in ([10], [10, 11])
    ended = run(folder, "asked", "ask", 13)
    assert ended.returncode == 42, ended.stderr
    assert "was asked to end (SIGTERM) and did so after step 14. The same command" in ended.stderr
    assert checkpoint.steps(str(folder / "asked"))[-1] == 14
    assert run(folder, "asked").returncode == 0
    return folder


def test_a_run_that_was_asked_to_end_goes_on_bit_for_bit(asked):
    assert rows(asked, "asked") == rows(asked, "straight")
    straight, ended = row_ids(asked, "straight"), row_ids(asked, "asked")
    assert all(straight[step] == ended[step] for step in range(1, 21))
    facts = [checkpoint.read_facts(str(asked / name), 20) for name in ("straight", "asked")]
    assert facts[0]["manifest"]["digests"] == facts[1]["manifest"]["digests"]
    assert facts[0]["data"] == facts[1]["data"]
    events = [json.loads(line) for line in (asked / "asked" / "events.jsonl").open()]
    told = [(e["step"], e["saved_step"]) for e in events if e["event"] == "preempted"]
    assert told[-1] == (14, 14)
    assert not [e for e in events if e["event"] == "rows_redone" and e["step"] >= 14]


def newest(file):
    return json.loads(file.read_text().splitlines()[-1])


def done_at(process):
    return float(process.stdout.rpartition("DONE AT")[2])


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


@pytest.mark.parametrize("name", ["straight", "killed"])
def test_the_buckets_of_goodput_sum_to_the_wall_time(folder, name):
    """Against the clock of whoever started the processes, the killed one included, to 1 %."""
    clock = json.loads((folder / "clock.json").read_text())
    *_, last = goodput(folder, name)
    wall = clock[f"{name} done"] - clock[name]
    assert last["final"] and last["step"] == 20
    assert sum(last["run_seconds"].values()) == pytest.approx(wall, rel=0.01)
    for bucket in ("start", "compile", "step", "checkpoint"):
        assert last["run_seconds"][bucket] > 0
    assert last["goodput"] == pytest.approx(last["run_seconds"]["step"] / wall, rel=0.02)


def test_what_a_kill_cost_is_lost_and_down(folder):
    clock = json.loads((folder / "clock.json").read_text())
    events = goodput(folder, "killed")
    assert [(e["session"], e["step"]) for e in events] == [
        (1, 0), (1, 10), (2, 10), (2, 20), (2, 20)
    ]  # fmt: skip
    kept, last = events[1], events[-1]
    kept_until = kept["session_began"] + sum(kept["session_seconds"].values())
    lost, down = (last["run_seconds"][name] for name in ("lost", "down"))
    assert lost == pytest.approx(clock["last row"] - kept_until, abs=0.01)
    assert down == pytest.approx(last["session_began"] - clock["last row"], abs=0.01)
    assert clock["resumed"] - 0.05 < last["session_began"] < clock["killed done"]
    assert goodput(folder, "straight")[-1]["run_seconds"]["lost"] == 0


def goodput(folder, name):
    events = [json.loads(line) for line in (folder / name / "events.jsonl").open()]
    return [event for event in events if event["event"] == "goodput"]
