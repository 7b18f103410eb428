# SPDX-License-Identifier: Apache-2.0
"""A result of `midjax eval` as a table for the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A line per domain, task and group: of tasks the primary metric, and what to know of it."""
    rows = [("", "metric", "score", "documents", "")]
    for name, domain in result["domains"].items():
        bits = _number(domain["bits_per_byte"])
        rows.append((name, "bits_per_byte", bits, str(domain["documents"]), ""))
    for name, task in result["tasks"].items():
        metric = task["primary"]
        value = _number(task.get("macro", task["metrics"])[metric])
        rows.append((name, metric, value, str(task["documents"]), _notes(task)))
    for name, group in result["groups"].items():
        for metric, value in group["macro"].items():
            note = f"mean of {_members(group, metric)} tasks"
            rows.append((name, metric, _number(value), "", note))
    if len(rows) == 1:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for name, metric, score, documents, note in rows:
        cells = (
            name.ljust(widths[0]),
            metric.ljust(widths[1]),
            score.rjust(widths[2]),
            documents.rjust(widths[3]),
            note,
        )
        yield "  " + "  ".join(cells).rstrip()


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _members(group: Mapping[str, Any], metric: str) -> int:
    """How many members a group's mean is over."""
    own = (title for member in group["members"].values() for title in member)
    return sum(title == metric or (metric == "acc" and title.startswith("acc")) for title in own)


def _notes(task: Mapping[str, Any]) -> str:
    """What a reader of the score should know."""
    counts = task["counts"]
    found = []
    if left_out := sum(counts["left out"].values()):
        found.append(f"{left_out} documents left out ({', '.join(counts['left out'])})")
    if counts["cut requests"]:
        found.append(f"{counts['cut requests']} prompts cut")
    if counts["texts cut"]:
        found.append(f"{counts['texts cut']} texts not ended")
    for key in ("fewer examples", "other examples", "empty", "no answer", "not finite"):
        if counts.get(key):
            found.append(f"{counts[key]} {key}")
    if "verdicts" in counts:
        found += [f"{number} {verdict}" for verdict, number in counts["verdicts"].items()]
    return ", ".join(found)
