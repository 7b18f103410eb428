# SPDX-License-Identifier: Apache-2.0
"""A run whose end is moved: more tokens, and phases appended to its schedule.

What was done stays what it was: every update done has the same rate under both schedules, and the
rows that were read are the same or the mixture is a new stage from here on (train/continuity.py).
So the run ends as one that had the longer recipe from the beginning.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from midjax import files, log
from midjax.train import continuity, prepare, recipe, timeline
from midjax.train import start as start_lib
from midjax.train.schedules import curve as curve_lib

# What may change with the end, besides what any resume may change.
LOOSE = ("train_tokens", "schedule")
_UPDATES_AT_ONCE = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extension:
    """What is said of it.

    Attributes:
      step: updates done.
      old_tokens, new_tokens: `Train.train_tokens` before and now.
      next_lr: rate of the next update.
      lr_jump: see `continuity.learning_rate`.
    """

    step: int
    old_tokens: int
    new_tokens: int
    next_lr: float
    lr_jump: Mapping[str, Any] | None


def asked(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a recipe that would resume a run moves its end or changes its schedule.

    Args:
      old, new: as plain JSON: an older midjax may have written what this one no longer loads.
    """
    return any(old.get(name) != new.get(name) for name in ("train_tokens", "schedule"))


def check(old: recipe.Train, new: recipe.Train) -> Extension:
    """An extension that changes nothing of what was done.

    Args:
      old: the recipe of the run so far.
      new: what is asked for, in the same run directory, which holds a checkpoint.

    Raises:
      StartError: it is no extension, or an update that was done would have another rate.
      ValueError: the phases do not fit the run.
    """
    origin = start_lib.choose(new.start, new.run_dir)
    assert origin.kind == "own" and origin.step is not None
    where = f"{new.run_dir}, step {origin.step}"
    if new.train_tokens <= old.train_tokens:
        raise start_lib.StartError(
            f"{where}: the schedule of a run changes only where the run gets longer, and "
            f"Train.train_tokens was {old.train_tokens} and is {new.train_tokens}. Raise it, or "
            "start in a new folder."
        )
    before, after = _curve(old, origin), _curve(new, origin)
    count = int(origin.manifest["schedule_count"])
    if (update := _first_difference(before, after, count)) is not None:
        raise start_lib.StartError(
            f"{where}: the run cannot be extended by this schedule: update {update + 1} was done "
            f"at the rate {before.lr(update):.6g} and would have had {after.lr(update):.6g}. Keep "
            "the phases that are done as they were and append others (Train.schedule = "
            "@Phases()), or begin a new run with Start.run."
        )
    factor = prepare.batch_factor(after, origin, count)
    jump = continuity.learning_rate(origin, new.start, after.lr(count), factor)
    return Extension(
        step=origin.step,
        old_tokens=old.train_tokens,
        new_tokens=new.train_tokens,
        next_lr=after.lr(count),
        lr_jump=jump,
    )


def _curve(config: recipe.Train, origin: start_lib.Origin) -> curve_lib.Curve:
    line = timeline.of(config.data, config.train_tokens, origin)
    return prepare.schedule(config, origin, line)


def _first_difference(before: curve_lib.Curve, after: curve_lib.Curve, count: int) -> int | None:
    """The first update below `count` that has another rate, to the last bit."""
    edges = [*range(0, count, _UPDATES_AT_ONCE), count]
    for first, stop in itertools.pairwise(edges):
        updates = np.arange(first, stop)
        different = np.flatnonzero(before.lrs(updates) != after.lrs(updates))
        if different.size:
            return first + int(different[0])
    return None


def record(extension: Extension, run_dir: str) -> None:
    """Keeps `config.json` as `config.<step>.json`, and says it: a line, the event `run_extended`.

    Call it before the new configuration is saved.
    """
    folder = files.path(run_dir)
    kept = folder / f"config.{extension.step}.json"
    if not kept.exists():  # else an extension was changed before its first checkpoint
        files.write_bytes(kept, (folder / "config.json").read_bytes())
    log.say(
        f"the run is EXTENDED at step {extension.step}: {extension.old_tokens} -> "
        f"{extension.new_tokens} tokens; the rates of the updates done are unchanged, the next one "
        f"is {extension.next_lr:.6g}; its configuration up to here: {kept}"
    )
    with log.Journal(run_dir, step=extension.step, is_writer=True) as journal:
        journal.event("run_extended", **dataclasses.asdict(extension))
