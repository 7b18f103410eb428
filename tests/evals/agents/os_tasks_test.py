# SPDX-License-Identifier: Apache-2.0
"""Tasks in AgentBench's form, written for this test, played by scripts in place of a model."""

import json

import pytest
import sandboxes

from midjax.evals.agents import episode, os_tasks
from midjax.evals.sandbox import world

OPENING = [episode.Message(role="user", content="The task.")]
EQUAL = "from sys import argv\nexit(int(argv[1]) != int(argv[2]))"
RECORDS = [
    {
        "description": "How many files are in /home?",
        "create": {"init": {"code": "touch /home/a /home/b"}},
        "evaluation": {
            "check": [None, {"language": "python", "file": "equal.py"}],
            "example": "ls /home | wc -l",
        },
    },
    {
        "description": "Make a command double that doubles a number.",
        "evaluation": {
            "check": "[ $(double 21) = 42 ]",
            "example": "printf '#!/bin/bash\\necho $((2 * $1))\\n' > /usr/local/bin/double\n"
            "chmod +x /usr/local/bin/double",
        },
    },
    {
        "description": "What is the value of NAME?",
        "start": "NAME=seven",
        "evaluation": {"match": "seven"},
    },
    {"description": "Say a number.", "evaluation": {"match": {"regex": "^[0-9]+$"}}},
    {"description": "c", "evaluation": {"check": {"language": "c", "code": "main(){}"}}},
    {"description": "d", "evaluation": {"check": [None]}},
    {"description": "e", "evaluation": {"check": {"file": "../secret.sh"}}},
    {
        "description": "needs root",
        "create": {"init": "chown 12 /home"},
        "evaluation": {"match": "x"},
    },
]


@pytest.fixture
def tasks(tmp_path) -> list[os_tasks.Task]:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/equal.py").write_text(EQUAL)
    (tmp_path / "secret.sh").write_text("true")
    (tmp_path / "t.json").write_text(json.dumps(RECORDS))
    found, unusable = os_tasks.load(tmp_path / "t.json", tmp_path / "scripts")
    assert unusable == {
        "t-00004": "a script in c",
        "t-00005": "a check by an example that is not there",
        "t-00006": "no script ../secret.sh",
    }
    return found


def bash(commands: str) -> str:
    return f"Think: so.\n\nAct: bash\n\n```bash\n{commands}\n```"


def played(task: os_tasks.Task, *turns: str) -> episode.Outcome:
    script = iter(turns)
    environment = os_tasks.Environment(sandboxes.opened(), task, OPENING)
    [outcome] = episode.play([environment], lambda talks: [next(script)], rounds=len(turns))
    return outcome


def test_right_episodes_are_solved_and_wrong_ones_say_why(tasks):
    count, double, name, number, _ = tasks
    asked = played(count, bash("ls /home"), "Act: answer(2)")
    assert asked.solved and asked.messages[2].content == "The output:\n\na\nb\n"
    assert played(count, "Act: answer(3)").reason == "check 1 exits with 1"
    made = bash(double.example.text)
    assert played(double, made, "Act: finish").solved
    assert played(double, "Act: finish").reason == "check 0 exits with 2"
    assert played(name, bash("echo $NAME"), "Act: answer( seven )").solved
    assert played(name, "Act: answer(8)").reason == "the answer is '8'"
    assert played(name, "Act: finish").reason == "no answer"
    assert played(number, "Act: answer(12)").solved and not played(number, "Act: answer(x)").solved


def test_a_turn_without_action_is_told_so(tasks):
    outcome = played(tasks[2], "I think it is seven.", "Act: answer(seven)")
    assert outcome.solved and outcome.messages[2].content.startswith("There is no action")


def test_worlds_are_apart(tasks):
    box = sandboxes.opened()
    turns = {
        0: [bash("rm /home/*"), "Act: answer(0)"],
        1: [bash("ls /home | wc -l"), "Act: finish"],
    }
    environments = [os_tasks.Environment(box, tasks[0], OPENING) for _ in turns]

    def agent(talks):
        return [turns[index].pop(0) for index in range(len(talks))]

    outcomes = episode.play(environments, agent)
    assert outcomes[0].solved  # by the check's own count, of the world as it is now
    assert outcomes[1].messages[2].content == "The output:\n\n2\n"


def test_tasks_that_the_world_can_not_hold_are_named(tasks):
    box = sandboxes.opened()
    reasons = box.map(lambda task: os_tasks.left_out(box, task), tasks)
    assert reasons[:4] == ["", "", "", ""]
    assert "init exits with" in reasons[4]
    broken = os_tasks.Task(
        id="x", description="", checks=(None,), example=os_tasks.Script(language="bash", text="zzz")
    )
    assert os_tasks.left_out(box, broken) == "its own example fails here: check 0 exits with 127"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bash("ls"), ("bash", "ls")),
        ("Act: bash\n```bash\na\n```\nor\n```bash\nb\n```", ("bash", "a\n\nb")),
        ("Act: bash", ("bash", "")),
        ("Think: Act: bash\nAct: finish", ("finish", None)),
        ("Act: answer(f(x) (y))", ("answer", "f(x) (y)")),
        ("Act: answer 3", ("", None)),
        ("act: finish", ("", None)),
        ("", ("", None)),
    ],
)
def test_the_last_action_counts(text, expected):
    assert os_tasks.action(text) == expected


def test_what_the_agent_sees_is_cut_and_explained():
    def reply(output, stopped=""):
        return world.Reply(output=output, status=0, stopped=stopped)

    assert os_tasks.shown(reply("")) == "The output is empty."
    long = os_tasks.shown(reply("x" * 5000))
    assert len(long) < 850 and long.endswith("[cut: the output is longer]")
    assert "took too long" in os_tasks.shown(reply("x", "time"))
