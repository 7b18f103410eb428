# SPDX-License-Identifier: Apache-2.0
"""Episodes of a task of kind "agent", with a model as the agent; part of `suite`.

    instances --usable--> those that can be played, and why the others can't
    instances --play--> environments, Speaker(engine) --episode.play--> outcomes
    outcomes --row--> what a document's line holds of them

A conversation is never cut: one that leaves no room in the model's context ends its episode.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from midjax import files, log
from midjax.evals import render, requests, template
from midjax.evals import task as tasks
from midjax.evals.agents import episode, os_tasks, toolbench
from midjax.evals.sandbox import run as sandboxes

_SHOWN_REASONS = 5


def needs_sandbox(task: tasks.Task) -> bool:
    """Whether what a model writes is run."""
    return task.agent is not None and task.agent.form == "os_tasks"


def usable(
    task: tasks.Task,
    instances: Sequence[render.Instance],
    folder: str,
    sandbox: sandboxes.Sandbox | None,
    left_out: collections.Counter[str],
) -> list[render.Instance]:
    """Those that can be played or scored; the others are counted in `left_out`, and said.

    Args:
      task: any: of one that is neither of agents nor of their steps all are usable.
      folder: the data folder.
      sandbox: see `needs_sandbox`; each task's own example is tried in it.

    Raises:
      ValueError: none is left, or the task's fields are not those that its form needs.
    """
    has_steps = any(metric.name.startswith("step_") for metric in task.metrics)
    if task.agent is None and not has_steps:
        return list(instances)
    for one in instances:
        _check_fields(task, one, has_steps)
    reasons = [""] * len(instances)
    if has_steps:
        reasons = [_step_reason(one) for one in instances]
    elif needs_sandbox(task):
        assert sandbox is not None
        box = sandbox
        reasons = box.map(lambda one: _os_reason(task, one, folder, box), instances)
    seen: set[Any] = set()
    kept = []
    for instance, reason in zip(instances, reasons, strict=True):
        # Conversations that are the beginning of others; shell tasks of one text differ in worlds.
        if not reason and not needs_sandbox(task) and instance.requests in seen:
            reason = "asked already"
        if reason:
            left_out[reason.partition(":")[0]] += 1
        else:
            seen.add(instance.requests)
            kept.append(instance)
    dropped = [pair for pair in zip(instances, reasons, strict=True) if pair[1]]
    for instance, reason in dropped[:_SHOWN_REASONS]:
        log.say(f"{task.name}, document {instance.id} is left out: {reason}")
    if not kept:
        raise ValueError(
            f"{task.name}: none of {len(instances)} documents can be asked: {dict(left_out)}."
        )
    return kept


def _check_fields(task: tasks.Task, instance: render.Instance, has_steps: bool) -> None:
    """Refuses a task file whose fields can't be played, before a model is read."""
    wanted = {"system"} if has_steps else {"turns"}
    if task.agent is not None and task.agent.form == "toolbench":
        wanted.add("conversations")
    if missing := sorted(wanted - set(instance.fields)):
        raise ValueError(
            f"{task.name}: [fields] lacks {', '.join(missing)}, which its form needs; it has "
            f"{', '.join(sorted(instance.fields))}."
        )
    if not has_steps:
        try:
            _opening(instance)
        except TypeError as error:
            raise ValueError(
                f"{task.name}, document {instance.id}: 'turns' must be a list of objects with "
                f"role and content, got {str(instance.fields['turns'])[:200]}."
            ) from error


def _step_reason(instance: render.Instance) -> str:
    try:
        tools = toolbench.offered(instance.fields["system"])
    except ValueError as error:
        return f"no list of tools: {error}"
    found = toolbench.score(instance.gold, instance.gold, tools)
    return found if isinstance(found, str) else ""


def _os_reason(
    task: tasks.Task, instance: render.Instance, folder: str, box: sandboxes.Sandbox
) -> str:
    try:
        return os_tasks.left_out(box, _os_task(task, instance, folder))
    except os_tasks.Unusable as error:
        return f"unusable: {error}"


def _os_task(task: tasks.Task, instance: render.Instance, folder: str) -> os_tasks.Task:
    assert task.agent is not None
    scripts = task.agent.scripts.replace("{subset}", instance.subset)
    place = pathlib.Path(str(files.path(folder) / scripts))
    return os_tasks.task(instance.id, instance.fields, place)


