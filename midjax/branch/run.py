# SPDX-License-Identifier: Apache-2.0
"""The verb `branch`: the jobs of a list, one after another, in one process."""

import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence

from midjax import log
from midjax.branch import jobs as jobs_lib
from midjax.branch import recipe as recipe_lib
from midjax.branch import results as results_lib
from midjax.branch import trunk as trunk_lib
from midjax.train import recipe as train_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hands:
    """What the command line does with recipes of `train`.

    Attributes:
      recorded: reads the recipe that a run directory was written with; None where there is none.
      guard: refuses a recipe that is not the one of its run directory.
      save: writes a recipe into its run directory.
      train: runs it, as `midjax train` does.
      draw: draws finished jobs and their losses against the length of the decay; returns where.
    """

    recorded: jobs_lib.Recorded
    guard: Callable[[train_lib.Train], object]
    save: Callable[[train_lib.Train], object]
    train: Callable[[train_lib.Train], object]
    draw: Callable[[Sequence[tuple[results_lib.Result, float]]], str]


def plan(
    config: recipe_lib.Branch, hands: Hands, only: Sequence[str] = ()
) -> dict[str, jobs_lib.Planned]:
    """All jobs of the list; those named, or all, are checked as `train` would. Nothing is written.

    Raises:
      ValueError and its kinds: no such job, a trunk or jobs that cannot be.
    """
    if unknown := [name for name in only if name not in config.jobs]:
        raise jobs_lib.JobError(f"No jobs {unknown}; the list has {list(config.jobs)}.")
    trunk = trunk_lib.Trunk(config.trunk, hands.recorded(config.trunk))
    planned = jobs_lib.plan(config, trunk, hands.recorded)
    chosen = {name: job for name, job in planned.items() if not only or name in only}
    jobs_lib.each(chosen, lambda name: hands.guard(chosen[name].train))
    jobs_lib.check(chosen)
    return planned


def run(
    config: recipe_lib.Branch,
    planned: Mapping[str, jobs_lib.Planned],
    hands: Hands,
    only: Sequence[str] = (),
) -> None:
    """Runs what is not finished. A job that fails is noted, and the next one goes on.

    Writes the recipes of the jobs first, and `branches.json` after each job.

    Args:
      config: the list.
      planned: `plan` of it.
      hands: see there.
      only: names of jobs; empty for all.

    Raises:
      JobError: jobs failed; names them.
    """
    chosen = {name: job for name, job in planned.items() if not only or name in only}
    for job in chosen.values():
        if not job.finished:
            hands.save(job.train)
    failed: dict[str, str | None] = {}
    for number, (name, job) in enumerate(chosen.items(), 1):
        place = f"[{number}/{len(chosen)}] {name}"
        if job.finished:
            log.say(f"{place}: finished before, kept ({job.train.run_dir})")
            continue
        log.say(f"\n{place}: {job.train.run_dir}")
        try:
            failed[name] = _go(job, hands)
        finally:  # of an interrupted list too
            _write(config.output, planned, failed)
    found = _write(config.output, planned, failed)
    log.say(f"\n{results_lib.table(found)}")
    log.say(
        f"loss: nats per token over the last {results_lib.LAST_SHARE:.0%} of a job's updates; "
        f"written to {config.output}/{results_lib.FILE}"
    )
    if ended := [(one, one.loss) for one in found if one.state == "finished" and one.loss]:
        log.say(f"loss against the length of the decay: {hands.draw(ended)}")
    if lost := {name: why for name, why in failed.items() if why}:
        listed = "\n  ".join(f"{name}: {why}" for name, why in lost.items())
        raise jobs_lib.JobError(
            f"{len(lost)} of {len(chosen)} jobs failed:\n  {listed}\nThe same command tries them "
            "again, and keeps what is finished."
        )


def _go(job: jobs_lib.Planned, hands: Hands) -> str | None:
    """Runs one job; the reason if it failed."""
    try:
        hands.train(job.train)
    except Exception as error:  # whatever it was, it is one job's, and the list goes on
        if not isinstance(error, ValueError | OSError):
            log.say(traceback.format_exc())
        what = f"{type(error).__name__}: {error}"
        log.say(f"job {job.name!r} FAILED: {what}")
        return what
    return None


def _write(
    output: str, planned: Mapping[str, jobs_lib.Planned], failed: Mapping[str, str | None]
) -> list[results_lib.Result]:
    """Writes `branches.json` from the folders of all jobs, those of other processes too."""
    before = results_lib.errors(output)
    found = [
        results_lib.read(job, None if job.finished else failed.get(name, before.get(name)))
        for name, job in planned.items()
    ]
    results_lib.write(output, found)
    return found
