# SPDX-License-Identifier: Apache-2.0
"""An evaluation task as a small file: where its documents are, how they are asked, what is scored.

    tasks/NAME.toml, or a file of the user's own --load--> Task (frozen, checked)

A file has the keys of `Task`, one TOML table for each record below it. `base = "other"` takes
everything from another task, of which the file then says what differs: tables are merged, lists and
texts replaced, and keys in `without = [...]` are not taken. Unknown keys, wrong types and templates
that are not Jinja are errors when the file is loaded, before a model is.

What each kind asks and scores:

| kind | requests per document | gold |
|---|---|---|
| choice | likelihood of every choice, after the prompt and `unconditional` | index, or indices |
| gold | likelihood of the answer | - |
| generate | text | the reference, or several: any may be met |
| code | text, of which `code.form` makes a program | - |
| calls | text with function calls | what the judge compares with |
| agent | text, turn by turn, until the episode ends | - |
| group | those of its members | |

A prompt that reads `choice` is made for each choice: so WinoGrande's partial scoring is written
(the choice stands in the context, and what is scored is the common text after it).
"""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from midjax import files
from midjax.evals import task_parts, template
from midjax.evals.metrics import names
from midjax.strict import fields

Kind = Literal["choice", "gold", "generate", "code", "calls", "agent", "group"]
# Below so many parameters letters are answered at random, and ranked choices and bits per byte are
# what tells models apart (OLMES, 2406.08446, section 3; OLMo 2, 2501.00656).
LETTERS_FROM_PARAMETERS = 7_000_000_000
_TUPLE_HINT = " A tuple of one element needs its comma: (a,)."
_FOLDER = files.PACKAGE + "evals/tasks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
      name: of its file.
      source: which public task it stands for, with the paper.
      kind: see the table above.
      data: where the documents are; None of a group.
      subsets: parts that are averaged over (MMLU's subjects); empty is one.
      fields: name -> expression; computed in order, from the document's own fields, `subset` and
        the fields above.
      variables: name -> text that the user may replace (the special tokens of fill-in-the-middle).
      description: template, before the examples.
      prompt: template of the question.
      answer: template of what follows it; it reads `choice` or `gold` as well.
      choices: expression: the choices' texts.
      gold: expression, see the table above.
      unconditional: a context without the question, for PMI (acc_uncond); None asks nothing.
      shots: examples.
      generate: how text is written; of generate, code, calls and, a turn of it, agent.
      code: what is run.
      agent: what plays with the model. Its prompt reads `turns`, a list of {role, content}, and
        variables; the field `turns` is the conversation before the first turn.
      metrics: figures.
      primary: the title of the one that decides.
      members: the tasks of a group.
    """

    name: str
    source: str
    kind: Kind
    primary: str = ""
    data: task_parts.Data | None = None
    subsets: tuple[str, ...] = ()
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    description: str = ""
    prompt: str = ""
    answer: str = ""
    choices: str = ""
    gold: str = ""
    unconditional: str | None = None
    shots: task_parts.Shots = dataclasses.field(default_factory=task_parts.Shots)
    generate: task_parts.Generation | None = None
    code: task_parts.Code | None = None
    agent: task_parts.Agent | None = None
    metrics: tuple[task_parts.Metric, ...] = ()
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        needs = {
            "choice": ("data", "prompt", "answer", "choices", "gold", "metrics"),
            "gold": ("data", "answer", "metrics"),
            "generate": ("data", "prompt", "gold", "generate", "metrics"),
            "code": ("data", "prompt", "generate", "code", "metrics"),
            "calls": ("data", "prompt", "gold", "generate", "metrics"),
            "agent": ("data", "prompt", "generate", "agent", "metrics"),
            "group": ("members",),
        }[self.kind]
        for key in needs:
            if not getattr(self, key):
                raise ValueError(f"A task of kind {self.kind!r} needs {key!r}.")
        for metric in self.metrics:
            names.check(metric.name, self.kind)
        titles = [metric.title for metric in self.metrics]
        if len(set(titles)) < len(titles):
            raise ValueError(f"Two metrics have the same label: {titles}. Give one another label.")
        if self.kind != "group" and self.primary not in titles:
            raise ValueError(f"primary is {self.primary!r}; the metrics are {titles}.")
        most = max((metric.k for metric in self.metrics), default=1)
        if self.generate is not None and most > self.generate.samples:
            raise ValueError(
                f"pass@{most} needs as many samples, and generate.samples is "
                f"{self.generate.samples}."
            )
        if self.kind == "choice" and self.generate is not None:
            raise ValueError(
                'A task of kind "choice" writes nothing: leave out [generate], '
                'or of a base without = ["generate"].'
            )
        if self.kind == "agent" and self.generate is not None:
            self._check_agent(self.generate)
        uncond = [metric for metric in self.metrics if metric.name == "acc_uncond"]
        if uncond and self.unconditional is None:
            raise ValueError("acc_uncond needs `unconditional`, the context without the question.")

    def _check_agent(self, generate: task_parts.Generation) -> None:
        if "turns" not in self.fields:
            raise ValueError("An agent's task needs fields.turns, the conversation it begins with.")
        if generate.samples > 1 or self.shots.count or self.description:
            raise ValueError(
                "An agent's task has one sample, and neither shots nor a description: write "
                "examples into fields.turns."
            )
        names_of = template.Text(self.prompt, "prompt").names
        if other := sorted(names_of - {"turns", *self.variables}):
            raise ValueError(f"An agent's prompt reads `turns` and variables only; it has {other}.")


def shipped() -> list[str]:
    """Names of the tasks that come with midjax."""
    folder = files.path(_FOLDER)
    return sorted(entry.name[: -len(".toml")] for entry in folder.glob("*.toml"))


def load(name_or_path: str) -> Task:
    """A task by its name, or by the path of a file that ends in .toml.

    Raises:
      fields.ConfigError: there is no such task, or its file is wrong.
    """
    raw = dict(_raw(name_or_path, ()))
    raw["name"] = os.path.basename(name_or_path).removesuffix(".toml")
    try:
        task = _record(raw)
        for where, source, is_text in _templates(task):
            (template.Text if is_text else template.Expression)(source, where)
    except ValueError as error:
        # The checker speaks of gin's tuples, for which TOML has lists.
        told = str(error).replace(_TUPLE_HINT, " Write a list: [...].")
        raise fields.ConfigError(f"The task file {name_or_path}: {told}") from error
    return task


def expanded(names: Sequence[str]) -> tuple[list[Task], list[Task]]:
    """The tasks of `Tasks.names`, each once, and the groups among the names.

    Groups have the tasks below them as members, whatever lies between.

    Raises:
      fields.ConfigError: as `load`.
      ValueError: two different tasks have one name.
    """
    found: dict[str, Task] = {}
    groups = []
    for name in names:
        loaded = load(name)
        members = list(_members(loaded))
        if loaded.kind == "group":
            own = tuple(dict.fromkeys(member.name for member in members))
            groups.append(dataclasses.replace(loaded, members=own))
        for task in members:
            if found.setdefault(task.name, task) != task:
                raise ValueError(
                    f"Tasks.names has two different tasks with the name {task.name!r}. Give the "
                    "file of one another name."
                )
    return list(found.values()), groups


def _members(task: Task) -> Iterator[Task]:
    if task.kind != "group":
        yield task
    for name in task.members:
        yield from _members(load(name))


def recommended(parameters: int) -> str:
    """The group of tasks that fits a model of so many parameters: ranked choices and bits per byte
    below 7B, letters from there on."""
    return "core_small" if parameters < LETTERS_FROM_PARAMETERS else "core_large"


def _raw(name_or_path: str, above: tuple[str, ...]) -> dict[str, Any]:
    if name_or_path in above:
        raise fields.ConfigError(f"Task files are each other's base: {above + (name_or_path,)}.")
    if name_or_path.endswith(".toml"):
        path = files.path(name_or_path)
        if not path.exists():
            raise fields.ConfigError(f"There is no task file {name_or_path}.")
    else:
        path = files.path(_FOLDER) / f"{name_or_path}.toml"
        if "/" in name_or_path or not path.exists():
            near = difflib.get_close_matches(name_or_path, shipped(), n=5, cutoff=0.5)
            raise fields.ConfigError(
                f"There is no task {name_or_path!r}. Near: {', '.join(near) or 'none'}. "
                "A file of your own is given by its path, which ends in .toml."
            )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise fields.ConfigError(f"{path} is not TOML: {error}") from error
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise fields.ConfigError(f"{path}: base must be the name of a task, got {base!r}.")
    if base.endswith(".toml"):
        base = str(path.parent / base)
    inherited, without = _raw(base, (*above, name_or_path)), raw.pop("without", [])
    for key in without:
        if key not in inherited:
            raise fields.ConfigError(f"{path}: without names {key!r}, which {base} does not have.")
        del inherited[key]
    return _merged(inherited, raw)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merged(old, value) if both and isinstance(old, dict) else value
    return merged


def _record(raw: dict[str, Any]) -> Task:
    shots = raw.get("shots", {})
    if not isinstance(shots, dict):
        raise fields.ConfigError(f"shots must be a table, got {shots!r}.")
    # Examples are records of the data set, of any form; the count is checked against them.
    examples = shots.get("examples", [])
    if not isinstance(examples, list) or not all(isinstance(one, dict) for one in examples):
        raise fields.ConfigError("shots.examples must be tables: [[shots.examples]].")
    count = fields.fit(shots.get("count", 0), int, "Task.shots.count")
    rest = {key: value for key, value in shots.items() if key not in ("examples", "count")}
    task = fields.from_json(Task, _tagged({**raw, "shots": rest}, Task))
    complete = dataclasses.replace(task.shots, examples=tuple(examples), count=count)
    return dataclasses.replace(task, shots=complete)


_TABLES: dict[type, dict[str, type]] = {
    Task: {
        "data": task_parts.Data,
        "shots": task_parts.Shots,
        "generate": task_parts.Generation,
        "code": task_parts.Code,
        "agent": task_parts.Agent,
        "metrics": task_parts.Metric,
    },
    task_parts.Data: {"sample": task_parts.Sample},
    task_parts.Metric: {"filters": task_parts.Filter},
    task_parts.Code: {"filters": task_parts.Filter},
}


def _tagged(value: Any, cls: type) -> Any:
    """Plain tables as `fields.from_json` reads them: each says of which class it is."""
    if isinstance(value, list):
        return [_tagged(item, cls) for item in value]
    if not isinstance(value, dict):
        return value
    inner = _TABLES.get(cls, {})
    tagged = {key: _tagged(v, inner[key]) if key in inner else v for key, v in value.items()}
    return {fields.TAG: cls.__name__} | tagged


def _templates(task: Task) -> list[tuple[str, str, bool]]:
    """(place, source, whether it gives text) of all that must compile."""
    found = [(f"fields.{name}", source, False) for name, source in task.fields.items()]
    found += [(key, getattr(task, key), True) for key in ("description", "prompt", "answer")]
    found += [(key, getattr(task, key), False) for key in ("choices", "gold") if getattr(task, key)]
    found.append(("shots.example", task.shots.example, True))
    for key in ("pick", "content"):
        if source := getattr(task.shots, key):
            found.append((f"shots.{key}", source, False))
    if task.data is not None:
        pairs = [(key, getattr(task.data, key)) for key in ("id", "subset", "keep")]
        found += [(f"data.{key}", source, False) for key, source in pairs if source]
    return found
