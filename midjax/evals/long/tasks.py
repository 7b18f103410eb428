# SPDX-License-Identifier: Apache-2.0
"""RULER's 13 tasks by name (its `synthetic.yaml` and `constants.py`)."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Literal

from midjax.evals.long import retrieval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """How a task is asked and scored.

    Attributes:
      family: which module makes it.
      answer_tokens: room for the answer.
      match: "all", the share of references found; "part", whether any is.
      answer: the form in which a single candidate follows the prompt, see `scores`.
      needles: of the family "niah".
    """

    family: Literal["niah", "vt", "cwe", "fwe", "qa"]
    answer_tokens: int
    match: Literal["all", "part"] = "all"
    answer: str = " {}"
    needles: retrieval.Needles | None = None


def _niah(**needles) -> Task:  # type: ignore[no-untyped-def]
    return Task(family="niah", answer_tokens=128, needles=retrieval.Needles(**needles))


TASKS = {
    "niah_single_1": _niah(stack="noise"),
    "niah_single_2": _niah(stack="essay"),
    "niah_single_3": _niah(stack="essay", values="uuids"),
    "niah_multikey_1": _niah(stack="essay", key_count=4),
    "niah_multikey_2": _niah(stack="needles"),
    "niah_multikey_3": _niah(stack="needles", keys="uuids", values="uuids"),
    "niah_multivalue": _niah(stack="essay", value_count=4),
    "niah_multiquery": _niah(stack="essay", key_count=4, query_count=4),
    "vt": Task(family="vt", answer_tokens=30),
    "cwe": Task(family="cwe", answer_tokens=120, answer=" 1. {}"),
    "fwe": Task(family="fwe", answer_tokens=50),
    "qa_squad": Task(family="qa", answer_tokens=32, match="part"),
    "qa_hotpot": Task(family="qa", answer_tokens=32, match="part"),
}
GROUPS = {
    "niah": tuple(name for name, task in TASKS.items() if task.family == "niah"),
    "ruler": tuple(TASKS),
    # Without the data sets of questions.
    "ruler_synthetic": tuple(name for name, task in TASKS.items() if task.family != "qa"),
}


def named(names: Sequence[str]) -> tuple[str, ...]:
    """Tasks, and those of groups, each once.

    Raises:
      ValueError: there is no such task.
    """
    known = (*TASKS, *GROUPS)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"LongTasks.tasks names {name!r}; there are {', '.join(TASKS)}, and the groups "
                f"{', '.join(GROUPS)}.{hint}"
            )
    return tuple(dict.fromkeys(task for name in names for task in GROUPS.get(name, (name,))))
