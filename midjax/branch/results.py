# SPDX-License-Identifier: Apache-2.0
"""What the folders of jobs say of them: `branches.json`, and the same as a table."""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from midjax import files, units
from midjax.branch import jobs as jobs_lib

FILE = "branches.json"
# One batch's loss is noise: the table has the mean over this share of the updates, at the end.
LAST_SHARE = 0.05
# Updates of the trunk whose speed tells how long a job will take.
_SPEED_ROWS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One job, as its folder has it.

    Attributes:
      name, run_dir: of the job.
      trunk, from_step, from_tokens: where it starts; tokens of the trunk, None where not known.
      steps, tokens: of the job, from the trunk on.
      seed: of the data order that the recipe asks for; where `Start` keeps "rng" it is the trunk's.
      state: "finished", "unfinished" (it has a checkpoint to go on from) or "waiting".
      step: of its newest checkpoint, on its own count; None without one.
      final_lr: rate of its last update so far; None before the first.
      loss, loss_by_source: nats per token, mean over `last_updates`; None where there is nothing.
      last_updates: how many updates that is: the last twentieth of the job.
      error: why it failed when it was last run; None if it did not.
    """

    name: str
    run_dir: str
    trunk: str
    from_step: int
    from_tokens: int | None
    steps: int
    tokens: int
    seed: int
    state: Literal["finished", "unfinished", "waiting"]
    step: int | None
    final_lr: float | None
    loss: float | None
    loss_by_source: dict[str, float | None]
    last_updates: int
    error: str | None


def read(job: jobs_lib.Planned, error: str | None) -> Result:
    """What a job's folder says now."""
    start = job.train.start
    rows = _rows(job.train.run_dir)
    last = rows[-math.ceil(job.steps * LAST_SHARE) :]
    by_source = {name: _mean(last, [name]) for name in job.train.data.mixture.names}
    step = job.done_step
    return Result(
        name=job.name,
        run_dir=job.train.run_dir,
        trunk=str(start.run),
        from_step=job.from_step,
        from_tokens=job.from_tokens,
        steps=job.steps,
        tokens=job.tokens,
        seed=job.train.data.mixture.seed,
        state="finished" if job.finished else "waiting" if step is None else "unfinished",
        step=step,
        final_lr=rows[-1].get("lr") if rows else None,
        loss=_mean(last, list(by_source)),
        loss_by_source=by_source,
        last_updates=len(last),
        error=error,
    )


def write(output: str, results: Sequence[Result]) -> None:
    """Writes `branches.json`."""
    record = {"jobs": [dataclasses.asdict(result) for result in results]}
    files.write_json(files.path(output) / FILE, record)


def errors(output: str) -> dict[str, str]:
    """Job -> why it failed, as `branches.json` has it."""
    place = files.path(output) / FILE
    found = files.read_json(place)["jobs"] if place.exists() else []
    return {row["name"]: row["error"] for row in found if row["error"]}


def table(results: Sequence[Result]) -> str:
    """A row per job: what it is, and how it ended."""
    names = sorted({name for result in results for name in result.loss_by_source})
    head = ["job", "from step", "steps", "tokens", "final lr", "loss", *names, "state", "run"]
    lines = [
        [
            result.name,
            str(result.from_step),
            str(result.steps),
            units.human(result.tokens),
            _number(result.final_lr, ".4g"),
            _number(result.loss, ".4f"),
            *(_number(result.loss_by_source.get(name), ".4f") for name in names),
            "FAILED" if result.error else _state(result),
            result.run_dir,
        ]
        for result in results
    ]
    return _columns(head, lines)


def _state(result: Result) -> str:
    done = result.state == "unfinished"
    return f"at step {result.step}" if done else result.state


def listing(planned: Mapping[str, jobs_lib.Planned], trunk: str) -> str:
    """The list before it runs: a row per job, and what they cost together."""
    speed = tokens_per_second(trunk)
    head = ["job", "from step", "at tokens", "steps", "tokens", "first lr", "last lr", "seed"]
    head += ["time", "state", "run"]
    lines, total = [], 0
    for job in planned.values():
        total += job.tokens
        lines.append(
            [
                job.name,
                str(job.from_step),
                "?" if job.from_tokens is None else units.human(job.from_tokens),
                str(job.steps),
                units.human(job.tokens),
                *(f"{rate:.4g}" for rate in job.rates()),
                _seed(job),
                "?" if speed is None else units.human_seconds(job.tokens / speed),
                "finished" if job.finished else "waiting" if not job.done_step else "unfinished",
                job.train.run_dir,
            ]
        )
    shared = [job.from_tokens or 0 for job in planned.values()]
    said = f"{len(lines)} decays of {trunk}: {units.human(total)} tokens"
    if speed is not None:
        said += f", {units.human_seconds(total / speed)} at the trunk's {units.human(speed)}"
        said += " tokens/s"
    if all(shared):
        saved = sum(shared) - max(shared)
        said += f"; {units.human(saved)} tokens less than as many runs from the beginning"
    return f"{_columns(head, lines)}\n{said}"


def _seed(job: jobs_lib.Planned) -> str:
    kept = "rng" in job.train.start.parts
    return "trunk's" if kept else str(job.train.data.mixture.seed)


def tokens_per_second(run_dir: str) -> float | None:
    """Median speed of a run's newest updates, padding included; None where nothing says it."""
    rows = _rows(run_dir)[-_SPEED_ROWS - 1 :]
    speeds = [
        (row["tokens"] - before["tokens"]) / row["perf/step_seconds"]
        for before, row in itertools.pairwise(rows)
        if row.get("perf/step_seconds") and row["tokens"] > before["tokens"]
    ]
    return statistics.median(speeds) if speeds else None


def _rows(run_dir: str) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a torn last line is none."""
    place = files.path(run_dir) / "metrics.jsonl"
    found = []
    for line in place.read_text().splitlines() if place.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _mean(rows: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> float | None:
    """Nats per token of some sources over some updates, every token counted alike."""
    pairs = [
        (row[f"loss/{name}"], row[f"tokens/{name}"])
        for row in rows
        for name in sources
        if row.get(f"loss/{name}") is not None
    ]
    tokens = sum(n for _, n in pairs)
    return sum(loss * n for loss, n in pairs) / tokens if tokens else None


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _columns(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Names and places to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    left = {0, len(head) - 1}
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if i in left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [head, *lines]
    )
