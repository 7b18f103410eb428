# SPDX-License-Identifier: Apache-2.0
"""Two results of `midjax eval` -> the same documents under both, or why they can't be compared.

    run/eval/NAME.json            domains: blocks of {nats, bytes}
    run/eval/NAME.documents.jsonl tasks: a line per document {"task", "subset", "id", "scores"}
                                     |--paired by place (blocks), by subset and id (documents)
                                     v
    [Pair("domain/prose/bits_per_byte"), Pair("task/gsm8k/exact_match"), ...]

Names of scores are those of `record.scores`. A task with subsets is the mean of its subsets' means.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from midjax import files
from midjax.evals import bootstrap
from midjax.evals.metrics import names

Lines = Mapping[str, Sequence[Mapping[str, Any]]]
# What a result says of a task that is no setting: it may differ between two models.
_MEASURED = frozenset({"metrics", "macro", "micro", "subsets", "counts", "documents", "seconds"})
_SAME = (("tokenizer_hash", "the tokenizer"), ("row_tokens", "Eval.row_tokens"))
_SHOWN = 3


class IncomparableError(ValueError):
    """Two results that no difference can be taken of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A result.

    Attributes:
      result: what run/eval/NAME.json holds.
      documents: lines of NAME.documents.jsonl, by task.
      path: where it is, for messages.
    """

    result: Mapping[str, Any]
    documents: Lines
    path: str

    @property
    def where(self) -> str:
        return f"{self.result.get('run')}, step {self.result.get('step')} ({self.path})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A score of both models, by document.

    Attributes:
      score: its name.
      strata: the documents; blocks of them in a domain.
      documents: how many there are.
    """

    score: str
    strata: tuple[bootstrap.Stratum, ...]
    documents: int

    @property
    def less_is_better(self) -> bool:
        return self.score.rpartition("/")[2] in names.LESS_IS_BETTER

    @property
    def method(self) -> bootstrap.Method:
        """To ask for: losses vary without steps; shares of right answers do not (`bootstrap`)."""
        return "bootstrap-t" if self.less_is_better else "expanded percentile"

    @property
    def is_finite(self) -> bool:
        return all(np.isfinite(s.parent).all() and np.isfinite(s.now).all() for s in self.strata)

    @property
    def parent_has_ratio(self) -> bool:
        """Whether the parent's value is finite and above 0."""
        total = sum(float(s.parent.sum()) for s in self.strata)
        return math.isfinite(total) and total > 0


def read(path: Any) -> Measured:
    """A result, with its documents where it has tasks.

    Raises:
      FileNotFoundError: one of the files is missing; says which command writes it.
    """
    target = files.path(path)
    if not target.exists():
        raise FileNotFoundError(
            f"{target} does not exist. `midjax eval` writes <run>/eval/<name>.json for Eval.run "
            "and Eval.name."
        )
    result = files.read_json(target)
    rows: list[Mapping[str, Any]] = []
    if result.get("tasks"):
        beside = target.with_suffix(".documents.jsonl")
        if not beside.exists():
            raise FileNotFoundError(
                f"{target} has tasks, and {beside}, their documents, is missing: `midjax eval` "
                "writes both. Evaluate again."
            )
        rows = [json.loads(line) for line in beside.read_bytes().decode().split("\n") if line]
    return of(result | {"documents": rows}, target)


def of(result: Mapping[str, Any], path: Any) -> Measured:
    """A result with the lines of its documents, as `run.run` gives it.

    Args:
      path: where it is, or will be.
    """
    documents: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for row in result.get("documents") or ():
        documents[row["task"]].append(row)
    return Measured(result=result, documents=documents, path=str(path))


def pairs(parent: Measured, now: Measured) -> list[Pair]:
    """Every score of `now`, beside the parent's of the same documents.

    Raises:
      IncomparableError: a score has no counterpart, or was measured on something else or otherwise;
        names all that differ.
    """
    differ: list[str] = []
    for key, what in _SAME:
        _same(differ, what, parent.result.get(key), now.result.get(key))
    _compute_dtypes(differ, parent, now)
    found = _domains(parent.result, now.result, differ) + _tasks(parent, now, differ)
    if differ:
        listed = "\n  ".join(differ)
        raise IncomparableError(
            f"{now.where} can't be compared with {parent.where}:\n  {listed}\n"
            "Evaluate both with the same tokenizer, texts and settings."
        )
    if not found:
        raise IncomparableError(f"{now.where} has neither domains nor tasks to compare.")
    return found


def scores_of(result: Mapping[str, Any]) -> list[str]:
    """Names of the scores that `pairs` gives of a result, or of what `run.expected` says of it."""
    found = [f"domain/{name}/bits_per_byte" for name in result.get("domains") or {}]
    for name, task in (result.get("tasks") or {}).items():
        found += [f"task/{name}/{metric}" for metric in task["metrics"]]
    return found


