# SPDX-License-Identifier: Apache-2.0
"""Three decays of one trunk through the command line, against three runs made by hand."""

import json
import pathlib
import shutil

import pytest
import tiny_branch
import tiny_run as tiny

from midjax import __main__ as cli
from midjax import checkpoint, config, log
from midjax.branch import jobs as jobs_lib
from midjax.branch import recipe
from midjax.branch import run as run_lib
from midjax.train import loop

BATCH = tiny.T * tiny.B


def by_hand(folder):
    """The three runs as a user would write them, without any list."""
    run = str(folder / "trunk")
    kept = tiny.begin("anneal", run=run, step=8, keep=("data", "rng"))
    early = tiny.begin("anneal", run=run, step=4, keep=("data", "rng"))
    anew = tiny.begin("anneal", run=run, step=8)
    other = tiny.data(folder / "tokens", tiny.mixture((0, {"code": 0.7, "maths": 0.3}), seed=5))

    def decay(**kwargs):
        return tiny.wsd(**{"peak_lr": "checkpoint", "warmup_steps": 0} | kwargs)

    def train(name, steps, schedule, **kwargs):
        given = {"checkpoint": tiny_branch.KEEP, "schedule": schedule}
        return tiny.train(folder, name, steps=steps, **(given | kwargs))

    return {
        "short": train("short", 3, decay(decay_steps=3), start=kept),
        "early": train(
            "early", 5, decay(decay_steps=None, decay_tokens=5 * BATCH), start=early
        ),
        "other": train(
            "other", 4, decay(decay_steps=4, decay_shape="one_minus_sqrt"), start=anew, data=other
        ),
    }  # fmt: skip


def listed(folder) -> recipe.Branch:
    hand = by_hand(folder)
    early = tiny.begin("anneal", run=str(folder / "trunk"), keep=("data", "rng"))
    anew = tiny.begin("anneal", run=str(folder / "trunk"))
    root = tiny.wsd(
        peak_lr="checkpoint", warmup_steps=0, decay_steps=1, decay_shape="one_minus_sqrt"
    )
    changed = {"start": anew, "data": hand["other"].data, "schedule": root}
    return recipe.Branch(
        jobs={
            "short": tiny_branch.job(folder),
            "early": tiny_branch.job(
                folder,
                train_kwargs={"start": early},
                from_tokens=4 * BATCH,
                decay_tokens=5 * BATCH,
            ),
            "other": tiny_branch.job(folder, train_kwargs=changed, decay_steps=4),
        }
    )


def command(folder, root=None, *more):
    config.save(root or listed(folder), folder / "recipe")
    return ["branch", f"--gin_file={folder / 'recipe' / 'config.gin'}", *more]


def end(run_dir, step):
    facts = checkpoint.read_facts(str(run_dir), step)
    lines = map(json.loads, (pathlib.Path(run_dir) / "metrics.jsonl").open())
    rows = [{k: v for k, v in row.items() if "perf" not in k} for row in lines]
    return facts["manifest"]["digests"], facts["data"], rows


def written(folder):
    return json.loads((folder / "jobs" / "branches.json").read_text())["jobs"]


