# SPDX-License-Identifier: Apache-2.0
"""ToolBench without its services: steps scored against recorded ones, episodes on recorded replies.

A step is text, as ToolLLaMA writes it (2307.16789, appendix):

    Thought: ...
    Action: search_for_shop
    Action Input: {"query": "tea"}

`Finish` ends: {"return_type": "give_answer", "final_answer": ...} or "give_up_and_restart". The
measures are those of the static test sets (2401.07324, section 4): plan, action, arguments' F1, the
rate of invented tools; the fifth, Rouge-L of final answers, is left to whoever has it: both texts
are in `Score.answers`.
"""

import ast
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from midjax.evals.agents import episode

FINISH = "Finish"
INVALID = "invalid_hallucination_function_name"  # how ToolBench's records mark an invented tool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One turn of an agent.

    Attributes:
      plan: `call` a tool, `finish` with an answer, or `give up`.
      action: the tool; empty if the text names none.
      arguments: an object, or None where the text holds no JSON object.
      answer: of `finish`.
    """

    plan: str
    action: str
    arguments: Mapping[str, Any] | None
    answer: str = ""


def parse(text: str) -> Step:
    """The last action in `text`; any text parses, if only to a call of nothing."""
    action, has_input, given = text.rpartition("Action Input:")
    if not has_input:
        action, given = text, "{}"
    _, has_name, name = action.rpartition("Action:")
    name = name.strip() if has_name else ""
    try:
        arguments = json.loads(given.strip() or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        arguments = None
    if name != FINISH:
        return Step(plan="call", action=name, arguments=arguments)
    if arguments is None or arguments.get("return_type") != "give_answer":
        return Step(plan="give up", action=name, arguments=arguments)
    answer = str(arguments.get("final_answer", "")).strip()
    return Step(plan="finish", action=name, arguments=arguments, answer=answer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One step against the recorded one.

    Attributes:
      plan: the same plan.
      invented: calls a tool that is not offered.
      action: the same tool; None unless the record calls one, as the next.
      arguments: F1 of the arguments: 1 for an equal value, a half for the right name alone, over
        both sides' numbers of arguments; 0 with another tool.
      answers: (the model's, the record's) where the record finishes; the model's may be empty.
    """

    plan: bool
    invented: bool
    action: bool | None = None
    arguments: float | None = None
    answers: tuple[str, str] | None = None


def score(written: str, recorded: str, tools: Iterable[str]) -> Score | str:
    """How a step compares with the recorded one; or why the record can't be used."""
    ours, theirs, offered = parse(written), parse(recorded), {*tools, FINISH}
    if theirs.plan == "call" and theirs.action not in offered:
        kind = "an invented tool" if theirs.action in ("", INVALID) else "a tool not offered"
        return f"the record calls {kind}"
    invented = ours.action not in ("", *offered)
    same_plan = ours.plan == theirs.plan
    if theirs.plan == "finish":
        return Score(plan=same_plan, invented=invented, answers=(ours.answer, theirs.answer))
    if theirs.plan == "give up":
        return Score(plan=same_plan, invented=invented)
    if theirs.arguments is None:
        return "the record's arguments are no JSON object"
    same = ours.action == theirs.action
    return Score(
        plan=same_plan,
        invented=invented,
        action=same,
        arguments=f1(ours.arguments, theirs.arguments) if same else 0.0,
    )


