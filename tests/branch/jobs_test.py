# SPDX-License-Identifier: Apache-2.0
"""From jobs to recipes: lengths, places, closed forms of the rates, and what is refused."""

import dataclasses
import math

import pytest
import schedules
import tiny_branch
import tiny_run as tiny

from midjax import config
from midjax.branch import jobs as jobs_lib
from midjax.branch import recipe
from midjax.branch import trunk as trunk_lib
from midjax.train.schedules import phases

BATCH = tiny.T * tiny.B


def plan(folder, recorded=lambda run_dir: None, **jobs):
    trunk = trunk_lib.Trunk(str(folder / "trunk"), config.load_run(folder / "trunk", "train"))
    return jobs_lib.plan(recipe.Branch(jobs=jobs), trunk, recorded)


def job(folder, **kwargs):
    return tiny_branch.job(folder, **kwargs)


def rates(planned) -> list[float]:
    line = planned.timeline
    return [planned.curve.lr(s) for s in range(line.first_count, line.count(planned.last_step))]


def test_lengths_in_steps_and_tokens_and_the_recipes_own(folder):
    found = plan(
        folder,
        own=job(folder),
        steps=job(folder, decay_steps=5),
        tokens=job(folder, decay_tokens=4 * BATCH + 1),
    )
    assert [(p.last_step, p.tokens) for p in found.values()] == [
        (3, 3 * BATCH), (5, 5 * BATCH), (5, 5 * BATCH),
    ]  # fmt: skip
    assert rates(found["own"]) == pytest.approx([1e-2 * (1 - s / 3) for s in range(3)])
    assert rates(found["steps"]) == pytest.approx([1e-2 * (1 - s / 5) for s in range(5)])
    # In tokens the decay ends with the last token asked for, inside the last batch.
    length = 4 * BATCH + 1
    assert rates(found["tokens"]) == pytest.approx(
        [1e-2 * (1 - s * BATCH / length) for s in range(5)]
    )
    assert [p.train.run_dir for p in found.values()] == [
        str(folder / "jobs" / name) for name in ("own", "steps", "tokens")
    ]


@pytest.mark.parametrize(
    ("shape", "closed"),
    [
        ("linear", lambda p: 1 - p),
        ("one_minus_sqrt", lambda p: 1 - p**0.5),
        ("half_cosine", lambda p: 1 - math.sin(math.pi * p / 2)),
    ],
)
def test_a_branch_that_keeps_the_step_decays_from_there_on(folder, shape, closed):
    """Everything kept, warm-up and all: 6 updates of the trunk, then 4 of decay."""
    kept = tiny.begin("resume", run=str(folder / "trunk"), step=6)
    whole = tiny.wsd(decay_steps=1, decay_shape=shape)
    found = plan(
        folder,
        steps=job(folder, train_kwargs={"start": kept, "schedule": whole}, decay_steps=4),
        tokens=job(folder, train_kwargs={"start": kept, "schedule": whole}, decay_tokens=5 * BATCH),
    )
    assert (found["steps"].steps, found["steps"].last_step) == (4, 10)
    assert found["steps"].train.train_tokens == 10 * BATCH and found["steps"].tokens == 4 * BATCH
    for name, steps in (("steps", 4), ("tokens", 5)):
        expected = [1e-2 * closed(s / steps) for s in range(steps)]
        assert rates(found[name]) == pytest.approx(expected, abs=1e-12)


def test_phases_whose_last_one_is_open_end_with_the_job(folder):
    both = (
        schedules.move("checkpoint", 5e-3, steps=2, name="slow"),
        schedules.move("previous", 0.0, name="fast"),
    )
    found = plan(
        folder,
        a=job(folder, train_kwargs={"schedule": phases.Phases(phases=both)}, decay_steps=6),
    )["a"]
    assert rates(found) == pytest.approx([1e-2, 7.5e-3, *(5e-3 * (1 - s / 4) for s in range(4))])
    closed = (both[0], dataclasses.replace(both[1], steps=4))
    with pytest.raises(jobs_lib.JobError, match="'fast', has a length of its own"):
        plan(
            folder,
            a=job(folder, train_kwargs={"schedule": phases.Phases(phases=closed)}, decay_steps=6),
        )


def test_places_on_the_trunk(folder):
    step = tiny.begin("anneal", run=str(folder / "trunk"), step=6, keep=("data", "rng"))
    found = plan(
        folder,
        newest=job(folder),
        step=job(folder, train_kwargs={"start": step}),
        tokens=job(folder, from_tokens=4 * BATCH),
    )
    assert {name: p.from_step for name, p in found.items()} == {
        "newest": 8, "step": 6, "tokens": 4,
    }  # fmt: skip
    assert [p.train.start.step for p in found.values()] == [8, 6, 4]
    assert [p.from_tokens for p in found.values()] == [8 * BATCH, 6 * BATCH, 4 * BATCH]


def test_the_newest_checkpoint_stays_what_it_was_when_the_job_was_written(folder):
    first = plan(folder, a=job(folder))["a"].train
    older = dataclasses.replace(first, start=dataclasses.replace(first.start, step=4))
    assert plan(folder, lambda run_dir: older, a=job(folder))["a"].from_step == 4


def test_every_job_that_cannot_be_is_named(folder):
    early = tiny.begin("anneal", run=str(folder / "trunk"), step=2)
    warm = tiny.wsd(peak_lr=1e-2, warmup_steps=2)
    with pytest.raises(jobs_lib.JobError) as error:
        plan(
            folder,
            good=job(folder),
            early=job(folder, train_kwargs={"start": early}),
            gone=job(folder, from_tokens=1),
            warm=job(folder, train_kwargs={"schedule": warm}, decay_steps=3),
        )
    text = str(error.value)
    assert "job 'early': step 2 of" in text and "Job.allow_unstable" in text
    assert "job 'gone': Job.from_tokens = 1" in text and "job 'warm'" in text
    assert "has a warm-up" in text and "good" not in text
    allowed = job(folder, train_kwargs={"start": early}, allow_unstable=True)
    # The rate in force at step 2, inside a warm-up of 3, is where the decay begins.
    assert plan(folder, a=allowed)["a"].curve.lr(0) == pytest.approx(1e-2 * 2 / 3)


def test_two_jobs_that_are_the_same_run_are_refused(folder):
    data = tiny.data(folder / "tokens", tiny.mixture(seed=9))
    with pytest.raises(jobs_lib.JobError, match="'a' and 'b' are the same run.*keeps 'rng'"):
        plan(folder, a=job(folder), b=job(folder, train_kwargs={"data": data}))
    anew = tiny.begin("anneal", run=str(folder / "trunk"))
    assert plan(
        folder,
        a=job(folder, train_kwargs={"start": anew}),
        b=job(folder, train_kwargs={"start": anew, "data": data}),
    )


def test_a_mixture_that_cannot_be_read_is_found_before_anything_runs(folder):
    late = tiny.data(folder / "tokens", tiny.mixture((0, {"prose": 1.0}), (10**6, {"code": 1.0})))
    planned = plan(folder, a=job(folder), b=job(folder, train_kwargs={"data": late}))
    with pytest.raises(jobs_lib.JobError, match="job 'b': Stage 's1' begins"):
        jobs_lib.check(planned)
    jobs_lib.check({"a": planned["a"]})
