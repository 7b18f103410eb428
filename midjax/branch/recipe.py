# SPDX-License-Identifier: Apache-2.0
"""The root of the verb `branch`: a list of decays from one trunk."""

import dataclasses
import re

from midjax.train import recipe as recipe_lib

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", flags=re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One decay.

    Attributes:
      train: its recipe. `Train.run_dir` is the folder of all jobs, `Start.run` the trunk and
        `Start.step` its checkpoint; None is the newest when the job's files are first written.
      decay_tokens, decay_steps: length of the run from the trunk's checkpoint to its end; both None
        leave the recipe's own. A `Schedule` decays all the way; of `Phases` the last must have no
        length, and takes what the others leave.
      from_tokens: tokens that the trunk had seen at the checkpoint to start from, in the place of
        `Start.step`.
      allow_unstable: lets the job start where the trunk's rate was not held: in a warm-up, in a
        decay or after one.
    """

    train: recipe_lib.Train
    decay_tokens: int | None = None
    decay_steps: int | None = None
    from_tokens: int | None = None
    allow_unstable: bool = False

    def __post_init__(self) -> None:
        given = [n for n in (self.decay_tokens, self.decay_steps) if n is not None]
        if len(given) > 1 or any(n < 1 for n in given):
            raise ValueError(
                "Job: give decay_tokens or decay_steps, 1 or more, or neither for the recipe's own "
                f"length, got {self.decay_tokens} and {self.decay_steps}."
            )
        start = self.train.start
        if self.from_tokens is not None and start.step is not None:
            raise ValueError(
                f"Job: both from_tokens = {self.from_tokens} and Start.step = {start.step} name "
                "the trunk's checkpoint. Keep one."
            )
        if start.run is None or "moments" not in start.parts:
            raise ValueError(
                f"Job: a decay goes on from a trunk with its moments, and Start.kind = "
                f"{start.kind!r}, Start.run = {start.run!r} does not. Use 'anneal' (the step "
                "begins anew) or 'resume' (everything goes on), and name the trunk in Start.run."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    """Decays from one trunk.

    Attributes:
      jobs: name -> job. It runs in the folder of that name in `Train.run_dir`.
    """

    jobs: dict[str, Job]

    def __post_init__(self) -> None:
        if not self.jobs:
            raise ValueError("Branch.jobs is empty. Give at least one.")
        if bad := [name for name in self.jobs if not _NAME.fullmatch(name)]:
            raise ValueError(
                f"Branch.jobs: {bad} cannot be names of folders: letters, digits, '_', '-' and '.'."
            )
        for field, values in (
            ("Train.run_dir", [job.train.run_dir for job in self.jobs.values()]),
            ("Start.run", [job.train.start.run for job in self.jobs.values()]),
        ):
            if len(set(values)) > 1:
                raise ValueError(
                    f"Branch.jobs: {field} must be the same for all jobs, got "
                    f"{sorted(set(map(str, values)))}. One list has one folder and one trunk."
                )

    @property
    def output(self) -> str:
        """Folder of all jobs."""
        return next(iter(self.jobs.values())).train.run_dir

    @property
    def trunk(self) -> str:
        """Run directory that all jobs start from."""
        run = next(iter(self.jobs.values())).train.start.run
        assert run is not None, "Job refuses it"
        return run
