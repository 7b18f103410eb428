# SPDX-License-Identifier: Apache-2.0
"""AgentBench's operating-system tasks: its files -> tasks -> episodes in a sandboxed world.

A record: {"description", "create": {"init": script}, "start": script, "evaluation": evaluation}, an
evaluation {"match": ...} or {"check": scripts, "example": script}, a script text or {"language",
"code" or "file"}.
"""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from midjax.evals.agents import episode
from midjax.evals.sandbox import run, world

LANGUAGES = ("bash", "python")
SHOWN = 780  # characters of an observation, as in AgentBench


class Unusable(ValueError):
    """A record that is not in this form; the message names what is wrong with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    language: str
    text: str

    def run(self, here: world.World, *arguments: str) -> world.Reply:
        if self.language == "python":
            return here.python(self.text, *arguments)
        return here.alone(["/bin/bash", "-c", self.text, "--", *arguments])  # -- is its $0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One record.

    Attributes:
      init: run before the episode, each in a process of its own.
      start: typed into the episode's shell first.
      match: {"answer": text} or {"regex": pattern}, with "strip".
      checks: run one after the other with the answer and all earlier outputs as arguments; each
        must exit with 0. None stands for `example`.
      example: a script that solves it.
    """

    id: str
    description: str
    init: tuple[Script, ...] = ()
    start: str = ""
    match: Mapping[str, Any] | None = None
    checks: tuple[Script | None, ...] = ()
    example: Script | None = None


