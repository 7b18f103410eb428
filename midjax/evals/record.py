# SPDX-License-Identifier: Apache-2.0
"""A run's evaluations in one file: RUN/evals.jsonl, a line per evaluation, in the order they ended.

    {"step", "name", "weights", "time", "scores": {"domain/prose/bits_per_byte": 1.2345,
                                                   "task/arc_easy_rc/acc_per_char": 0.25, ...}}

Nothing is replaced: where a name, a step and weights have several lines, the last one counts, for
every reader (`latest`). A score that is not finite is null. "time" is in seconds since 1970.
"""

import json
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from midjax import files, log

FILE = "evals.jsonl"


def scores(result: Mapping[str, Any]) -> dict[str, float | None]:
    """All figures of a result of `midjax eval`, by flat names.

    "domain/DOMAIN/bits_per_byte", "task/TASK/METRIC" and "group/GROUP/macro/METRIC". Of a task with
    subsets it is the mean over subsets of their means, as such tasks are reported. Of long tasks
    "long/TASK/TOKENS/score" and "first", and the same of their "mean".
    """
    found: dict[str, float | None] = {}
    for name, domain in (result.get("domains") or {}).items():
        found[f"domain/{name}/bits_per_byte"] = domain["bits_per_byte"]
    for name, task in (result.get("tasks") or {}).items():
        for metric, value in task.get("macro", task["metrics"]).items():
            found[f"task/{name}/{metric}"] = value
    for name, group in (result.get("groups") or {}).items():
        for metric, value in group["macro"].items():
            found[f"group/{name}/macro/{metric}"] = value
    long_tasks = result.get("long_tasks") or {"cells": [], "means": []}
    for cell in (*long_tasks["cells"], *({"task": "mean"} | one for one in long_tasks["means"])):
        for metric in ("score", "first"):
            if metric in cell:
                found[f"long/{cell['task']}/{cell['row_tokens']}/{metric}"] = cell[metric]
    return found


def append(
    folder: str, *, step: int, name: str, weights: str, scores: Mapping[str, float | None]
) -> None:
    """Adds a line, whole or not at all, from process 0.

    Args:
      folder: the run directory, or the output folder of an evaluation without one.
      step, name, weights: as of the result.
      scores: by flat names, see `scores`.
    """
    if jax.process_index() != 0:
        return
    plain = {key: _finite(value) for key, value in scores.items()}
    line = {
        "step": step,
        "name": name,
        "weights": weights,
        "time": round(time.time(), 3),
        "scores": plain,
    }
    data = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
    target = files.path(folder) / FILE
    if files.is_remote(target):  # nothing can be appended to an object
        files.write_bytes(target, (target.read_bytes() if target.exists() else b"") + data)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.read_bytes()[-1:] not in (b"", b"\n"):
        data = b"\n" + data  # behind what a kill tore
    # One write to a file opened for appending: lines of two processes do not mix.
    with target.open("ab") as file:
        file.write(data)


def read(folder: str) -> list[dict[str, Any]]:
    """All lines in their order; none where there is no such file.

    Lines that are not whole are left out, and that is said.
    """
    target = files.path(folder) / FILE
    if not target.exists():
        return []
    found, torn = [], 0
    for text in target.read_bytes().decode(errors="replace").split("\n"):
        if not text:
            continue
        try:
            line = json.loads(text)
            (line["step"], line["name"], line["weights"], line["scores"].items())
        except (ValueError, KeyError, TypeError, AttributeError):
            torn += 1
        else:
            found.append(line)
    if torn:
        log.say(f"{target}: {torn} lines are not whole, and not read.")
    return found


def latest(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of lines with the same name, step and weights the last one; sorted by step, then by name."""
    found = {(line["step"], line["name"], line["weights"]): line for line in lines}
    return [found[key] for key in sorted(found)]


def remove_after(folder: str, names: Iterable[str], step: int) -> None:
    """Takes away lines of these names that are of later steps: they will be measured again."""
    target, own = files.path(folder) / FILE, set(names)
    if not target.exists():
        return
    lines = read(folder)
    kept = [line for line in lines if line["name"] not in own or line["step"] <= step]
    if len(kept) < len(lines):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        files.write_text(target, text)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
