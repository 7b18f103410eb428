# SPDX-License-Identifier: Apache-2.0
"""The time of a run that several processes worked on, each a session.

    events.jsonl of the sessions before --read--> [Session] --settled--> seconds by bucket
                                                                             | + this session's
    Stopwatch ------------------------------------------------> Account ----> event "goodput"

A session says how far it is when it begins, at each checkpoint and when it ends. What a session
did after the step from which the next one goes on is `lost`, all of it, whatever bucket it was in;
the time from its last sign of life, an event or a row of metrics, to the start of the next process
is `down`. A process that ended before its first update is part of that.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

from midjax import files, units
from midjax.distributed import group
from midjax.train import goodput

ROW_TIME = "perf/time"  # see `speed`
_TAIL_BYTES = 1 << 17  # holds the last row, also of a run with hundreds of sources


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """A process that worked on a run.

    Attributes:
      began: seconds since 1970.
      end: its last sign of life, likewise.
      points: (step, seconds by bucket until then), in the order in which they were written.
    """

    began: float
    end: float
    points: tuple[tuple[int, dict[str, float]], ...]


class Account:
    """What the run has cost so far, of which this process is the newest session.

    Make it before the journal, which removes rows that will be computed again; and once more where
    the process goes back to an earlier checkpoint: its own steps since then are lost.

    Args:
      run_dir: of the run; its files are read as the last session left them.
      watch: of this process.
      first_step: from which this session goes on.

    Attributes:
      step: updates done, as the loop says. If the run goes on from here, nothing so far is lost.
      skipped_updates: those of this session, likewise. Their time is in `step`.
    """

    def __init__(self, run_dir: str, watch: goodput.Stopwatch, *, first_step: int) -> None:
        self.step, self.skipped_updates = first_step, 0
        self._watch = watch
        found = read(run_dir) if group.is_first() else []  # others tell nothing
        self._before = [session for session in found if session.began != round(watch.began, 3)]
        if len(self._before) < len(found):
            watch.rolled_back(first_step)
        self._past = settled(self._before, first_step)
        watch.saved(first_step)

    def seconds(self) -> dict[str, float]:
        """Of the whole run until now, by bucket."""
        now = self._watch.seconds() | {"down": 0.0}
        if self._before:
            now["down"] = max(self._watch.began - self._before[-1].end, 0.0)
        return {name: self._past[name] + amount for name, amount in now.items()}

    def fields(self, *, final: bool = False) -> dict[str, Any]:
        """The fields of an event "goodput"; `final` for the last one of a session."""
        run = self.seconds()
        return {
            "step": self.step,
            "goodput": share(run),
            "run_seconds": _rounded(run),
            "session": len(self._before) + 1,
            "session_began": round(self._watch.began, 3),
            "session_seconds": _rounded(self._watch.seconds()),
            "previous_end": self._before[-1].end if self._before else None,
            "skipped_updates": self.skipped_updates,
            "final": final,
        }

    def sentence(self) -> str:
        """`goodput 93 % of 12m03s: step 11m12s, compile 20s, ...`"""
        run = self.seconds()
        parts = [f"{name} {units.human_seconds(s)}" for name, s in run.items() if s >= 0.5]
        whole = units.human_seconds(sum(run.values()))
        return f"goodput {share(run):.0%} of {whole}: {', '.join(parts)}"


def share(seconds: dict[str, float]) -> float:
    """Goodput: the share of `step` in all of the time."""
    return seconds["step"] / max(sum(seconds.values()), 1e-9)


def settled(sessions: Sequence[Session], first_step: int) -> dict[str, float]:
    """Seconds by bucket from the first session's start to the last one's end.

    Args:
      sessions: oldest first.
      first_step: from which a session after them goes on.
    """
    total = dict.fromkeys((*goodput.BUCKETS, "down"), 0.0)
    kept = first_step
    for session in reversed(sessions):
        found = [seconds for step, seconds in session.points if step <= kept]
        seconds = found[-1] if found else {}
        for name, amount in seconds.items():
            total[name] += amount
        total["lost"] += max(session.end - session.began - sum(seconds.values()), 0.0)
        kept = min(kept, *(step for step, _ in session.points))
    for one, other in itertools.pairwise(sessions):
        total["down"] += max(other.began - one.end, 0.0)
    return total


def read(run_dir: str) -> list[Session]:
    """The sessions of a run, oldest first; lines that a kill tore are passed over."""
    folder = files.path(run_dir)
    events = _objects(folder / "events.jsonl")
    found: list[list[dict[str, Any]]] = []
    for event in events:
        if event.get("event") == "goodput":
            if not found or found[-1][0]["session_began"] != event["session_began"]:
                found.append([])
            found[-1].append(event)
    sessions = []
    for index, own in enumerate(found):
        last = own[-1]
        if last["final"]:
            end = last["session_began"] + sum(last["session_seconds"].values())
        elif index + 1 < len(found):
            end = found[index + 1][0]["previous_end"]
        else:
            rows = _objects(folder / "metrics.jsonl", tail=True)
            signs = [events[-1].get("time"), *(row.get(ROW_TIME) for row in rows[-1:])]
            end = max(sign for sign in [last["time"], *signs] if isinstance(sign, int | float))
        points = tuple((event["step"], event["session_seconds"]) for event in own)
        sessions.append(Session(began=last["session_began"], end=end, points=points))
    return sessions


def _objects(path: Any, *, tail: bool = False) -> list[dict[str, Any]]:
    """The JSON objects of a file, a line each."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        if tail:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        lines = file.read().decode(errors="replace").splitlines()
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [each for each in found if isinstance(each, dict)]


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(amount, 3) for name, amount in seconds.items()}