def f1(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any]) -> float:
    """See `Score.arguments`; two empty sets are equal."""
    if ours is None:
        return 0.0
    if not theirs or not ours:
        return float(not theirs and not ours)
    common = [ours[key] == value for key, value in theirs.items() if key in ours]
    matched = sum(1.0 if equal else 0.5 for equal in common)
    return 2 * matched / (len(ours) + len(theirs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Means over steps, and what they are means of.

    Attributes:
      plan, invented: over all scored steps.
      action, arguments: over those whose record calls a tool; NaN without any.
      scored, calls: how many these are.
      unused: reason -> records.
    """

    plan: float
    invented: float
    action: float
    arguments: float
    scored: int
    calls: int
    unused: Mapping[str, int]


def summarize(scores: Sequence[Score | str]) -> Summary:
    """Raises ValueError when not one record could be scored."""
    good = [one for one in scores if isinstance(one, Score)]
    unused: dict[str, int] = {}
    for one in scores:
        if isinstance(one, str):
            unused[one] = unused.get(one, 0) + 1
    if not good:
        raise ValueError(f"None of {len(scores)} steps can be scored: {unused}.")
    calls = [one for one in good if one.action is not None]
    number = len(calls) or float("nan")
    return Summary(
        plan=sum(one.plan for one in good) / len(good),
        invented=sum(one.invented for one in good) / len(good),
        action=sum(bool(one.action) for one in calls) / number,
        arguments=sum(one.arguments or 0.0 for one in calls) / number,
        scored=len(good),
        calls=len(calls),
        unused=unused,
    )


_OFFERED = "access to the following APIs:"


@functools.lru_cache(maxsize=4096)
def offered(system: str) -> frozenset[str]:
    """Names of the tools that a system message of ToolLLaMA's lists, as Python writes a list.

    Raises:
      ValueError: it lists none.
    """
    _, is_there, listed = system.partition(_OFFERED)
    try:
        return frozenset(str(tool["name"]) for tool in ast.literal_eval(listed.strip()))
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        raise ValueError(
            f"A system message has no list of tools behind {_OFFERED!r}: it "
            f"{'holds something else there' if is_there else 'does not say that'}."
        ) from None


def part(name: str, written: str, recorded: str, system: str) -> float:
    """One of the measures of a step, for means over all steps.

    Args:
      name: "plan", "action", "arguments", "offered" (no invented tool); where the record does not
        call, "action" and "arguments" are right if the step ends in the same way.
      system: the message that offers the tools.

    Raises:
      ValueError: the record can't be used, see `score`.
    """
    found = score(written, recorded, offered(system))
    if isinstance(found, str):
        raise ValueError(f"A recorded step can't be compared with: {found}.")
    if name == "offered":
        return float(not found.invented)
    value = {"plan": found.plan, "action": found.action, "arguments": found.arguments}[name]
    return float(found.plan if value is None else value)


class Recordings:
    """What tools replied, by tool and arguments, whatever the order of the arguments."""

    def __init__(self) -> None:
        self._replies: dict[tuple[str, str], str] = {}

    def add(self, action: str, arguments: Mapping[str, Any], reply: str) -> None:
        """The first reply to a call is kept."""
        self._replies.setdefault((action, _canonical(arguments)), reply)

    def add_conversation(self, turns: Sequence[Mapping[str, str]]) -> int:
        """Takes the replies in a record of ToolLLaMA's, [{"from", "value"}]; how many there are.

        Not those to calls of nothing, or of a tool that the record marks as invented.
        """
        count = 0
        for said, heard in itertools.pairwise(turns):
            if (said["from"], heard["from"]) == ("assistant", "function"):
                step = parse(said["value"])
                is_tool = step.plan == "call" and step.action not in ("", INVALID)
                if is_tool and step.arguments is not None:
                    self.add(step.action, step.arguments, heard["value"])
                    count += 1
        return count

    def reply(self, action: str, arguments: Mapping[str, Any] | None) -> str | None:
        if arguments is None:
            return None
        return self._replies.get((action, _canonical(arguments)))


def _canonical(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True)


class Environment:
    """An episode on recorded replies; see `episode.Environment`.

    It is solved when the agent finishes with an answer and every call had a recorded reply. Whether
    the answer is good is a judge's matter: read `answer`.

    Attributes:
      calls, missed: how many calls there were, and how many of them nobody had recorded.
      answer: of the agent.
    """

    def __init__(self, opening: Sequence[episode.Message], recordings: Recordings) -> None:
        self.opening, self.recordings = list(opening), recordings
        self.calls, self.missed = 0, 0
        self.plan, self.answer = "", ""

    def begin(self) -> list[episode.Message]:
        return list(self.opening)

    def step(self, text: str) -> str | None:
        step = parse(text)
        if step.plan != "call":
            self.plan, self.answer = step.plan, step.answer
            return None
        self.calls += 1
        reply = self.recordings.reply(step.action, step.arguments)
        if reply is None:
            self.missed += 1
            return json.dumps({"error": "No reply to this call is recorded.", "response": ""})
        return reply

    def verdict(self) -> str:
        if self.plan != "finish" or not self.answer:
            return "it gave no answer"
        return f"{self.missed} of {self.calls} calls are not recorded" if self.missed else ""

    def counts(self) -> Mapping[str, int]:
        return {"calls without a record": self.missed} if self.missed else {}

    def close(self) -> None:
        pass
