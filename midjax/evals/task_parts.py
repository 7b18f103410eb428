# SPDX-License-Identifier: Apache-2.0
"""The tables of a task file, each a record: data, shots, generate, code, agent, metrics."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from midjax.evals import requests
from midjax.evals.metrics import names

_PICKED = re.compile("[0-9a-f]{16}-[0-9a-f]{16}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Some of the documents, drawn by Python's `random.Random(seed).sample`, in the order drawn.

    Attributes:
      count: drawn; if there are not more, all in their own order.
      seed: of the draw.
      keep: "drawn", or "rest": the others, in their own order.
    """

    count: int
    seed: int = 1234
    keep: Literal["drawn", "rest"] = "drawn"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be 1 or more, got {self.count}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Where the documents are, and what is taken from them.

    Attributes:
      path: below the data folder, with `{split}` and `{subset}` filled in: a file, a folder that
        `datasets` saved, or either without its ending: `x` finds x.jsonl, x.jsonl.gz, x.jsonl.zst,
        x.json, x.parquet, x-00000-of-00002.parquet, and such files in a folder x.
      also: other such paths, tried in order where the first is not there.
      split: which one is asked.
      hub, config: the data set and its configuration on the Hugging Face hub, `{subset}` filled in.
      get: where else it can be had, or a word on it.
      licence: of the documents, as its authors state it.
      rows: a field with a list of records, or several, joined by dots, one within the other: each
        record becomes a document, with the fields of those around it, and `row`, its place.
      rows_optional: a record without that field is a document itself.
      id: expression; without one the number of the document counts.
      subset: expression: the subset that a document is of; needed where all are in one file.
      keep: expression: whether a document is asked.
      merge: a field by which documents are one: the first counts, and its `merged` lists all.
      join: another such path, whose records are found by the same `id` as `joined`.
      sample: part of the documents, after all of that, of each subset.
    """

    path: str
    split: str
    licence: str
    also: tuple[str, ...] = ()
    hub: str = ""
    config: str = ""
    get: str = ""
    rows: str = ""
    rows_optional: bool = False
    id: str = ""
    subset: str = ""
    keep: str = ""
    merge: str = ""
    join: str = ""
    sample: Sample | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shots:
    """Examples before the question.

    Attributes:
      count: how many.
      take: "list": those in `examples`; "first": the first of a split; "sample": one draw for all
        documents, as `random.Random(seed).sample`; "each": a draw for each document in turn from
        one generator, which is what lm_eval does; "picked": those of a split that `picked` names,
        where a data set's licence forbids to ship them. No document is its own example, but for
        those in a list and picked ones.
      split: that all but "list" take from, of the same subset.
      seed: of the draws.
      joiner: after each example.
      example: template of one; without it the prompt and the answer.
      examples: as records of the data set.
      pick: expression of a record: what it is found by.
      content: expression of the task's fields: all that an example shows.
      picked: "PICK-CONTENT": the first 16 digits of SHA-256 of both as JSON. Where only the first
        is met, the data are not quite those that the prompts were published with, which is said.
      file: a file of the user's that holds the examples as text, below the data folder, with
        `{subset}` filled in; `count` is not looked at.
      after: the file's text begins after this (a canary's line stays out of the prompt).
    """

    count: int = 0
    take: Literal["list", "first", "sample", "each", "picked"] = "list"
    split: str = ""
    seed: int = 1234
    joiner: str = "\n\n"
    example: str = ""
    examples: tuple[Mapping[str, Any], ...] = ()
    pick: str = ""
    content: str = ""
    picked: tuple[str, ...] = ()
    file: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must be 0 or more, got {self.count}.")
        if self.take == "list" and not self.file and self.count > len(self.examples):
            raise ValueError(f"count is {self.count}, and there are {len(self.examples)} examples.")
        if self.take != "list" and not self.split and self.count:
            raise ValueError(f"take = {self.take!r} needs a split to take from.")
        if self.take == "picked":
            if not self.pick or not self.content:
                raise ValueError("take = 'picked' needs the expressions pick and content.")
            if self.count > len(self.picked):
                raise ValueError(f"count is {self.count}, and {len(self.picked)} are picked.")
            if wrong := [one for one in self.picked if not _PICKED.fullmatch(one)]:
                raise ValueError(f"picked has {wrong[0]!r}, which is not two times 16 hex digits.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """As `requests.Generate`."""

    stop: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        requests.Generate(
            context="", **dataclasses.asdict(self)
        )  # which refuses what makes no sense


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter:
    """A step from what a model wrote to what is compared.

    Attributes:
      kind: "regex": the match (or its first group that is not empty) number `group`, -1 being the
        last, without white space around it, else `fallback`; "strip": no white space around it;
        "before": up to the first `pattern`, which is plain text; "after": from behind the last one;
        "boxed": within the last \\boxed{}, else all of it.
      pattern, group, fallback: see there.
    """

    kind: Literal["regex", "strip", "before", "after", "boxed"]
    pattern: str = ""
    group: int = 0
    fallback: str = "[invalid]"

    def __post_init__(self) -> None:
        if self.kind == "regex":
            _compiled(self.pattern)
        if not self.pattern and self.kind in ("regex", "before", "after"):
            raise ValueError(f"A filter of kind {self.kind!r} needs a pattern.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure.

    Attributes:
      name: one of those of the task's kind: `metrics.names`.
      label: what it is reported as; its name if empty. Losses keep their names, by which it is
        known that less of them is better, and nothing else has such a name.
      filters: steps before the comparison, in order.
      ignore_case, ignore_punctuation: of both sides of an exact match.
      ignore: regular expressions whose matches are cut out of both sides of an exact match.
      k: of pass@k.
    """

    name: str
    label: str = ""
    filters: tuple[Filter, ...] = ()
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore: tuple[str, ...] = ()
    k: int = 1

    def __post_init__(self) -> None:
        for pattern in self.ignore:
            _compiled(pattern)
        last = self.label.rpartition("/")[2]
        if self.label not in ("", self.name) and names.LESS_IS_BETTER & {self.name, last}:
            raise ValueError(
                f"Metric {self.name!r} can't have the label {self.label!r}: by their names "
                f"({', '.join(sorted(names.LESS_IS_BETTER))}) losses are known, of which less is "
                "better. Leave the label of a loss empty, and give another metric another one."
            )

    @property
    def title(self) -> str:
        """What it is reported as."""
        return self.label or (f"{self.name}@{self.k}" if self.name == "pass" else self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code:
    """How a completion becomes the program that the sandbox judges.

    Attributes:
      form: the function of `code.programs` that makes it, from the document's record.
      filters: on the completion, before.
    """

    form: Literal[
        "humaneval",
        "humaneval_whole",
        "infilling",
        "humaneval_fix",
        "mbpp",
        "cruxeval_output",
        "cruxeval_input",
    ]
    filters: tuple[Filter, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agent:
    """What a model plays with, and for how long.

    Attributes:
      form: "os_tasks", a shell in a sandboxed world, by AgentBench's records; "toolbench", the
        replies that ToolLLaMA's `conversations` recorded.
      rounds: turns of the model.
      tokens: of all its turns together.
      scripts: of os_tasks: the folder of the records' scripts, below the data folder, with
        `{subset}` filled in.
    """

    form: Literal["os_tasks", "toolbench"]
    rounds: int
    tokens: int
    scripts: str = ""

    def __post_init__(self) -> None:
        for name in ("rounds", "tokens"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"agent.{name} must be 1 or more, got {value}.")
        if (self.form == "os_tasks") != bool(self.scripts):
            raise ValueError("agent.scripts is the scripts' folder of os_tasks, and of those only.")


def _compiled(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}.") from error
