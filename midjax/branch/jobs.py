# SPDX-License-Identifier: Apache-2.0
"""Jobs and their trunk -> recipes of `train`, with every number known."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from midjax import checkpoint
from midjax.branch import recipe as recipe_lib
from midjax.branch import trunk as trunk_lib
from midjax.train import prepare
from midjax.train import recipe as train_lib
from midjax.train import start as start_lib
from midjax.train import timeline as timeline_lib
from midjax.train.schedules import curve as curve_lib
from midjax.train.schedules import phases

# Reads the recipe that a run directory was written with; None where there is none.
Recorded = Callable[[str], train_lib.Train | None]


class JobError(ValueError):
    """Jobs of the list cannot run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A job that may run.

    Attributes:
      name: in the list.
      train: its recipe, complete: its own folder, the trunk's step, its length.
      from_step, from_tokens: of the trunk; tokens are None where the trunk does not say.
      timeline: its updates.
      curve: its learning rates.
    """

    name: str
    train: train_lib.Train
    from_step: int
    from_tokens: int | None
    timeline: timeline_lib.Timeline
    curve: curve_lib.Curve

    @property
    def steps(self) -> int:
        """Updates of the job."""
        return self.last_step - self.timeline.first_step

    @property
    def last_step(self) -> int:
        """Step of its last update: the trunk's are before it where the job keeps the step."""
        return self.timeline.total_steps

    @property
    def tokens(self) -> int:
        """Tokens of its updates, padding included."""
        return self.timeline.tokens(self.last_step) - self.timeline.first_tokens

    def rates(self) -> tuple[float, float]:
        """Learning rates of its first and its last update."""
        first, after = self.timeline.first_count, self.timeline.count(self.last_step)
        return self.curve.lr(first), self.curve.lr(after - 1)

    @property
    def done_step(self) -> int | None:
        """Step of its newest checkpoint."""
        found = checkpoint.steps(self.train.run_dir)
        return found[-1] if found else None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.done_step or 0) >= self.last_step


def plan(
    config: recipe_lib.Branch, trunk: trunk_lib.Trunk, recorded: Recorded
) -> dict[str, Planned]:
    """Every job of the list. Reads the trunk's JSON; neither data nor devices are touched.

    Raises:
      JobError: names each job that cannot run, and why.
    """
    planned = each(
        config.jobs, lambda name: _planned(name, config.jobs[name], config.output, trunk, recorded)
    )
    _differ(planned)
    return planned


def check(planned: Mapping[str, Planned]) -> None:
    """Prepares what is not finished, as `train` would; no device is touched.

    Raises:
      JobError: names each job that cannot run, and why.
    """
    each([name for name, job in planned.items() if not job.finished], lambda n: _check(planned[n]))


def each(names: Any, make: Callable[[str], Any]) -> dict[str, Any]:
    """`make` of each name; the complaints of all in one error.

    Raises:
      JobError: one or more raised a ValueError or an OSError.
    """
    made, complaints = {}, []
    for name in names:
        try:
            made[name] = make(name)
        except (ValueError, OSError) as error:
            complaints.append(f"job {name!r}: {error}")
    if complaints:
        raise JobError("\n  ".join(["Nothing was started.", *complaints]))
    return made


def _check(job: Planned) -> None:
    try:
        prepare.prepare(job.train)
    except checkpoint.DamagedError as error:
        if error.run_dir != job.train.run_dir:
            raise  # a damaged one of its own is set aside when the job begins


def _planned(
    name: str,
    job: recipe_lib.Job,
    output: str,
    trunk: trunk_lib.Trunk,
    recorded: Recorded,
) -> Planned:
    run_dir = f"{output}/{name}"
    step = _step(job, trunk, recorded(run_dir))
    why = trunk.unstable(step)
    if why and not job.allow_unstable:
        raise trunk_lib.TrunkError(
            f"step {step} of {trunk.run} is in no stable phase: {why}. Start from another of "
            f"its steps {trunk.steps} (Start.step), or ask for it with Job.allow_unstable = True."
        )
    start = dataclasses.replace(job.train.start, step=step)
    train = dataclasses.replace(job.train, run_dir=run_dir, start=start)
    origin = trunk.origin(step, start.kind, frozenset(start.parts))
    train = _with_length(job, train, origin)
    timeline = timeline_lib.of(train.data, train.train_tokens, origin)
    return Planned(
        name=name,
        train=train,
        from_step=step,
        from_tokens=trunk.tokens(step),
        timeline=timeline,
        curve=prepare.schedule(train, origin, timeline),
    )


def _step(job: recipe_lib.Job, trunk: trunk_lib.Trunk, before: train_lib.Train | None) -> int:
    """The trunk's step that a job starts from: the newest stays what it was at first."""
    if job.from_tokens is not None:
        return trunk.step_at(job.from_tokens)
    if job.train.start.step is not None:
        return job.train.start.step
    if before is not None and before.start.run == trunk.run and before.start.step is not None:
        return before.start.step
    return trunk.steps[-1]


def _with_length(
    job: recipe_lib.Job, train: train_lib.Train, origin: start_lib.Origin
) -> train_lib.Train:
    """The recipe with the job's own length, if it has one."""
    length, kept = job.decay_tokens, "step" in origin.parts
    if length is None and job.decay_steps is None:
        return train
    begun = timeline_lib.of(train.data, train.train_tokens, origin)
    if length is None:
        assert job.decay_steps is not None
        length = begun.tokens(begun.first_step + job.decay_steps) - begun.first_tokens
    schedule = train.schedule
    if isinstance(schedule, phases.Schedule):
        if (schedule.warmup_steps or schedule.warmup_tokens) and not kept:
            raise ValueError(
                "Job.decay_tokens or decay_steps makes the whole run a decay, and its Schedule has "
                "a warm-up. Drop the warm-up, or say Train.train_tokens and the Schedule's decay "
                "in the job's scope."
            )
        schedule = dataclasses.replace(
            schedule, decay_tokens=job.decay_tokens, decay_steps=job.decay_steps
        )
    elif schedule.phases[-1].steps is not None or schedule.phases[-1].tokens is not None:
        raise ValueError(
            f"Job.decay_tokens or decay_steps sets the end of the run, and the last of its Phases, "
            f"{schedule.phases[-1].name!r}, has a length of its own. Set its steps and tokens to "
            "None, or say Train.train_tokens and the phase's length in the job's scope."
        )
    return dataclasses.replace(train, train_tokens=begun.first_tokens + length, schedule=schedule)


def _differ(planned: Mapping[str, Planned]) -> None:
    """No two jobs are the same run."""
    seen: list[tuple[str, train_lib.Train]] = []
    for name, job in planned.items():
        train = dataclasses.replace(job.train, run_dir="", seed=0)  # no parameter is fresh
        note = ""
        if "rng" in train.start.parts:
            mixture = dataclasses.replace(train.data.mixture, seed=0)
            train = dataclasses.replace(
                train, data=dataclasses.replace(train.data, mixture=mixture)
            )
            note = " (Mixture.seed is the trunk's where Start keeps 'rng')"
        for there, other in seen:
            if other == train:
                raise JobError(
                    f"The jobs {there!r} and {name!r} are the same run{note}. Drop one, or bind "
                    f"what differs in the scope of the job: {name}/Class.field = value."
                )
        seen.append((name, train))