def check(parent: Measured, expected: Mapping[str, Any]) -> None:
    """Refuses, before anything is measured, what `pairs` would refuse afterwards.

    Documents and sizes of blocks are not known yet; hashes of texts and of tasks stand for them.

    Args:
      expected: from `run.expected`.

    Raises:
      IncomparableError: names all that differ.
    """
    differ: list[str] = []
    now = Measured(result=expected, documents={}, path="")
    for key, what in _SAME:
        _same(differ, what, parent.result.get(key), expected.get(key))
    _compute_dtypes(differ, parent, now)
    for kind, own in (("domain", "domains"), ("task", "tasks")):
        theirs = parent.result.get(own) or {}
        for name, facts in (expected.get(own) or {}).items():
            if name not in theirs:
                differ.append(f"{kind} {name!r}: the parent has no number of it")
                continue
            before = theirs[name]
            for key in sorted(facts.keys() - _MEASURED):
                said, wanted = before.get(key), facts[key]
                if isinstance(said, Mapping) and isinstance(wanted, Mapping):
                    said = {k: v for k, v in said.items() if k in wanted}
                _same(differ, f"{key} of {kind} {name!r}", said, wanted)
            if missing := sorted(
                facts.get("metrics", {}).keys() - before.get("metrics", {}).keys()
            ):
                differ.append(f"task {name!r}: the parent has no {missing}")
    if differ:
        listed = "\n  ".join(differ)
        raise IncomparableError(
            f"What is to be measured can't be compared with {parent.where}:\n  {listed}\n"
            "Evaluate the parent with the same tokenizer, texts and settings."
        )


def not_compared(parent: Measured, now: Measured) -> list[str]:
    """What is in no pair: scores that the parent alone has, and parts without documents."""
    found = [
        f"{kind} {name!r}, of the parent only"
        for kind in ("domains", "tasks")
        for name in (parent.result.get(kind) or {})
        if name not in (now.result.get(kind) or {})
    ]
    parts = ("by_position", "needle", "long_tasks", "samples", "groups")
    return found + [part for part in parts if now.result.get(part)]


def _same(differ: list[str], what: str, parent: Any, now: Any) -> None:
    if parent != now:
        differ.append(f"{what}: the parent has {_short(parent)}, now it is {_short(now)}")


def _compute_dtypes(differ: list[str], parent: Measured, now: Measured) -> None:
    """Rounding moves scores too; a result that does not say its own compares with none."""
    kinds = [one.result.get("compute_dtype") for one in (parent, now)]
    silent = [one.where for one, kind in zip((parent, now), kinds, strict=True) if kind is None]
    if silent:
        listed = " and ".join(silent)
        differ.append(f"Eval.compute_dtype: {listed} does not say it (an older result)")
    else:
        _same(differ, "Eval.compute_dtype", *kinds)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _domains(parent: Mapping[str, Any], now: Mapping[str, Any], differ: list[str]) -> list[Pair]:
    found = []
    theirs = parent.get("domains") or {}
    for name, domain in (now.get("domains") or {}).items():
        if name not in theirs:
            differ.append(f"domain {name!r}: the parent has no number of it")
            continue
        before = theirs[name]
        _same(
            differ,
            f"texts of domain {name!r} (content_hash)",
            before.get("content_hash"),
            domain.get("content_hash"),
        )
        blocks = before["blocks"], domain["blocks"]
        sizes = [[block["bytes"] for block in part] for part in blocks]
        if sizes[0] != sizes[1]:
            differ.append(f"domain {name!r}: the parent's blocks have other sizes")
            continue
        bits = [_array(block["nats"] for block in part) / math.log(2) for part in blocks]
        stratum = bootstrap.Stratum(parent=bits[0], now=bits[1], size=_array(sizes[1]))
        found.append(
            Pair(
                score=f"domain/{name}/bits_per_byte",
                strata=(stratum,),
                documents=domain["documents"],
            )
        )
    return found


def _array(values: Any) -> np.ndarray:
    """Numbers; what JSON has as null is NaN."""
    return np.array([math.nan if v is None else v for v in values], np.float64)


def _tasks(parent: Measured, now: Measured, differ: list[str]) -> list[Pair]:
    found = []
    theirs = parent.result.get("tasks") or {}
    for name, task in (now.result.get("tasks") or {}).items():
        if name not in theirs:
            differ.append(f"task {name!r}: the parent has no number of it")
            continue
        before = theirs[name]
        for key in sorted((before.keys() | task.keys()) - _MEASURED):
            _same(differ, f"{key} of task {name!r}", before.get(key), task.get(key))
        rows = [_by_document(one, name) for one in (parent, now)]
        if unpaired := sorted(rows[0].keys() ^ rows[1].keys()):
            listed = ", ".join("/".join(map(str, key)) for key in unpaired[:_SHOWN])
            differ.append(f"task {name!r}: {len(unpaired)} documents are in one only ({listed})")
            continue
        for metric in task["metrics"]:
            if any(metric not in row["scores"] for part in rows for row in part.values()):
                differ.append(f"task {name!r}: the parent has no {metric!r} of all documents")
                continue
            strata = _strata(rows[0], rows[1], metric, by_subset="macro" in task)
            score = f"task/{name}/{metric}"
            found.append(Pair(score=score, strata=strata, documents=len(rows[1])))
    return found


def _by_document(measured: Measured, task: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Lines of a task by subset and id, in one order for all models."""
    rows = measured.documents.get(task, ())
    found = {(str(row["subset"]), str(row["id"])): row for row in rows}
    if len(found) < len(rows):
        raise IncomparableError(
            f"{measured.where}: {len(rows) - len(found)} documents of task {task!r} have the "
            "subset and id of another one, so that none can be told from the other."
        )
    return dict(sorted(found.items()))


def _strata(
    parent: Mapping[tuple[str, str], Mapping[str, Any]],
    now: Mapping[tuple[str, str], Mapping[str, Any]],
    metric: str,
    *,
    by_subset: bool,
) -> tuple[bootstrap.Stratum, ...]:
    groups: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for key in now:
        groups[key[0] if by_subset else ""].append(key)
    return tuple(
        bootstrap.Stratum(
            parent=_array(parent[key]["scores"][metric] for key in keys),
            now=_array(now[key]["scores"][metric] for key in keys),
            size=np.ones(len(keys)),
        )
        for keys in groups.values()
    )
