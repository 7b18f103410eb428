# SPDX-License-Identifier: Apache-2.0
"""Two real processes over loopback: they train, are killed, and go on as one and as two.

Against one process that ran straight through on as many devices: the same rows in every batch, the
same losses to 1e-5. And they end together: at SIGTERM to one, and where one fails or is missing.
"""

import json
import shutil
import socket
import subprocess
import sys

import devices
import pytest
import tiny_run as tiny

from midjax import checkpoint, config
from midjax.distributed import group
from midjax.evals import record
from midjax.train import ema, guard

STEPS, EVERY = 24, 8

# Runs the ordinary verb and notes the row ids of every batch. When process 0 wrote the metrics of a
# given step, and the checkpoint before it is whole, it kills both processes, asks process 1 to end
# (and goes on when that is known). Or process 1 fails at a batch, or cannot read a checkpoint.
DRIVER = """
import json, os, pathlib, signal, sys
import midjax.__main__ as cli
from midjax import checkpoint, log
from midjax.batches import loader

notes, run_dir, how, after = pathlib.Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
index = os.environ.get("JAX_PROCESS_ID", "0")
(notes / f"{index}.pid").write_text(str(os.getpid()))
batches, metrics = loader.Loader.batches, log.Journal.metrics

def noted(self, *, first_step, **kwargs):
    for at, (batch, ids) in enumerate(batches(self, first_step=first_step, **kwargs)):
        if how == "fail" and index == "1" and at == after:
            raise OSError("the disk of this host is gone")
        with open(notes / f"{index}.ids", "a") as file:
            file.write(json.dumps({"step": first_step + at, "ids": ids.tolist()}) + "\\n")
        yield batch, ids

def counted(self, row):
    metrics(self, row)
    if index != "0" or how not in ("kill", "ask") or row["step"] != after:
        return
    while not checkpoint.steps(run_dir):
        os.sched_yield()
    other = int((notes / "1.pid").read_text())
    if how == "kill":
        os.kill(other, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(other, signal.SIGTERM)
    from jax._src import distributed
    distributed.global_state.client.blocking_key_value_get("RECEIVED_PREEMPTION_NOTICE", 60_000)

read = checkpoint._read

def blind(run_dir, step, *given):
    if how == "blind" and index == "1" and step == after:
        raise checkpoint.DamagedError(run_dir, step, "a sector cannot be read")
    if how == "torn" and index == "1":
        raise checkpoint.CheckpointError("no access")
    if how == "torn":
        raise checkpoint.DamagedError(run_dir, step, "a sector cannot be read")
    return read(run_dir, step, *given)

loader.Loader.batches, log.Journal.metrics, checkpoint._read = noted, counted, blind
sys.exit(cli.main(["train", *sys.argv[5:]]))
"""


def start(folder, name, processes, *arguments, how="", after=-1, run=None):
    """Starts `processes` of them on 4 devices in all; notes go to folder/name.notes."""
    notes = folder / f"{name}.notes"
    notes.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    run_dir = str(folder / (run or name))
    recipe = [f"--gin_file={folder}/recipe/config.gin", f"--gin.Train.run_dir={run_dir}"]
    env = devices.environment(4 // processes)
    if processes > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(notes), run_dir, how, str(after), *recipe]
            + [x for x in arguments if not isinstance(x, tuple)]
            + [x for at, x in (x for x in arguments if isinstance(x, tuple)) if at == index],
            env=env | ({"JAX_PROCESS_ID": str(index)} if processes > 1 else {}),
            stdout=subprocess.DEVNULL,  # where Gloo speaks too
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def ended(processes):
    """Exit codes, and what each said as an error."""
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], errors


def rows(folder, name):
    lines = map(json.loads, (folder / name / "metrics.jsonl").open())
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in lines]


def row_ids(folder, name, processes):
    """Step -> row ids of all processes, where all noted them; of a step that was computed twice,
    both must agree."""
    found: dict[int, dict[int, list]] = {}
    for index in range(processes):
        for line in map(json.loads, (folder / f"{name}.notes" / f"{index}.ids").open()):
            there = found.setdefault(line["step"], {})
            assert there.setdefault(index, line["ids"]) == line["ids"]
    return {
        step: [row for index in sorted(there) for row in there[index]]
        for step, there in found.items()
        if len(there) == processes
    }


