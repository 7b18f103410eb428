# SPDX-License-Identifier: Apache-2.0
"""Agents through the suite: who knows the answers solves all, who writes nonsense nothing; limits,
what is left out, and a model of its own end to end."""

import collections
import json
import types

import byte_pairs
import pytest
import sandboxes
import tiny_model

from midjax import __main__ as cli
from midjax import files
from midjax.evals import likelihood_tokens, suite
from midjax.evals import task as tasks
from midjax.evals.agents import asked as agents
from midjax.evals.agents import toolbench
from midjax.evals.sandbox import program, selftest
from midjax.model import hf

OS = [
    {
        "description": "How many files are in /home?",
        "create": {"init": {"code": "touch /home/a /home/b"}},
        "evaluation": {
            "check": [None, {"language": "python", "file": "equal.py"}],
            "example": "ls /home | wc -l",
        },
    },
    {
        "description": "Write yes into /root/said.",
        "evaluation": {"check": "[ $(cat /root/said) = yes ]", "example": "echo yes > /root/said"},
    },
    {
        "description": "Print 900 letters, then say done.",
        "evaluation": {"match": "done"},
    },
    {"description": "c", "evaluation": {"check": {"language": "c", "code": "main(){}"}}},
    {"description": "g", "evaluation": {"check": [None], "example": "useradd -G nobody me"}},
]
EQUAL = "from sys import argv\nexit(int(argv[1]) != int(argv[2]))"


def bash(commands):
    return f"Think: so.\nAct: bash\n\n```bash\n{commands}\n```"


ORACLE = {
    OS[0]["description"]: [bash("ls /home | wc -l"), "Act: answer(2)"],
    OS[1]["description"]: [bash("echo yes > /root/said"), "Act: finish"],
    OS[2]["description"]: [bash("printf '%0900d' 0"), "Act: answer(done)"],
}


def step(action, **arguments):
    return f"Thought: Hm.\nAction: {action}\nAction Input: {json.dumps(arguments)}"


ANSWER = step("Finish", return_type="give_answer", final_answer="It rains.")
TOOLS = [{"name": name, "description": 'It\'s a "tool".'} for name in ("weather", "map", "Finish")]
SYSTEM = f"You are a machine.\nSpecifically, you have access to the following APIs: {TOOLS}"


def conversation(question, *turns, system=SYSTEM):
    speakers = ["system", "user"] + ["assistant", "function"] * len(turns)
    said = [system, f"\n{question}\nBegin!\n", *turns]
    return {
        "id": question,
        "conversations": [
            {"from": who, "value": text} for who, text in zip(speakers, said, strict=False)
        ],
    }


