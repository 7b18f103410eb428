# SPDX-License-Identifier: Apache-2.0
"""The run that decays branch off: its checkpoints, and whether its rate was held at each."""

import dataclasses
import functools
from typing import Any

from midjax import checkpoint, log
from midjax.train import prepare, recipe
from midjax.train import start as start_lib
from midjax.train import timeline as timeline_lib
from midjax.train.schedules import curve as curve_lib


class TrunkError(ValueError):
    """A job cannot start from the trunk."""


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A run directory with checkpoints. Reads JSON only.

    Attributes:
      run: its folder.
      train: its recipe; None where it is not a run of `train`, such as an import.
    """

    run: str
    train: recipe.Train | None

    def __post_init__(self) -> None:
        if not self.steps:
            raise TrunkError(
                f"The trunk {self.run!r} (Start.run) holds no finished checkpoint (looked in "
                f"{checkpoint.folder(self.run)}). Train it first, or name another run."
            )
        if self.train is None:
            log.say(
                f"{self.run} is no run of `midjax train`: whether its rate was held where the jobs "
                "start is not known"
            )

    @functools.cached_property
    def steps(self) -> list[int]:
        """Steps of its checkpoints, oldest first."""
        return checkpoint.steps(self.run)

    @functools.cached_property
    def _facts(self) -> dict[int, dict[str, Any]]:
        return {}

    def facts(self, step: int) -> dict[str, Any]:
        """`checkpoint.read_facts`, once.

        Raises:
          TrunkError: there is no such checkpoint.
          checkpoint.DamagedError: it is damaged.
        """
        if step not in self.steps:
            raise TrunkError(
                f"Start.step = {step}, and the trunk {self.run!r} holds the steps {self.steps}."
            )
        if step not in self._facts:
            self._facts[step] = checkpoint.read_facts(self.run, step)
        return self._facts[step]

    def tokens(self, step: int) -> int | None:
        """Tokens that it had seen; None where the checkpoint does not say."""
        data = self.facts(step)["data"]
        return data["next_row"] * data["row_tokens"] if data else None

    def step_at(self, tokens: int) -> int:
        """The step of the checkpoint with exactly so many tokens.

        Raises:
          TrunkError: there is none; says which there are.
        """
        found = {self.tokens(step): step for step in self.steps}
        if tokens not in found:
            there = ", ".join(f"{n} (step {step})" for n, step in found.items())
            raise TrunkError(
                f"Job.from_tokens = {tokens}, and the trunk {self.run!r} has checkpoints at these "
                f"tokens: {there}."
            )
        return found[tokens]

    def unstable(self, step: int) -> str | None:
        """Why a checkpoint does not lie in a stable phase; None if it does, or is not known to."""
        if self.train is None:
            return None
        origin = self.origin(step, "resume", frozenset(start_lib.PARTS))
        timeline = timeline_lib.of(self.train.data, self.train.train_tokens, origin)
        curve = prepare.schedule(self.train, origin, timeline)
        return _unstable(curve, timeline.first_count)

    def origin(self, step: int, kind: str, parts: frozenset[start_lib.Part]) -> start_lib.Origin:
        """What a run that starts from a checkpoint starts from."""
        facts = self.facts(step)
        return start_lib.Origin(
            kind=kind,
            run=self.run,
            step=step,
            parts=parts,
            data=facts["data"],
            manifest=facts["manifest"],
            huggingface=None,
        )


def _unstable(curve: curve_lib.Curve, count: int) -> str | None:
    """`Trunk.unstable` of the state after `count` updates of a schedule.

    Stable: the last update was of a phase that holds its rate, or ended a rise to one that does.
    """
    last, coming = _span(curve, count - 1), _span(curve, count)
    rising = last is not None and last.start_lr < last.end_lr
    if last is not None and last.kind == "hold":
        return None
    if rising and coming is not None and coming.kind == "hold":
        return None
    rates = f"its last update had the rate {curve.lr(count - 1):.6g}"
    if last is None:
        return f"it is past the end of its schedule; {rates}"
    place = "inside" if coming is last else "at the end of"
    return f"it is {place} its phase {last.name!r}; {rates}"


def _span(curve: curve_lib.Curve, update: int) -> curve_lib.Span | None:
    found = [s for s in curve.spans if s.first_update <= update <= s.last_update]
    return found[0] if found else None
