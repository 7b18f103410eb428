# SPDX-License-Identifier: Apache-2.0
"""Many tasks asked of one model: part of the root `Eval`.

    Tasks --check--> Inputs: documents, prompts, sandbox --run(engine)--> Asked
                                                             tasks, groups: for run/eval/<name>.json
                                                             documents: a line for each

    tasks   {task: {"primary", "metrics": {metric: mean}, "documents", "counts", "settings",
                    "task_hash", "content_hash", of a task with subsets also
                    "subsets": {subset: {metric: mean}} and "macro": {metric: mean of those}}}
    groups  {group: {"members": {task: {metric: value}}, "macro": {metric: mean of the members},
                     "micro": {metric: mean of all documents}}}
    documents  [{"task", "subset", "id", "scores": {metric: value}, ...}], see `task_rows`

A number that is not finite is null. "counts" says what became of every document and prompt: `left
out` by whom, prompts with `fewer examples`, or `cut` and by how many tokens, `texts cut` at the
most tokens that they may have, `empty` answers.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax

from midjax import files, log
from midjax.evals import (
    engine,
    judges,
    likelihood_tokens,
    render,
    requests,
    task_data,
    task_rows,
)
from midjax.evals import task as tasks
from midjax.evals.agents import asked
from midjax.evals.metrics import scoring
from midjax.evals.sandbox import run as sandboxes
from midjax.evals.sandbox import selftest

# Of `Scorer.counts`.
_CUT = ("cut requests", "cut tokens", "texts cut")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
    """Which tasks to ask, and how.

    Attributes:
      data: folder below which each task finds its documents, as its file says.
      names: tasks, groups of tasks (core_small, ...), and files of your own that end in .toml.
      limit: asks the first so many documents of each subset; None asks all.
      shots: another number of examples than the tasks'; None keeps theirs.
      split: asks this split instead of the tasks' own.
      max_new_tokens: where a text (of an agent a turn) ends at the latest, if the task has it
        later.
      variables: other texts than the tasks' own, such as the tokens of fill-in-the-middle.
      online: fetches data that are not on the disk from the hub, with `datasets`.
      begins: what a text begins with, see `likelihood_tokens.Tokenizer`.
      batch_tokens: places that are computed at once for likelihoods, on all devices together.
      batch_rows: texts that are written at once, and an agent's episodes that are open.
      sandbox_workers: programs that run at a time, of code tasks; None is one per processor.
      sandbox_site_packages: lets these programs import what is installed here, such as numpy.
    """

    data: str
    names: tuple[str, ...]
    limit: int | None = None
    shots: int | None = None
    split: str | None = None
    max_new_tokens: int | None = None
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    online: bool = False
    begins: Literal["as_it_says", "bos", "bare"] = "as_it_says"
    batch_tokens: int = 4096
    batch_rows: int = 32
    sandbox_workers: int | None = None
    sandbox_site_packages: bool = False

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("Tasks.names is empty. Name a task or a group, such as 'core_small'.")
        if repeated := sorted({n for n in self.names if self.names.count(n) > 1}):
            raise ValueError(f"Tasks.names has {repeated} more than once.")
        least = {"limit": 1, "shots": 0, "max_new_tokens": 1, "batch_tokens": 1, "batch_rows": 1}
        for name, low in (least | {"sandbox_workers": 1}).items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f"Tasks.{name} must be {low} or more, got {value}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A task, ready to be asked.

    Attributes:
      task: with what `Tasks` changes of it.
      instances: what is asked.
      left_out: documents that are not, by whom.
      noted: see `render.instances`.
    """

    task: tasks.Task
    instances: list[render.Instance]
    left_out: collections.Counter[str]
    noted: collections.Counter[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What `run` needs, checked.

    Attributes:
      prepared: the tasks, each once.
      groups: what they are averaged over; members of members are members.
      tokenizer: of the model.
      sandbox: of code tasks and agents at a shell, opened.
    """

    prepared: tuple[Prepared, ...]
    groups: tuple[tasks.Task, ...]
    tokenizer: likelihood_tokens.Tokenizer
    sandbox: sandboxes.Sandbox | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What came of it; the module's docstring shows the parts."""

    tasks: dict[str, Any]
    groups: dict[str, Any]
    documents: list[dict[str, Any]]


def check(config: Tasks, *, context_tokens: int, tokenizer_folder: str) -> Inputs:
    """Reads all documents, and refuses what can't give true numbers.

    Raises:
      fields.ConfigError: there is no such task; the nearest are named.
      SandboxUnavailable: a code task or an agent at a shell, and no sandbox that holds.
      MissingDataError: data that are not on the disk: all of them, and where to get each.
      ValueError: the data do not fit a task, a setting does not, or a text the model's context.
    """
    wanted, groups = tasks.expanded(config.names)
    tokenizer = likelihood_tokens.open_folder(tokenizer_folder, begins=config.begins)
    changed = [_changed(config, task) for task in wanted]
    _check_variables(config, wanted)
    sandbox = None
    if agents := [task.name for task in wanted if task.kind == "agent"]:
        _check_alone(agents[0])
    if any(task.kind == "code" or asked.needs_sandbox(task) for task in wanted):
        sandbox = selftest.open(
            workers=config.sandbox_workers, site_packages=config.sandbox_site_packages
        )
    prepared = _all_prepared(config, changed, sandbox)
    for one in prepared:
        _check_context(one, tokenizer, context_tokens)
    _tell_of_bos(config, tokenizer)
    return Inputs(prepared=prepared, groups=tuple(groups), tokenizer=tokenizer, sandbox=sandbox)


def _check_alone(name: str) -> None:
    """Environments answer one process, and its model computes with the others'."""
    if jax.process_count() > 1:
        raise ValueError(
            f"{name} plays episodes, which several processes can't. Evaluate it in one process, "
            "or leave it out."
        )


def _tell_of_bos(config: Tasks, tokenizer: likelihood_tokens.Tokenizer) -> None:
    """A model that saw BOS before each document is asked without it, where its tokenizer's file
    does not put it there."""
    (ids,) = tokenizer.encode(["x"])
    if config.begins == "as_it_says" and ids[:1] != [tokenizer.prefix_id]:
        token = tokenizer.tokenizer.id_to_token(tokenizer.prefix_id)
        log.say(
            f"tasks: prompts begin without {token}, which the tokenizer does not add by itself. If "
            'the model was trained with it before each document, set Tasks.begins = "bos".'
        )


def run(config: Tasks, inputs: Inputs, model: engine.Engine) -> Asked:
    """Asks all tasks, one after the other.

    Args:
      model: from `engine.of_model`, with the tokenizer of `inputs`.
    """
    found: dict[str, dict[str, Any]] = {}
    scores: dict[str, dict[str, Any]] = {}
    documents: list[dict[str, Any]] = []
    for number, one in enumerate(inputs.prepared, 1):
        task, instances = one.task, one.instances
        log.say(
            f"task {number} of {len(inputs.prepared)}, {task.name}: {len(instances)} documents, "
            f"{sum(len(instance.requests) for instance in instances)} requests"
        )
        before = collections.Counter(model.scorer.counts)
        told: list[Any] = []
        answers, judge = _answers(config, inputs, one, model, told)
        cut = {key: model.scorer.counts[key] - before[key] for key in _CUT}
        score = scores[task.name] = scoring.score(task, instances, answers, judge=judge)
        rows = task_rows.of(task, instances, answers, score, told)
        documents += rows
        figures = [key for key in ("metrics", "macro", "subsets") if key in score]
        found[task.name] = {
            "primary": task.primary,
            **{key: score[key] for key in figures},
            "documents": len(instances),
            "counts": {
                "left out": dict(one.left_out),
                **one.noted,
                **cut,
                **task_rows.counts(task, rows),
            },
            "settings": {
                **_settings(config, task, model.scorer.config.compute_dtype),
                # Of the model's context only what was cut tells in the numbers.
                "cut_to_tokens": _context(model) if cut["cut requests"] else None,
            },
            **_hashes(one),
        }
    groups = {group.name: scoring.combine(group, scores) for group in inputs.groups}
    for group in groups.values():
        del group["task"]
    return Asked(tasks=finite(found), groups=finite(groups), documents=finite(documents))


def _answers(
    config: Tasks, inputs: Inputs, one: Prepared, model: engine.Engine, told: list[Any]
) -> tuple[Sequence[Sequence[render.Answer]], scoring.Judge | None]:
    """What the model says to each document, and who judges it, see `judges.of`."""
    task, sandbox = one.task, inputs.sandbox
    if sandbox is not None:
        sandbox = dataclasses.replace(sandbox, between=model.scorer.between)
    if task.kind != "agent":
        return render.ask(model, one.instances), judges.of(task, sandbox, told)
    outcomes = asked.play(
        task,
        one.instances,
        model,
        folder=config.data,
        sandbox=sandbox,
        variables=_variables(config, task),
        at_once=config.batch_rows,
    )
    told += [asked.row(outcome, inputs.tokenizer) for outcome in outcomes]
    said = [[turn.content for turn in o.messages if turn.role == "assistant"] for o in outcomes]
    answers = [((turns[-1] if turns else "",),) for turns in said]
    return answers, lambda pairs: [outcome.solved for outcome in outcomes]


def _variables(config: Tasks, task: tasks.Task) -> dict[str, str]:
    """Those of a task that are replaced."""
    return {k: v for k, v in config.variables.items() if k in task.variables}


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, as JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _changed(config: Tasks, task: tasks.Task) -> tasks.Task:
    """A task with what `Tasks` changes of it."""
    if config.shots is not None and task.shots.file:
        raise ValueError(
            f"Tasks.shots={config.shots}, but the examples of {task.name} are a text, of which "
            "none can be left out. Leave Tasks.shots None, or ask this task by itself."
        )
    if config.max_new_tokens is None or task.generate is None:
        return task
    most = min(config.max_new_tokens, task.generate.max_new_tokens)
    return dataclasses.replace(
        task, generate=dataclasses.replace(task.generate, max_new_tokens=most)
    )


def _check_variables(config: Tasks, wanted: list[tasks.Task]) -> None:
    known = {name for task in wanted for name in task.variables}
    if unknown := sorted(set(config.variables) - known):
        raise ValueError(
            f"Tasks.variables has {unknown}, which none of the tasks has; theirs are "
            f"{sorted(known)}."
        )


def _all_prepared(
    config: Tasks, wanted: list[tasks.Task], sandbox: sandboxes.Sandbox | None
) -> tuple[Prepared, ...]:
    prepared, missing = [], []
    for task in wanted:
        try:
            prepared.append(_prepared(config, task, sandbox))
        except task_data.MissingDataError as error:
            missing.append(error)
    if len(missing) > 1 and all(error.brief for error in missing):
        told = "".join(f"\n  {error.brief}" for error in missing)
        raise task_data.MissingDataError(
            f"{len(missing)} of {len(wanted)} tasks have no data. Put each there, with .jsonl, "
            f".json or .parquet at its end, in parts or in a folder:{told}"
        )
    if missing:
        raise missing[0]
    return tuple(prepared)


def _prepared(config: Tasks, task: tasks.Task, sandbox: sandboxes.Sandbox | None) -> Prepared:
    left_out, noted = collections.Counter[str](), collections.Counter[str]()
    instances = render.prepare(
        task,
        config.data,
        split=config.split,
        shots=config.shots,
        variables=_variables(config, task),
        limit=config.limit,
        online=config.online,
        left_out=left_out,
        noted=noted,
    )
    instances = asked.usable(task, instances, config.data, sandbox, left_out)
    return Prepared(task=task, instances=instances, left_out=+left_out, noted=noted)


def _check_context(
    one: Prepared, tokenizer: likelihood_tokens.Tokenizer, context_tokens: int
) -> None:
    """Refuses texts for which the context is too short; prompts are cut, and that is counted."""
    task = one.task
    if task.generate is not None and task.generate.max_new_tokens >= context_tokens:
        raise ValueError(
            f"{task.name} writes up to {task.generate.max_new_tokens} tokens, which leaves no room "
            f"for a prompt in the model's context of {context_tokens}. Set Tasks.max_new_tokens, "
            "or leave the task out."
        )
    # A token has a byte at least, so that only long continuations need be tokenized.
    long = [
        (instance.id, request)
        for instance in one.instances
        for request in instance.requests
        if isinstance(request, requests.Loglikelihood)
        and len(request.continuation.encode()) >= context_tokens
    ]
    pairs = likelihood_tokens.pairs(tokenizer, [request for _, request in long])
    for (id_, _), (_, continuation) in zip(long, pairs, strict=True):
        if len(continuation) > context_tokens:
            raise ValueError(
                f"{task.name}, document {id_}: an answer of {len(continuation)} tokens does not "
                f"fit the model's context of {context_tokens}. Leave the task out."
            )


def expected(config: Tasks, inputs: Inputs, compute_dtype: str) -> dict[str, Any]:
    """What `run` will say of each task whatever the model answers; of metrics their names."""
    return {
        one.task.name: {
            "primary": one.task.primary,
            "metrics": {metric.title: None for metric in one.task.metrics},
            "settings": _settings(config, one.task, compute_dtype),
            **_hashes(one),
        }
        for one in inputs.prepared
    }


def _hashes(one: Prepared) -> dict[str, str]:
    return {
        "task_hash": _hash(dataclasses.asdict(one.task)),
        "content_hash": _hash([_hash(dataclasses.asdict(asked)) for asked in one.instances]),
    }


def _context(model: engine.Engine) -> int:
    return model.scorer.config.context_tokens


def _settings(config: Tasks, task: tasks.Task, compute_dtype: str) -> dict[str, Any]:
    """All that numbers depend on, but for the task's file, the data and what was cut."""
    shots: int | str | None = task.shots.file or config.shots
    return {
        "shots": task.shots.count if shots is None else shots,
        "split": config.split or (task.data.split if task.data else ""),
        "limit": config.limit,
        "max_new_tokens": task.generate.max_new_tokens if task.generate else None,
        "variables": {k: config.variables.get(k, v) for k, v in task.variables.items()},
        "begins": config.begins,
        "compute_dtype": compute_dtype,
    }


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return files.sha256(text.encode(errors="backslashreplace"))