def load(
    path: str | pathlib.Path, scripts: str | pathlib.Path
) -> tuple[list[Task], dict[str, str]]:
    """The tasks of one JSON or JSON Lines file, and why the others are none: {id: reason}.

    Args:
      scripts: the folder that the records' script files are relative to.
    """
    path = pathlib.Path(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
        records = json.loads(text)
        records = records if isinstance(records, list) else [records]
    tasks, unusable = [], {}
    for index, record in enumerate(records):
        name = f"{path.stem}-{index:05d}"
        try:
            tasks.append(task(name, record, scripts))
        except Unusable as error:
            unusable[name] = str(error)
    return tasks, unusable


def task(name: str, record: Mapping[str, Any], scripts: str | pathlib.Path) -> Task:
    """One record as a task.

    Args:
      scripts: as of `load`.

    Raises:
      Unusable: it is not in this form.
    """
    try:
        return _task(name, record, pathlib.Path(scripts))
    except (KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"not in AgentBench's form ({type(error).__name__} {error})") from error


def _task(name: str, record: Mapping[str, Any], scripts: pathlib.Path) -> Task:
    def script(given: Any) -> Script:
        if isinstance(given, str):
            return Script(language="bash", text=given)
        language = given.get("language", "bash")
        if language not in LANGUAGES:
            raise Unusable(f"a script in {language}")
        if "code" in given:
            return Script(language=language, text=given["code"])
        file = (scripts / given["file"]).resolve()
        if not file.is_relative_to(scripts.resolve()) or not file.is_file():
            raise Unusable(f"no script {given['file']}")
        return Script(language=language, text=file.read_text(encoding="utf-8"))

    def several(given: Any) -> list:
        return given if isinstance(given, list) else [given]

    create = record.get("create")
    init = create.get("init", []) if isinstance(create, dict) else []
    evaluation = record["evaluation"]
    match = evaluation.get("match")
    checks = () if match is not None else several(evaluation["check"])
    example = evaluation.get("example")
    if None in checks and example is None:
        raise Unusable("a check by an example that is not there")
    return Task(
        id=name,
        description=record["description"],
        init=tuple(map(script, several(init))),
        start=script(record["start"]).text if "start" in record else "",
        match={"answer": match, "strip": True} if isinstance(match, str) else match,
        checks=tuple(None if one is None else script(one) for one in checks),
        example=None if example is None else script(example),
    )


def action(text: str) -> tuple[str, str | None]:
    """A turn's last: ("bash", commands), ("answer", text), ("finish", None) or ("", None)."""
    for act in reversed(re.findall(r"Act:\s*(.+)", text)):
        lowered = act.lower()
        if lowered.startswith("bash"):
            return "bash", "\n\n".join(re.findall(r"```bash\n(.*?)\n?```", text, re.S))
        if lowered.startswith("finish"):
            return "finish", None
        if lowered.startswith("answer"):
            inside = re.search(r"\((.*)\)", act)
            if inside:
                return "answer", inside[1]
    return "", None


class Environment:
    """A task in a world of its own; see `episode.Environment`.

    `begin` raises WorldLost when a script that sets the task up fails and nothing else could tell.
    """

    def __init__(
        self, box: run.Sandbox, task: Task, opening: Sequence[episode.Message] = ()
    ) -> None:
        self.task, self.world, self.opening = task, world.World(box), list(opening)
        self.answer: str | None = None
        self._counts: collections.Counter[str] = collections.Counter()

    def begin(self) -> list[episode.Message]:
        self.world.__enter__()
        for script in self.task.init:
            done = script.run(self.world)
            # AgentBench does not look; where an example can tell what it did, `left_out` asks that.
            if done.status and self.task.example is None:
                raise world.WorldLost(f"init exits with {done.status}: {done.output[-200:]}")
        if self.task.start:
            self.world.shell(self.task.start)
        return list(self.opening)

    def step(self, text: str) -> str | None:
        kind, content = action(text)
        if kind == "bash":
            reply = self.world.shell(content or "")
            self._counts["observations cut"] += len(reply.output) > SHOWN
            return shown(reply)
        if kind == "":
            self._counts["turns without an action"] += 1
            return (
                "There is no action in this: end with Act: bash, Act: answer(...) or Act: finish."
            )
        self.answer = content
        return None

    def verdict(self) -> str:
        answer = self.answer
        if self.task.match is not None:
            return _match(answer, self.task.match)
        arguments = [str(answer)]
        for index, script in enumerate(self.task.checks):
            script = script or self.task.example
            assert script is not None  # `load` refuses the record otherwise
            done = script.run(self.world, *arguments)
            if done.status or done.stopped:
                return (
                    f"check {index} exits with {done.status}{done.stopped and ', ' + done.stopped}"
                )
            arguments.append(done.output)
        return ""

    def counts(self) -> Mapping[str, int]:
        return +self._counts

    def close(self) -> None:
        self.world.__exit__()


def _match(answer: str | None, match: Mapping[str, Any]) -> str:
    if answer is None:
        return "no answer"
    answer = answer.strip() if match.get("strip", True) else answer
    if "answer" in match:
        right = answer == match["answer"]
    else:
        right = re.search(match["regex"], answer) is not None
    return "" if right else f"the answer is {answer[:80]!r}"


def shown(reply: world.Reply) -> str:
    """A reply as the agent sees it."""
    text = reply.output
    if len(text) > SHOWN:
        text = text[:SHOWN] + "\n[cut: the output is longer]"
    if reply.stopped:
        text += {
            "time": "\n[stopped: it took too long; the shell is a new one]",
            "ended": "\n[the shell has ended; this is a new one]",
        }.get(reply.stopped, "\n[it could not be started]")
    return f"The output:\n\n{text}" if text else "The output is empty."


def left_out(box: run.Sandbox, task: Task) -> str:
    """Why this world can't hold a task, empty if it can: its own example must solve it here.

    A task that has no example, only an answer, is taken if its init runs.
    """

    def example(talks):
        return ["Act: answer(the example's)"] * len(talks)

    environment = _Example(box, task)
    [outcome] = episode.play([environment], example, rounds=1)
    return outcome.reason


class _Example(Environment):
    """Plays the task's own example, whose output is the answer."""

    def step(self, text: str) -> str | None:
        example = self.task.example
        if example is not None and self.task.match is not None:
            self.answer = self.world.shell(example.text).output.strip()
        elif example is not None:
            self.answer = example.run(self.world).output.strip()
        return None

    def verdict(self) -> str:
        reason = "" if self.task.example is None else super().verdict()
        return reason and f"its own example fails here: {reason}"