@pytest.fixture(scope="module")
def done(grown, tmp_path_factory):
    """The list, interrupted in the second job after its checkpoint of step 4, and run again."""
    folder = shutil.copytree(grown, tmp_path_factory.mktemp("done") / "work")
    patch, metrics = pytest.MonkeyPatch(), log.Journal.metrics

    def interrupted(journal, row):
        metrics(journal, row)
        if row["step"] == 5:
            raise KeyboardInterrupt

    with patch.context() as within:
        within.setattr(log.Journal, "metrics", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cli.main(command(folder))
    assert [job["state"] for job in written(folder)] == ["finished", "unfinished", "waiting"]
    assert checkpoint.steps(str(folder / "jobs" / "early")) == [2, 4]
    assert cli.main(command(folder)) == 0
    for root in by_hand(folder).values():
        loop.run(root)
    return folder


@pytest.mark.parametrize(("name", "steps"), [("short", 3), ("early", 5), ("other", 4)])
def test_each_job_gives_the_arrays_of_the_run_made_by_hand(done, name, steps):
    assert end(done / "jobs" / name, steps) == end(done / name, steps)
    hand = config.to_json(by_hand(done)[name])
    saved = config.load("train", [str(done / "jobs" / name / "config.gin")])
    changed = config.changes(hand, config.to_json(saved))
    assert changed == [("run_dir", str(done / name), str(done / "jobs" / name))]


def test_the_interrupted_job_resumed_and_the_finished_one_was_kept(done):
    kinds = {
        name: [e["kind"] for e in tiny_branch.events(done / "jobs" / name, "start")]
        for name in ("short", "early", "other")
    }
    assert kinds == {"short": ["anneal"], "early": ["anneal", "own"], "other": ["anneal"]}


def test_the_same_command_again_does_nothing_and_prints_the_table(done, capsys, monkeypatch):
    monkeypatch.setattr(loop, "go", lambda begun: pytest.fail("nothing is left to do"))
    assert cli.main(command(done)) == 0
    said = capsys.readouterr().out
    assert said.count("finished before, kept") == 3
    found = written(done)
    assert [(j["name"], j["from_step"], j["steps"], j["tokens"]) for j in found] == [
        ("short", 8, 3, 3 * BATCH), ("early", 4, 5, 5 * BATCH), ("other", 8, 4, 4 * BATCH),
    ]  # fmt: skip
    for job in found:  # fewer than 20 updates: the last one alone
        *_, rows = end(done / job["name"], job["steps"])
        assert job["loss"] == pytest.approx(rows[-1]["loss"], rel=1e-5)
        assert job["final_lr"] == rows[-1]["lr"] and f"{job['loss']:.4f}" in said
    assert f"against the length of the decay: {done}/jobs/branches.svg" in said
    assert cli.main(command(done, None, "--list")) == 0
    assert capsys.readouterr().out.count("finished") == 3


def test_a_finished_job_is_not_overwritten_by_another(done, capsys):
    root = listed(done)
    longer = {**root.jobs, "short": tiny_branch.job(done, decay_steps=6)}
    before = (done / "jobs" / "short" / "config.json").read_bytes()
    assert cli.main(command(done, recipe.Branch(jobs=longer))) == 2
    said = capsys.readouterr().err
    assert "job 'short'" in said and "train_tokens: 384 -> 768" in said
    assert "Nothing was started" in said
    assert (done / "jobs" / "short" / "config.json").read_bytes() == before


def test_a_folder_of_another_run_is_refused(done, capsys):
    root = tiny_branch.job(done, train_kwargs={"run_dir": str(done / "trunk")})
    assert cli.main(command(done, recipe.Branch(jobs={"a": root}))) == 2
    assert "was written by `midjax train`, not by `midjax branch`" in capsys.readouterr().err


def hands(**kwargs) -> run_lib.Hands:
    given = {
        "recorded": lambda run_dir: None, "guard": lambda train: None, "save": lambda train: None,
        "train": lambda train: None, "draw": lambda ended: pytest.fail("nothing has ended"),
    }  # fmt: skip
    return run_lib.Hands(**(given | kwargs))


def test_a_job_that_fails_is_named_and_the_others_run(folder, capsys):
    ran = []

    def train(root):
        ran.append(root.run_dir.rpartition("/")[2])
        if ran[-1] == "short":
            raise ValueError("it diverged")
        if ran[-1] == "early":
            raise RuntimeError("out of memory")

    root, with_hands = listed(folder), hands(train=train)
    planned = run_lib.plan(root, with_hands)
    with pytest.raises(jobs_lib.JobError, match="2 of 3 jobs failed") as error:
        run_lib.run(root, planned, with_hands)
    assert ran == ["short", "early", "other"]
    assert "short: ValueError: it diverged" in str(error.value)
    assert "Traceback" in capsys.readouterr().out  # of what may be a bug
    assert [job["error"] for job in written(folder)] == [
        "ValueError: it diverged",
        "RuntimeError: out of memory",
        None,
    ]
    ran.clear()
    # Another process runs one job: what failed elsewhere is still known.
    with pytest.raises(jobs_lib.JobError, match="1 of 1 jobs failed"):
        run_lib.run(root, planned, with_hands, ["early"])
    assert ran == ["early"]
    assert written(folder)[0]["error"] == "ValueError: it diverged"


def test_list_runs_nothing_and_only_knows_its_names(folder, capsys):
    assert cli.main(command(folder, None, "--list")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["job", "short", "early", "other", "3"]
    assert not (folder / "jobs").exists()
    assert cli.main(command(folder, None, "--only", "shrt")) == 2
    assert "No jobs ['shrt']; the list has ['short', 'early', 'other']" in capsys.readouterr().err
    assert cli.main(command(folder, None, "--quick")) == 2
    assert "unknown arguments ['--quick']" in capsys.readouterr().err
