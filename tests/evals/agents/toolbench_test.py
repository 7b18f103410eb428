# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest

from midjax.evals.agents import episode, toolbench


def said(action: str, thought: str = "Hm.", **arguments) -> str:
    return f"Thought: {thought}\nAction: {action}\nAction Input: {json.dumps(arguments)}"


ANSWER = said("Finish", return_type="give_answer", final_answer="It rains.")
GIVE_UP = said("Finish", return_type="give_up_and_restart")
TOOLS = ["weather", "map"]


@pytest.mark.parametrize(
    ("text", "plan", "action", "arguments"),
    [
        (said("weather", city="Bonn"), "call", "weather", {"city": "Bonn"}),
        ("Action: weather\nAction Input: {\n}", "call", "weather", {}),
        ("Action: weather", "call", "weather", {}),
        ("Action: weather\nAction Input: {oops", "call", "weather", None),
        ("Action: weather\nAction Input: [1]", "call", "weather", None),
        ("Action Input: {}", "call", "", {}),
        ("It rains.", "call", "", {}),
        (ANSWER, "finish", "Finish", json.loads(ANSWER.rpartition(": {")[2].join(["{", ""]))),
        (GIVE_UP, "give up", "Finish", {"return_type": "give_up_and_restart"}),
        ("Action: Finish\nAction Input: rain", "give up", "Finish", None),
        (f"{GIVE_UP}\n{said('map')}", "call", "map", {}),  # the last one counts
    ],
)
def test_steps_are_read(text, plan, action, arguments):
    step = toolbench.parse(text)
    assert (step.plan, step.action, step.arguments) == (plan, action, arguments)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        # Half a point for a name with another value: recall m/|theirs|, precision m/|ours|.
        ({"a": 1}, {"a": 1}, 1.0),
        ({"a": 2}, {"a": 1}, 0.5),
        ({"a": 1, "b": 2}, {"a": 1}, 2 * (1 / 1) * (1 / 2) / (1 / 1 + 1 / 2)),
        ({"a": 1, "b": 0}, {"a": 1, "b": 2, "c": 3}, 2 * 0.5 * 0.75 / (0.5 + 0.75)),
        ({"z": 1}, {"a": 1}, 0.0),
        ({}, {}, 1.0),
        ({"a": 1}, {}, 0.0),
        ({}, {"a": 1}, 0.0),
        (None, {"a": 1}, 0.0),
    ],
)
def test_the_arguments_f1(ours, theirs, expected):
    assert toolbench.f1(ours, theirs) == pytest.approx(expected)


def test_scores_and_their_means():
    gold = said("weather", city="Bonn")
    scores = [
        toolbench.score(gold, gold, TOOLS),
        toolbench.score(said("map", city="Bonn"), gold, TOOLS),
        toolbench.score(said("tides"), gold, TOOLS),
        toolbench.score(ANSWER, gold, TOOLS),
        toolbench.score(ANSWER, ANSWER, TOOLS),
        toolbench.score("no action", GIVE_UP, TOOLS),
        toolbench.score(gold, said(toolbench.INVALID), TOOLS),
        toolbench.score(gold, "Action: map\nAction Input: {", TOOLS),
    ]
    summary = toolbench.summarize(scores)
    assert (summary.scored, summary.calls) == (6, 4)
    assert summary.plan == pytest.approx(4 / 6) and summary.invented == pytest.approx(1 / 6)
    assert (summary.action, summary.arguments) == (0.25, 0.25)
    assert scores[4].answers == ("It rains.", "It rains.")
    assert dict(summary.unused) == {
        "the record calls an invented tool": 1,
        "the record's arguments are no JSON object": 1,
    }


def test_without_calls_there_is_no_mean_and_without_steps_no_summary():
    summary = toolbench.summarize([toolbench.score(ANSWER, ANSWER, TOOLS)])
    assert summary.plan == 1 and math.isnan(summary.action)
    with pytest.raises(ValueError, match="None of 1 steps"):
        toolbench.summarize(["no record"])


def test_episodes_run_on_recorded_replies():
    recordings = toolbench.Recordings()
    turns = [
        {"from": "user", "value": "Weather and map of Bonn?"},
        {"from": "assistant", "value": said("weather", city="Bonn", day=1)},
        {"from": "function", "value": "rain"},
        {"from": "assistant", "value": "Action: map\nAction Input: {oops"},
        {"from": "function", "value": "error"},
        {"from": "assistant", "value": ANSWER},
    ]
    assert recordings.add_conversation(turns) == 1
    opening = [episode.Message(role="user", content=turns[0]["value"])]
    plays = {
        "right": [said("weather", day=1, city="Bonn"), ANSWER],  # in another order
        "unrecorded": [said("weather", city="Ulm"), ANSWER],
        "gives up": [GIVE_UP],
    }
    environments = [toolbench.Environment(opening, recordings) for _ in plays]
    scripts = {i: iter(turns) for i, turns in enumerate(plays.values())}

    def agent(talks):
        live = [i for i, one in enumerate(environments) if not one.plan]
        assert len(live) == len(talks)
        return [next(scripts[i]) for i in live]

    outcomes = episode.play(environments, agent)
    assert [outcome.reason for outcome in outcomes] == [
        "",
        "1 of 1 calls are not recorded",
        "it gave no answer",
    ]
    assert outcomes[0].messages[2].content == "rain" and environments[0].answer == "It rains."
    assert "No reply to this call is recorded" in outcomes[1].messages[2].content
