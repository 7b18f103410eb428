# SPDX-License-Identifier: Apache-2.0
"""Which documents stand before a question as examples; `render` renders them.

task file: a list --------------------------+
task file: hashes, pool: the train split ---+--> listed: the same before all questions
pool --first, one draw, a draw each (seed)--------> Examples.of(document)
"""

import collections
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from midjax import files, log
from midjax.evals import task as tasks
from midjax.evals import task_data, template

Fields = Callable[[task_data.Document], Mapping[str, Any]]


def subsets(documents: Sequence[task_data.Document]) -> list[str]:
    """The subsets that the documents are of, in their order."""
    return list(dict.fromkeys(document.subset for document in documents))


def of_subset(documents: Sequence[task_data.Document], subset: str) -> list[task_data.Document]:
    """The documents of one subset."""
    return [document for document in documents if document.subset == subset]


def listed(
    task: tasks.Task,
    pool: Sequence[task_data.Document],
    count: int,
    fields: Fields,
    noted: collections.Counter[str],
) -> list[task_data.Document]:
    """The examples that the task's file lists or names, the same before every document.

    Args:
      pool: of `shots.split`.
      count: how many.
      fields: what the task's templates read of a document.
      noted: counts "other examples", see `render.instances`.

    Raises:
      ValueError: there are fewer, or the pool has not all that are named.
    """
    shots = task.shots
    if shots.file or shots.take not in ("list", "picked"):
        return []
    there = shots.examples if shots.take == "list" else shots.picked
    if count > len(there):
        raise ValueError(f"{task.name} lists {len(there)} examples, {count} asked.")
    if shots.take == "picked":
        return _picked(task, pool, count, fields, noted) if count else []
    return [
        task_data.Document(id=f"example {number}", subset="", fields=record)
        for number, record in enumerate(shots.examples[:count])
    ]


def _picked(
    task: tasks.Task,
    pool: Sequence[task_data.Document],
    count: int,
    fields: Fields,
    noted: collections.Counter[str],
) -> list[task_data.Document]:
    shots = task.shots
    named = template.Expression(shots.pick, f"{task.name}: shots.pick")
    content = template.Expression(shots.content, f"{task.name}: shots.content")
    wanted = [one.split("-") for one in shots.picked[:count]]
    by_name: dict[str, list[task_data.Document]] = {name: [] for name, _ in wanted}
    for document in pool:
        by_name.get(digest(named(document.fields)), []).append(document)
    if missing := [number for number, (name, _) in enumerate(wanted, 1) if not by_name[name]]:
        raise ValueError(
            f"{task.name}: the split {shots.split!r} has {len(pool)} documents, and its examples "
            f"number {missing} are not among them. Give the whole public split, or ask without "
            "examples: Tasks.shots = 0."
        )
    found = []
    for name, shown in wanted:
        same = [d for d in by_name[name] if digest(content(fields(d))) == shown]
        noted["other examples"] += not same
        found += (same or by_name[name])[:1]
    if other := noted["other examples"]:
        log.say(
            f"{task.name}: {other} of {count} examples are there, with other words than those of "
            "the published prompts: scores may differ a little from published ones."
        )
    return found


def digest(value: Any) -> str:
    """As `Shots.picked` has it."""
    return files.sha256(json.dumps(value, ensure_ascii=False).encode())[:16]


class Examples:
    """Which documents stand before which."""

    def __init__(
        self,
        task: tasks.Task,
        pool: Sequence[task_data.Document],
        count: int,
        listed: list[task_data.Document],
    ) -> None:
        self._task, self.count = task, count
        self._pool = {subset: of_subset(pool, subset) for subset in subsets(pool)}
        self._listed = listed
        self._random: dict[str, random.Random] = {}
        self._once: dict[str, list[task_data.Document]] = {}
        # An example may then be the question itself, so one more is drawn.
        data = task.data
        self._same = data is not None and task.shots.split == data.split

    def of(self, document: task_data.Document) -> list[task_data.Document]:
        """The examples of a document."""
        shots, subset = self._task.shots, document.subset
        if not self.count:
            return []
        if shots.take in ("list", "picked"):
            return self._listed
        pool = self._pool.get(subset, [])
        wanted = self.count + self._same
        if len(pool) < wanted:
            raise ValueError(
                f"{self._task.name}: the split {shots.split!r} has {len(pool)} documents of "
                f"{subset or 'the task'}, and {wanted} are needed for the examples."
            )
        drawn = self._drawn(subset, pool, wanted)
        return [example for example in drawn if example.fields != document.fields][: self.count]

    def _drawn(
        self, subset: str, pool: list[task_data.Document], wanted: int
    ) -> list[task_data.Document]:
        shots = self._task.shots
        if shots.take == "first":
            return pool[:wanted]
        if shots.take == "each":
            generator = self._random.setdefault(subset, random.Random(shots.seed))
            return generator.sample(pool, wanted)
        if subset not in self._once:
            self._once[subset] = random.Random(shots.seed).sample(pool, wanted)
        return self._once[subset]