def play(
    task: tasks.Task,
    instances: Sequence[render.Instance],
    model: requests.Engine,
    *,
    folder: str,
    sandbox: sandboxes.Sandbox | None,
    variables: Mapping[str, str],
    at_once: int,
) -> list[episode.Outcome]:
    """Plays all episodes of a task, in their order.

    Args:
      task: of kind "agent".
      instances: from `usable`; recorded replies are those of their conversations.
      model: an engine with a `scorer`, whose tokenizer and context are asked.
      folder: the data folder.
      sandbox: see `needs_sandbox`.
      variables: other texts than the task's own.
      at_once: episodes that are open at a time.
    """
    assert task.agent is not None
    speaker = Speaker(task, model, {**task.variables, **variables})
    if needs_sandbox(task):
        assert sandbox is not None
        environments: list[episode.Environment] = [
            os_tasks.Environment(sandbox, _os_task(task, one, folder), _opening(one))
            for one in instances
        ]
        return episode.play(
            environments, speaker, rounds=task.agent.rounds, at_once=at_once, each=sandbox.map
        )
    recordings = toolbench.Recordings()
    for one in instances:
        recordings.add_conversation(one.fields["conversations"])
    environments = [toolbench.Environment(_opening(one), recordings) for one in instances]
    return episode.play(environments, speaker, rounds=task.agent.rounds, at_once=at_once)


def _opening(instance: render.Instance) -> list[episode.Message]:
    return [episode.Message(**turn) for turn in instance.fields["turns"]]


class Speaker:
    """A model as an `episode.Agent`: reads a conversation by the task's prompt.

    A turn has `generate.max_new_tokens`, an episode `agent.tokens` in all, counted as their texts
    are tokenized again.
    """

    def __init__(self, task: tasks.Task, model: Any, variables: Mapping[str, str]) -> None:
        assert task.agent is not None and task.generate is not None
        self._prompt = template.Text(task.prompt, f"{task.name}: prompt")
        self._agent, self._how = task.agent, dataclasses.asdict(task.generate)
        self._model, self._variables = model, variables

    def __call__(self, talks: Sequence[Sequence[episode.Message]]) -> list[str | episode.End]:
        contexts = [
            self._prompt({**self._variables, "turns": [dataclasses.asdict(one) for one in talk]})
            for talk in talks
        ]
        found: list[str | episode.End | None] = []
        asked = []
        tokenizer, most = self._model.scorer.tokenizer, self._context_tokens()
        for talk, context, ids in zip(talks, contexts, tokenizer.encode(contexts), strict=True):
            left = self._agent.tokens - said_tokens(tokenizer, talk)
            room = most - max(len(ids), 1)
            if left < 1:
                why = f"it wrote {self._agent.tokens} tokens, all that it may"
                found.append(episode.End(how="out of tokens", reason=why))
            elif room < 1:
                why = f"a conversation of {len(ids)} tokens, and the context has {most}"
                found.append(episode.End(how="beyond the context", reason=why))
            else:
                new = min(self._how["max_new_tokens"], left, room)
                asked.append(
                    requests.Generate(context=context, **self._how | {"max_new_tokens": new})
                )
                found.append(None)
        answers = iter(self._model.generate(asked) if asked else [])
        return [next(answers)[0] if one is None else one for one in found]

    def _context_tokens(self) -> int:
        scorer = self._model.scorer
        return scorer.context_tokens or scorer.config.context_tokens


def said_tokens(tokenizer: Any, talk: Sequence[episode.Message]) -> int:
    """Tokens of the agent's turns."""
    said = [turn.content for turn in talk if turn.role == "assistant" and turn.content]
    return sum(map(len, tokenizer.bare(said))) if said else 0


def row(outcome: episode.Outcome, tokenizer: Any) -> dict[str, Any]:
    """What a document's line holds: the turns, how they ended, what was cut and why."""
    said = [turn for turn in outcome.messages if turn.role == "assistant"]
    return {
        "ended": outcome.how,
        "verdict": outcome.reason or "solved",
        "rounds": outcome.rounds,
        "tokens": said_tokens(tokenizer, said),
        "cut": dict(outcome.counts),
        "turns": [dataclasses.asdict(turn) for turn in outcome.messages],
    }