def events(folder, name, kind):
    lines = map(json.loads, (folder / name / "events.jsonl").open())
    return [event for event in lines if event["event"] == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    tokenizer = tiny.write_tokenizer(folder / "tokenizer")
    tiny.write_tokens(folder / "tokens", tokenizer=tokenizer)
    root = tiny.train(
        folder,
        steps=STEPS,
        checkpoint=checkpoint.Keep(every_steps=EVERY, last=9, forever_every_steps=None),
        spikes=guard.Spikes(window_steps=6, deviations=9.0, least_history_steps=3),
        ema=ema.Ema(half_life_steps=5.0),
        evaluations=(tiny.held_out(folder, every_steps=6),),
        hosts=group.Hosts(start_seconds=60, heartbeat_seconds=20, wait_seconds=60),
    )
    config.save(root, folder / "recipe")
    codes, errors = ended(start(folder, "straight", 1))
    assert codes == [0], errors
    codes, errors = ended(start(folder, "pair", 2, how="kill", after=13))
    assert codes == [-9, -9], errors
    assert checkpoint.steps(str(folder / "pair")) == [EVERY]
    shutil.copytree(folder / "pair", folder / "one")
    shutil.copytree(folder / "pair.notes", folder / "one.notes")
    return folder


def same(folder, name):
    """Of a run that ended: every row of metrics as of the straight one, but for rounding."""
    straight, found = rows(folder, "straight"), rows(folder, name)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    for one, other in zip(straight, found, strict=True):
        assert one.keys() == other.keys()
        assert {k for k, v in one.items() if v is None} == {
            k for k, v in other.items() if v is None
        }
        for key, value in one.items():
            if value is not None:
                assert other[key] == pytest.approx(value, rel=1e-5, abs=1e-9), (one["step"], key)
    evaluated, again = (record.read(str(folder / run)) for run in ("straight", name))
    assert [line["step"] for line in again] == [6, 12, 18, 24]
    for one, other in zip(evaluated, again, strict=True):
        assert other["scores"] == pytest.approx(one["scores"], rel=1e-5)
    facts = [checkpoint.read_facts(str(folder / n), STEPS) for n in ("straight", name)]
    assert facts[0]["data"] == facts[1]["data"]
    assert facts[0]["manifest"]["arrays"] == facts[1]["manifest"]["arrays"]
    assert facts[0]["manifest"]["norms"] == pytest.approx(facts[1]["manifest"]["norms"], rel=1e-5)


def test_killed_as_two_and_resumed_as_one(folder):
    before = row_ids(folder, "pair", 2)
    assert sorted(before)[:13] == list(range(1, 14))
    codes, errors = ended(start(folder, "resumed", 1, run="one"))
    assert codes == [0], errors
    same(folder, "one")
    straight, after = row_ids(folder, "straight", 1), row_ids(folder, "resumed", 1)
    assert min(after) == EVERY + 1 and len(straight) == STEPS
    assert all(straight[step] == ids for step, ids in [*before.items(), *after.items()])
    assert [e["from_step"] for e in events(folder, "one", "start")] == [None, EVERY]


def test_resumed_as_two_then_asked_to_end_then_torn_then_blind_on_one_side(folder):
    codes, errors = ended(start(folder, "pair", 2, how="ask", after=12))
    assert codes == [42, 42], errors
    (told,) = events(folder, "pair", "preempted")
    step = told["step"]
    assert 12 < step < STEPS and told["saved_step"] == step
    assert checkpoint.steps(str(folder / "pair"))[-1] == step
    for error in errors:
        assert f"was asked to end (SIGTERM) and did so after step {step}." in error
    codes, errors = ended(start(folder, "pair", 2, how="torn"))
    assert codes == [2, 2], errors
    assert all("no access" in error for error in errors)
    codes, errors = ended(start(folder, "pair", 2, how="blind", after=step))
    assert codes == [0, 0], errors
    aside = [p.name for p in (folder / "pair" / "checkpoints").iterdir() if "damaged" in p.name]
    assert aside == [f"{step}.damaged-0"]
    same(folder, "pair")
    straight, found = row_ids(folder, "straight", 1), row_ids(folder, "pair", 2)
    assert found == straight
    assert len(events(folder, "pair", "end")) == 1  # process 0 alone writes
    speeds = [json.loads(line) for line in (folder / "pair" / "metrics.jsonl").open()]
    of_one = [json.loads(line) for line in (folder / "straight" / "metrics.jsonl").open()]
    for name in ("perf/padding", "perf/model_flops"):  # of the rows of both
        assert [row[name] for row in speeds] == [row[name] for row in of_one]


def test_one_that_fails_ends_the_other_with_its_message(folder):
    codes, errors = ended(start(folder, "failing", 2, how="fail", after=5))
    assert codes == [2, 2], errors
    assert "midjax train: the disk of this host is gone" in errors[1]
    assert f"process 1 ({socket.gethostname()}) failed, which ends this process too" in errors[0]
    assert "the disk of this host is gone" in errors[0]


def test_two_recipes_are_refused_by_both(folder):
    codes, errors = ended(start(folder, "differ", 2, (1, "--gin.Train.seed=5")))
    assert codes == [2, 2], errors
    for error in errors:
        assert "The recipe differs: process 1" in error and "has seed 5, and process 0" in error
    assert not (folder / "differ").exists()


def test_a_missing_process_is_named_in_time(folder):
    zero, one = start(folder, "missing", 2, "--gin.Hosts.start_seconds=1")
    one.kill()
    one.wait()
    (code,), (error,) = ended([zero])
    assert code == 134
    assert "1 of 2 processes did not come to 127.0.0.1:" in error and "in 1 s: 1. Here" in error
    assert not (folder / "missing").exists()
