# SPDX-License-Identifier: Apache-2.0
"""What the runs did, from their metrics and events: arithmetic on rows, no drawing."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from midjax import files, units
from midjax.report import records

# Events that are shown elsewhere, or in such numbers that a count says more.
_COUNTED = ("checkpoint", "skipped", "goodput")
# What the metric `skipped` says.
_WHY_SKIPPED = {
    1: "updates whose loss or gradient was not finite",
    2: "updates that were spikes",
    3: "steps left out after a rollback",
}
_SHOWN_STEPS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive updates of one stage of the mixture.

    Attributes:
      first_step, last_step: updates, both included.
      first_token, last_token: on the run's own count.
      asked: weight in force by source, a share of tokens.
      seen: share of the loss-bearing tokens by source.
      tokens: loss-bearing tokens by source.
    """

    name: str
    first_step: int
    last_step: int
    first_token: float
    last_token: float
    asked: dict[str, float]
    seen: dict[str, float]
    tokens: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Total:
    """One source over a whole run. `epochs` includes those carried over from earlier runs."""

    source: str
    tokens: int
    rows: float
    epochs: float


def stages(run: records.Run) -> list[Stage]:
    """The stages of a run, from its stage events; without any, wherever the weights changed."""
    starts = _stage_starts(run)
    groups: list[tuple[str, list[dict[str, Any]]]] = []
    name, asked, previous = "", None, run.start_tokens
    before = {}
    sources = run.sources
    for row in run.metrics:
        now = [row.get(f"asked/{source}") for source in sources]
        if starts:
            new = max((step for step in starts if step <= row["step"]), default=None)
            wanted = starts[new] if new is not None else "before the first stage"
        else:
            wanted = name if now == asked else f"weights {len(groups) + 1}"
        if not groups or wanted != name:
            groups.append((wanted, []))
        name, asked = wanted, now
        groups[-1][1].append(row)
        before[row["step"]], previous = previous, records.number(row["tokens"])
    return [_stage(run, name, rows, before[rows[0]["step"]]) for name, rows in groups]


def _stage_starts(run: records.Run) -> dict[int, str]:
    """Step -> stage that begins with it; without those that another mixture did away with."""
    found: dict[int, str] = {}
    for event in run.events:
        if event.get("event") == "mixture_changed":
            found = {step: name for step, name in found.items() if step <= event["step"]}
        elif event.get("event") == "stage" and "step" in event:
            found[event["step"]] = str(event.get("name"))
    return found


def _stage(run: records.Run, name: str, rows: list[dict[str, Any]], first: float) -> Stage:
    tokens = {s: int(_sum(rows, f"tokens/{s}")) for s in run.sources}
    total = sum(tokens.values())
    asked = {s: _sum(rows, f"asked/{s}") / len(rows) for s in run.sources}
    return Stage(
        name=name,
        first_step=rows[0]["step"],
        last_step=rows[-1]["step"],
        first_token=first,
        last_token=records.number(rows[-1]["tokens"]),
        asked=asked,
        seen={s: count / total if total else math.nan for s, count in tokens.items()},
        tokens=tokens,
    )


def totals(run: records.Run) -> list[Total]:
    """Loss-bearing tokens, rows and epochs of each source."""
    last = run.metrics[-1]
    return [
        Total(
            source=source,
            tokens=int(_sum(run.metrics, f"tokens/{source}")),
            rows=records.number(last.get(f"rows/{source}")),
            epochs=records.number(last.get(f"epochs/{source}")),
        )
        for source in run.sources
    ]


def skipped(run: records.Run) -> list[tuple[str, list[int]]]:
    """Updates that were skipped: (why, steps) for each reason that there is."""
    found = []
    for number, why in _WHY_SKIPPED.items():
        if steps := [row["step"] for row in run.metrics if row.get("skipped") == number]:
            found.append((why, steps))
    return found


def overview(run: records.Run) -> dict[str, str]:
    """One line about a run: start, length, learning rate, speed, memory, goodput."""
    lr = [x for x in run.column("lr") if math.isfinite(x)]
    starts = _events(run, "start")
    updates = len(run.metrics)
    resumes = sum(event.get("kind") == "own" for event in starts)
    moved = records.number(run.metrics[-1]["tokens"]) - run.start_tokens
    return {
        "run": run.label,
        "start": _start_words(starts[0]) if starts else "not recorded",
        "updates": str(updates),
        "tokens": units.human(moved),
        "lr": f"{lr[0]:.3g} → {max(lr):.3g} → {lr[-1]:.3g}" if lr else "–",
        "speed": _median(run, "perf/tokens_per_second", lambda x: f"{units.human(x)} tokens/s"),
        "mfu": _median(run, "perf/mfu", lambda x: f"{x:.1%}"),
        "memory": _memory(run),
        "goodput": _goodput(run),
        "skipped": str(sum(len(steps) for _, steps in skipped(run))),
        "resumed": str(resumes),
    }


def seconds(run: records.Run) -> dict[str, float]:
    """Seconds of the run by bucket, over all of its processes, as it last said; empty if never."""
    told = [event.get("run_seconds") for event in _events(run, "goodput")]
    if not told or not isinstance(told[-1], dict):
        return {}
    found = {str(name): records.number(amount) for name, amount in told[-1].items()}
    found = {name: amount for name, amount in found.items() if amount > 0}
    return found if sum(found.values()) > 0 else {}


