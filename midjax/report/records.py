# SPDX-License-Identifier: Apache-2.0
"""What a report reads, with one clear error for each thing that is missing."""

import dataclasses
import functools
import json
import math
from typing import Any

from midjax import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory.

    Attributes:
      label: name in the report.
      folder: as given.
      metrics: one row per completed update, by step.
      events: in the order in which they happened.
      config: text of config.gin, else of config.json.
      evals: lines of evals.jsonl, in their order; none where nothing was measured.
      against: comparisons with a parent, by name.
    """

    label: str
    folder: str
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    config: str
    evals: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    against: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def sources(self) -> list[str]:
        """Names of the sources in the run's mixture, sorted."""
        names = {key.partition("/")[2] for row in self.metrics for key in row if "/" in key}
        return sorted(n for n in names if any(f"tokens/{n}" in row for row in self.metrics))

    def column(self, key: str) -> list[float]:
        """One number per row; NaN where there is none."""
        return [number(row.get(key)) for row in self.metrics]

    @property
    def start_tokens(self) -> float:
        """Tokens on the run's own count before its first row (0 unless the step was kept)."""
        first = self.metrics[0]
        return number(first["tokens"]) * (1 - 1 / first["step"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One eval result, a column of the comparison."""

    label: str
    path: str
    result: dict[str, Any]

    def value(self, domain: str, key: str) -> float:
        """A domain's number; NaN when the domain or the number is missing."""
        return number(self.result["domains"].get(domain, {}).get(key))


def number(value: Any) -> float:
    """A JSON number; null, absent and booleans are NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)


def read_run(label: str, folder: str) -> Run:
    """Reads a run directory.

    Raises:
      FileNotFoundError: a file that `midjax train` writes is not there.
      ValueError: a file is damaged, or the run has no completed update.
    """
    root = files.path(folder)
    metrics = _rows(label, folder, "metrics.jsonl")
    by_step = {row["step"]: row for row in metrics if isinstance(row.get("step"), int)}
    if not by_step:
        raise ValueError(
            f"Run {label!r} ({folder}/metrics.jsonl) has no completed update. Let `midjax train` "
            "run longer, or leave the run out of Report.runs."
        )
    for name in ("config.gin", "config.json"):
        if (root / name).exists():
            config = (root / name).read_text()
            break
    else:
        raise FileNotFoundError(_missing(label, f"{folder}/config.json"))
    return Run(
        label=label,
        folder=folder,
        metrics=[by_step[step] for step in sorted(by_step)],
        events=_rows(label, folder, "events.jsonl"),
        config=config,
        evals=_evaluations(root / "evals.jsonl"),
        against=[files.read_json(p) for p in sorted((root / "eval").glob("*.against.json"))],
    )


def read_column(label: str, path: str) -> Column:
    """Reads an eval result.

    Raises:
      FileNotFoundError: `midjax eval` did not write it yet.
      ValueError: the file is something else.
    """
    if not files.path(path).exists():
        raise FileNotFoundError(
            f"Report.columns: {path} (column {label!r}) does not exist. `midjax eval` makes it: "
            "it writes <run>/eval/<name>.json for Eval.run and Eval.name."
        )
    result = files.read_json(path)
    if not isinstance(result, dict) or not isinstance(result.get("domains"), dict):
        raise ValueError(
            f"Report.columns: {path} (column {label!r}) is not the result of `midjax eval`: it "
            "has no 'domains'."
        )
    return Column(label=label, path=path, result=result)


def read_export(path: str) -> dict[str, Any]:
    """Reads the result of an export.

    Raises:
      FileNotFoundError: `midjax export` did not write it yet.
    """
    if not files.path(path).exists():
        raise FileNotFoundError(
            f"Report.export: {path} does not exist. `midjax export` makes it; set Report.export "
            "to None for a report without it."
        )
    result = files.read_json(path)
    if not isinstance(result, dict):
        raise ValueError(f"Report.export: {path} is not the result of `midjax export`.")
    return result


def _rows(label: str, folder: str, name: str) -> list[dict[str, Any]]:
    """Rows of a JSON lines file. A torn last line, left by a kill, is not a row."""
    file = files.path(folder) / name
    if not file.exists():
        raise FileNotFoundError(_missing(label, f"{folder}/{name}"))
    found = []
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    for index, line in enumerate(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if index == len(lines) - 1:
                break
            raise ValueError(f"{folder}/{name}, line {index + 1}, is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{folder}/{name}, line {index + 1}, is not a JSON object: {line!r}")
        found.append(row)
    return found


def _evaluations(file: Any) -> list[dict[str, Any]]:
    """Lines of evals.jsonl. A line that a kill tore, which may be any, is none."""
    found = []
    for text in file.read_text().split("\n") if file.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("scores"), dict):
            found.append(line)
    return found


def _missing(label: str, path: str) -> str:
    return (
        f"Report.runs: {path} (run {label!r}) does not exist. `midjax train` makes it: give the "
        "Train.run_dir of a run that was started."
    )