BONN = ("Weather in Bonn?", step("weather", city="Bonn"), "rain", ANSWER)
TALKS = [
    conversation(*BONN),
    conversation(*BONN[:2]),  # a beginning of the one before, as ToolBench has them
    conversation("Where is Ulm?", step("map", city="Ulm"), '{"error": ""}', ANSWER),
    conversation("Tides?", step(toolbench.INVALID), "error", ANSWER),
    conversation("Snow?", step("weather", city="Rom"), "no", step("Finish", return_type="x")),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data folder in the public forms, and a Hugging Face folder of a tiny model."""
    folder = tmp_path_factory.mktemp("agents")
    shell = folder / "data" / "agentbench" / "os_interaction"
    (shell / "data" / "1").mkdir(parents=True)
    (shell / "scripts" / "1").mkdir(parents=True)
    (shell / "data" / "1" / "some.json").write_text(json.dumps(OS[:3]))
    (shell / "data" / "1" / "that.json").write_text(json.dumps(OS[3:]))
    (shell / "scripts" / "1" / "equal.py").write_text(EQUAL)
    (folder / "data" / "toolbench").mkdir()
    (folder / "data" / "toolbench" / "toolllama_G123_dfs_eval.json").write_text(json.dumps(TALKS))
    for name, more in (("os_tasks", 'subsets = ["1"]'), ("toolbench_episodes", "")):
        short = "[generate]\nmax_new_tokens = 9\n"
        (folder / f"{name}.toml").write_text(f'base = "{name}"\n{more}\n')
        (folder / f"short_{name}.toml").write_text(f'base = "{name}"\n{more}\n{short}')
    config = tiny_model.config(
        vocab_size=264, layers=1, heads=2, kv_heads=1, initializer_std=0.4, context_tokens=2500
    )
    hf.save(str(folder / "hf"), config, tiny_model.params(config), "float32", ids={})
    byte_pairs.save(
        folder / "hf", byte_pairs.make(template=True), bos_token="<s>", eos_token="</s>"
    )
    return folder


@pytest.fixture(scope="module")
def box():
    return sandboxes.opened()


class Scripted:
    """An engine whose texts are those of `said`, a function of the prompt."""

    def __init__(self, said, context_tokens=10**6):
        tokenizer = likelihood_tokens.Tokenizer(tokenizer=byte_pairs.make(), prefix_id=0)
        config = types.SimpleNamespace(context_tokens=context_tokens, compute_dtype="float32")
        self.scorer = types.SimpleNamespace(
            tokenizer=tokenizer,
            config=config,
            context_tokens=None,
            counts=collections.Counter(),
            between=lambda: None,
        )
        self.said, self.batches, self.rooms = said, [], []

    def generate(self, wanted):
        self.batches.append(len(wanted))
        self.rooms += [one.max_new_tokens for one in wanted]
        return [(self.said(one.context),) for one in wanted]


def at_a_shell(prompt):
    (turns,) = [turns for asked, turns in ORACLE.items() if asked in prompt]
    return turns[prompt.count("Assistant:") - 1]


def with_tools(prompt):
    """The recorded steps, by the question."""
    (talk,) = [one for one in TALKS[:1] + TALKS[2:] if one["id"] in prompt]
    said = [turn["value"] for turn in talk["conversations"] if turn["from"] == "assistant"]
    return said[prompt.count("Assistant:") - 1]


def run(made, name, engine, **changes):
    names = (name if "/" not in name else str(made / name[1:]),)
    config = suite.Tasks(data=str(made / "data"), names=names, **changes)
    inputs = suite.check(config, context_tokens=10**6, tokenizer_folder=str(made / "hf"))
    return suite.run(config, inputs, engine)


def test_an_oracle_at_a_shell_solves_all_and_nonsense_nothing(made, box, monkeypatch):
    monkeypatch.setattr(selftest, "open", lambda **settings: box)
    engine = Scripted(at_a_shell)
    found = run(made, "/os_tasks.toml", engine)
    told = found.tasks["os_tasks"]
    assert told["metrics"] == {"solved": 1.0} and told["documents"] == 3
    assert told["counts"]["left out"] == {"unusable": 1, "its own example fails here": 1}
    assert told["counts"]["verdicts"] == {"solved": 3}
    assert told["counts"]["cut"] == {"observations cut": 1}
    assert engine.batches == [3, 3]  # episodes answer together
    first = found.documents[0]
    assert (first["id"], first["verdict"], first["rounds"]) == ("1/0", "solved", 2)
    assert [turn["role"] for turn in first["turns"]] == ["user", "assistant"] * 2
    assert first["turns"][0]["content"].endswith("The task:\n\nHow many files are in /home?")
    assert first["turns"][2]["content"] == "The output:\n\n2\n"
    assert first["tokens"] == sum(len(turn) for turn in ORACLE[OS[0]["description"]])  # bytes

    found = run(made, "/os_tasks.toml", Scripted(lambda prompt: "what?"), batch_rows=2)
    told = found.tasks["os_tasks"]
    assert told["metrics"] == {"solved": 0.0}
    assert told["counts"]["verdicts"] == {"out of rounds": 3}
    assert told["counts"]["cut"] == {"turns without an action": 24}
    assert found.documents[2]["verdict"] == "not done after 8 rounds"


def test_what_is_played_in_the_sandbox_can_be_interrupted(made, box, monkeypatch):
    monkeypatch.setattr(selftest, "open", lambda **settings: box)
    engine = Scripted(at_a_shell)

    def stop():
        raise InterruptedError

    engine.scorer.between = stop  # which this engine itself does not call
    with pytest.raises(InterruptedError):
        run(made, "/os_tasks.toml", engine)


def test_episodes_on_recorded_replies(made):
    engine = Scripted(with_tools)
    found = run(made, "toolbench_episodes", engine)
    told = found.tasks["toolbench_episodes"]
    # Of five conversations one has a beginning only, and one gives no answer.
    assert told["counts"]["left out"] == {"data.keep": 2}
    assert told["metrics"] == {"solved": pytest.approx(2 / 3)}  # an invented tool has no reply
    assert told["counts"]["verdicts"] == {"not solved": 1, "solved": 2}
    assert told["counts"]["cut"] == {"calls without a record": 1}
    assert found.documents[0]["turns"][3]["content"] == "rain"
    nonsense = run(made, "toolbench_episodes", Scripted(lambda prompt: "It rains."))
    assert nonsense.tasks["toolbench_episodes"]["metrics"] == {"solved": 0.0}


def test_steps_are_scored_against_the_recorded_ones(made):
    found = run(made, "toolbench_steps", Scripted(with_tools)).tasks["toolbench_steps"]
    titles = ("step_action", "step_arguments", "step_plan", "step_offered")
    assert found["metrics"] == dict.fromkeys(titles, 1.0)
    # Nine steps of models; one is there twice, one calls what is not offered. 14 turns are others'.
    assert found["documents"] == 7
    left_out = {"data.keep": 14, "asked already": 1, "the record calls an invented tool": 1}
    assert found["counts"]["left out"] == left_out
    other = run(made, "toolbench_steps", Scripted(lambda prompt: step("weather", city="Ulm")))
    parts = other.tasks["toolbench_steps"]["subsets"]
    # Calls: weather in Bonn, map of Ulm, weather in Rome; half a point for the argument's name.
    assert parts["calls"]["step_action"] == pytest.approx(2 / 3)
    assert parts["calls"]["step_arguments"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert parts["calls"]["step_plan"] == 1 and parts["ends"]["step_action"] == 0
    nothing = run(made, "toolbench_steps", Scripted(lambda prompt: step("tides")))
    assert nothing.tasks["toolbench_steps"]["metrics"]["step_offered"] == 0


def test_tokens_and_context_end_an_episode(made):
    def slow(prompt):
        return step("map", city="Ulm")  # as many tokens as bytes

    size = len(slow(""))
    few = f'base = "toolbench_episodes"\n[agent]\ntokens = {2 * size}\n'
    (made / "few.toml").write_text(few)
    engine = Scripted(slow)
    found = run(made, "/few.toml", engine)
    assert found.tasks["few"]["counts"]["verdicts"] == {"out of tokens": 3}
    assert {row["rounds"] for row in found.documents} == {2}
    assert {row["tokens"] for row in found.documents} == {2 * size}
    assert set(engine.rooms) == {2 * size, size}  # what is left of the episode

    opening = max(len(row["turns"][0]["content"]) for row in found.documents)
    engine = Scripted(slow, context_tokens=opening + 100)
    found = run(made, "toolbench_episodes", engine, max_new_tokens=size)
    assert found.tasks["toolbench_episodes"]["counts"]["verdicts"] == {"beyond the context": 3}
    assert found.documents[0]["verdict"].startswith("a conversation of ")


def test_a_model_plays_end_to_end(made, box, monkeypatch):
    monkeypatch.setattr(selftest, "open", lambda **settings: box)
    names = tuple(str(made / f"short_{name}.toml") for name in ("os_tasks", "toolbench_episodes"))
    given = {
        "Eval.folder": made / "hf",
        "Eval.output": made / "out",
        "Eval.name": "agents",
        "Tasks.data": made / "data",
        "Tasks.names": repr(names),
    }
    bound = [f"--gin.{key}={value}" for key, value in given.items()]
    assert cli.main(["eval", "--gin_file=gin/recipes/eval_huggingface.gin", *bound]) == 0
    found = files.read_json(made / "out" / "eval" / "agents.json")["tasks"]
    text = (made / "out" / "eval" / "agents.documents.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["task"] for row in rows] == ["short_os_tasks"] * 3 + [
        "short_toolbench_episodes"
    ] * 3
    for row in rows:
        said = [turn["content"] for turn in row["turns"] if turn["role"] == "assistant"]
        assert len(said) == row["rounds"] > 0 and row["scores"] == {"solved": 0.0}
        # Bytes that are no text come back as three each.
        assert row["tokens"] <= 3 * 9 * row["rounds"]
    for name, task in found.items():
        ended = [row["ended"] for row in rows if row["task"] == name]
        assert task["counts"]["verdicts"] == {how: ended.count(how) for how in set(ended)}
        assert task["metrics"] == {"solved": 0.0} and task["counts"]["cut requests"] == 0
        # A random model ends no turn by itself; the last one may be cut by the episode's tokens.
        assert task["counts"]["texts cut"] == sum(
            row["rounds"] for row in rows if row["task"] == name
        )


def test_an_agent_at_a_shell_is_refused_without_a_sandbox(made, monkeypatch):
    def refuse(**settings):
        raise program.SandboxUnavailable(["bubblewrap does not start here"])

    monkeypatch.setattr(selftest, "open", refuse)
    with pytest.raises(program.SandboxUnavailable, match="bubblewrap does not start here"):
        run(made, "/os_tasks.toml", Scripted(at_a_shell))
    run(made, "toolbench_episodes", Scripted(with_tools))  # runs nothing that a model wrote


def test_what_no_agent_can_play_is_refused(made, monkeypatch):
    talk = conversation("What?", ANSWER, system="no tools")
    (made / "other").mkdir()
    (made / "other" / "all.json").write_text(json.dumps([talk]))
    text = 'base = "toolbench_steps"\nsubsets = ["ends"]\n[data]\npath = "../other/all"\n'
    (made / "no_tools.toml").write_text(text)
    with pytest.raises(ValueError, match="none of 1 documents can be asked: .*no list of tools"):
        run(made, "/no_tools.toml", Scripted(with_tools))
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match="plays episodes, which several processes can't"):
        run(made, "toolbench_episodes", Scripted(with_tools))


def test_shell_tasks_of_one_text_are_asked_each_and_fields_are_checked_first():
    def instance(**fields):
        return types.SimpleNamespace(id="1", subset="", fields=fields, requests=("a text",))

    box = types.SimpleNamespace(map=lambda function, some: [""] * len(some))
    left_out = collections.Counter()
    twice = [instance(turns=[{"role": "user", "content": "Count."}], world=n) for n in (1, 2)]
    assert agents.usable(tasks.load("os_tasks"), twice, "", box, left_out) == twice
    assert not +left_out
    with pytest.raises(ValueError, match="lacks conversations, turns, .* it has world"):
        agents.usable(tasks.load("toolbench_episodes"), [instance(world=1)], "", None, left_out)
    odd = [instance(turns=[{"from": "user"}], conversations=[])]
    with pytest.raises(ValueError, match="document 1: 'turns' must be a list of objects with role"):
        agents.usable(tasks.load("toolbench_episodes"), odd, "", None, left_out)