def _goodput(run: records.Run) -> str:
    found = seconds(run)
    if not found:
        return "–"
    whole = sum(found.values())
    return f"{found.get('step', 0.0) / whole:.0%} of {units.human_seconds(whole)}"


def _median(run: records.Run, key: str, words: Callable[[float], str]) -> str:
    known = [x for x in run.column(key) if math.isfinite(x)]
    return words(statistics.median(known)) if known else "–"


def _memory(run: records.Run) -> str:
    """The most that a device held; where that is not known, the host."""
    for key, where in (("perf/device_peak_bytes", ""), ("perf/host_peak_bytes", " (host)")):
        if known := [x for x in run.column(key) if math.isfinite(x)]:
            return f"{units.human_bytes(max(known))}{where}"
    return "–"


def _start_words(event: dict[str, Any]) -> str:
    words = str(event.get("kind"))
    if event.get("from"):
        words += f" from {event['from']}"
    if event.get("from_step") is not None:
        words += f", step {event['from_step']}"
    return words


def event_rows(run: records.Run) -> list[dict[str, str]]:
    """Events for people: when, what, details; checkpoints and skipped updates as one line each."""
    times = [records.number(event.get("time")) for event in run.events]
    zero = next((t for t in times if math.isfinite(t)), math.nan)
    found = []
    for event, time in zip(run.events, times, strict=True):
        name = str(event.get("event"))
        if name in _COUNTED:
            continue
        found.append(
            {
                "run": run.label,
                "after": units.human_seconds(time - zero) if math.isfinite(time - zero) else "",
                "step": "" if event.get("step") is None else str(event["step"]),
                "event": "resume" if name == "start" and event.get("kind") == "own" else name,
                "details": _details(name, event),
            }
        )
    saved = [event.get("step") for event in _events(run, "checkpoint")]
    if saved:
        words = f"{len(saved)} written, the newest at step {saved[-1]}"
        found.append(_line(run.label, "checkpoints", words))
    for why, steps in skipped(run):
        shown = ", ".join(map(str, steps[:_SHOWN_STEPS]))
        more = ", ..." if len(steps) > _SHOWN_STEPS else ""
        words = f"{why}: {len(steps)} (step {shown}{more})"
        found.append(_line(run.label, "skipped", words))
    return found


def _line(label: str, event: str, details: str) -> dict[str, str]:
    return {"run": label, "after": "", "step": "", "event": event, "details": details}


def _details(name: str, event: dict[str, Any]) -> str:
    if name == "start":
        words = [_start_words(event)]
        for key, text in (("lr_in_force", "rate at the source"), ("first_lr", "first rate")):
            if math.isfinite(records.number(event.get(key))):
                words.append(f"{text} {event[key]:.4g}")
        parts = event.get("parts")
        if isinstance(parts, dict):
            for verb in ("keep", "reset"):
                if chosen := [part for part, what in parts.items() if what == verb]:
                    words.append(f"{verb}: {', '.join(chosen)}")
        return "; ".join(words)
    if name == "stage" and isinstance(event.get("weights"), dict):
        weights = ", ".join(f"{k} {w:.1%}" for k, w in sorted(event["weights"].items()))
        return f"{event.get('name')}: {weights}"
    rest = {k: v for k, v in event.items() if k not in ("event", "time", "step")}
    return ", ".join(f"{key} {value}" for key, value in rest.items())[:300]


def offsets(runs: Sequence[records.Run]) -> dict[str, float]:
    """Tokens that come before each run's own count, by label.

    A run that started from another run of the report is placed where it left that one; others
    start at 0.
    """
    by_folder = {_absolute(run.folder): run for run in runs}
    found: dict[str, float] = {}

    def offset(run: records.Run, below: frozenset[str]) -> float:
        if run.label in found:
            return found[run.label]
        start = next((e for e in _events(run, "start") if e.get("kind") != "own"), {})
        parent = _parent(by_folder, start.get("from"))
        value = 0.0
        if parent is not None and parent.label not in below | {run.label}:
            left = _tokens_at(parent, start.get("from_step"))
            value = offset(parent, below | {run.label}) + left - run.start_tokens
        found[run.label] = value
        return value

    for run in runs:
        offset(run, frozenset())
    return found


def _parent(by_folder: dict[str, records.Run], source: Any) -> records.Run | None:
    if not isinstance(source, str):
        return None
    path = _absolute(source)
    matching = [f for f in by_folder if path == f or path.startswith(f + "/")]
    return by_folder[max(matching, key=len)] if matching else None


def _absolute(folder: str) -> str:
    path = files.path(folder)
    return str(path if "://" in folder else path.resolve()).rstrip("/")


def _tokens_at(run: records.Run, step: Any) -> float:
    at = [row for row in run.metrics if step is None or row["step"] <= step]
    return records.number(at[-1]["tokens"]) if at else run.start_tokens


def _events(run: records.Run, name: str) -> list[dict[str, Any]]:
    return [event for event in run.events if event.get("event") == name]


def _sum(rows: Sequence[dict[str, Any]], key: str) -> float:
    return math.fsum(x for x in (records.number(row.get(key)) for row in rows) if math.isfinite(x))
