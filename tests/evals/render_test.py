# SPDX-License-Identifier: Apache-2.0
"""Rendered requests against those that OLMES and lm_eval made of the same documents."""

import collections
import gzip
import json
import pathlib

import pytest

from midjax.evals import examples, render, requests, task, task_data, task_parts, template

DATA = pathlib.Path(__file__).parents[1] / "data"


def given(name):
    lines = gzip.decompress((DATA / name / "requests.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line) for line in lines]


def documents(records, subset=""):
    return [
        task_data.Document(id=str(number), subset=subset, fields=record)
        for number, record in enumerate(records)
    ]


@pytest.mark.parametrize("case", given("olmes"), ids=lambda case: case["set"].replace("/", "-"))
def test_requests_equal_those_of_olmes(case):
    noted = collections.Counter()
    found = render.instances(
        task.load(case["task"]),
        documents(case["documents"]),
        pool=documents(case["pool"] or ()),
        shots=case["shots"],
        noted=noted,
    )
    assert not +noted
    assert sum(len(instance.requests) for instance in found) == len(case["requests"])
    for number, choice, is_unconditional, context, continuation, label in case["requests"]:
        instance = found[number]
        place = choice + len(instance.choices) * is_unconditional
        wanted = requests.Loglikelihood(
            context=case["contexts"][context], continuation=continuation
        )
        assert instance.requests[place] == wanted
        if instance.choices:
            assert instance.gold == label


PICKED = ("arc_easy_rc", "arc_challenge_rc", "boolq_rc", "piqa_rc", "drop", "naturalqs", "squad")


@pytest.mark.parametrize("name", PICKED)
def test_a_checkout_has_the_examples_that_do_not_ship(name):
    asked = task.load(name)
    pool = task_data.read(asked, str(DATA / "olmes" / "examples"), split=asked.shots.split)
    noted = collections.Counter()
    (found,) = render.instances(asked, pool[:1], pool=pool, noted=noted)
    assert len(pool) == asked.shots.count == 5 and not +noted
    questions = [one.fields.get("goal") or one.fields["question"] for one in pool]
    assert all(question in found.requests[0].context for question in questions)
    assert found.requests[0].context.count(questions[0]) == 2  # as example and as question


@pytest.mark.parametrize("case", given("lm_eval"), ids=lambda case: case["task"])
def test_requests_equal_those_of_lm_eval(case):
    pool = case["pool"] or []
    if isinstance(pool, dict):  # of a long split, the records that are drawn
        pool = [pool["records"].get(str(i), {"other": i}) for i in range(pool["length"])]
    found = render.instances(
        task.load(case["task"]),
        documents(case["documents"], case["subset"]),
        pool=documents(pool, case["subset"]),
        shots=case["shots"],
    )
    for number, place, context, asked in case["requests"]:
        request = found[number].requests[place]
        assert request.context == context
        if isinstance(request, requests.Generate):
            assert list(request.stop) == asked
        else:
            assert request.continuation == asked


CHOICE = """
source = "a test"
kind = "choice"
primary = "acc"
prompt = "Q: {{question}}\\nA:"
answer = " {{choice}}"
choices = "options"
gold = "right"
metrics = [{ name = "acc" }]

[data]
path = "x"
split = "test"
licence = "none"
"""


def a_task(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return task.load(str(path))


def questions(count):
    return documents(
        [{"question": f"q{i}", "options": ["a", "b"], "right": i % 2} for i in range(count)]
    )


def shown(instance):
    return [line[3:] for line in instance.requests[0].context.splitlines() if line[:3] == "Q: "]


def test_picked_examples_are_found_in_a_split(tmp_path, capsys):
    """By what they are asked, and among several of that by what they show."""

    def name(number, right):
        content = [f"q{number}", ["a", "b"], right]
        return f"{examples.digest(content[0])}-{examples.digest(content)}"

    picked = json.dumps([name(2, 0), name(0, 1), name(1, 0)])
    shots = '\n[shots]\ncount = 2\nsplit = "train"\ntake = "picked"\npick = "question"\n'
    more = f'content = "[question, options, right]"\npicked = {picked}\n'
    mine = a_task(tmp_path, CHOICE + shots + more)
    again = {"question": "q0", "options": ["a", "b"], "right": 1}
    pool = [*questions(3), *documents([again])]
    noted = collections.Counter()
    asked = documents([{"question": "q", "options": ["a"], "right": 0}])
    (found,) = render.instances(mine, asked, pool=pool, noted=noted)
    assert found.requests[0].context == "Q: q2\nA: a\n\nQ: q0\nA: b\n\nQ: q\nA:" and not +noted
    # There is a q1, with another answer.
    (found,) = render.instances(mine, asked, pool=pool, shots=3, noted=noted)
    assert "Q: q1\nA: b" in found.requests[0].context and noted == {"other examples": 1}
    assert "1 of 3 examples are there, with other words" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has 1 documents, and its examples number \[1\] are not"):
        render.instances(mine, asked, pool=questions(1))
    assert shown(render.instances(mine, asked, shots=0)[0]) == ["q"]
    with pytest.raises(ValueError, match="lists 3 examples, 4 asked"):
        render.instances(mine, asked, pool=pool, shots=4)
    own = a_task(tmp_path, CHOICE.replace('"x"', '"{split}"') + shots + more)
    (tmp_path / "test.jsonl").write_text(json.dumps(dict(asked[0].fields)))
    with pytest.raises(task_data.MissingDataError, match=r"there is no .*/train .*Tasks.shots = 0"):
        render.prepare(own, str(tmp_path))


def test_all_that_is_missing_is_said_at_once(tmp_path):
    with pytest.raises(task_data.MissingDataError) as caught:
        render.prepare(task.load("squad"), str(tmp_path))
    for words in ("squad/validation", "squad/train", "Its examples are of the split 'train'"):
        assert words in str(caught.value) and words.lower() in caught.value.brief.lower()
    with pytest.raises(task_data.MissingDataError) as caught:
        render.prepare(task.load("squad"), str(tmp_path), shots=0)
    assert "squad/train" not in str(caught.value)


def test_an_example_that_is_lost_is_counted(tmp_path):
    """A question that another split holds too, as its first example."""
    shots = '\n[shots]\ncount = 1\nsplit = "train"\ntake = "first"\n'
    noted = collections.Counter()
    mine = a_task(tmp_path, CHOICE + shots)
    found = render.instances(mine, questions(3), pool=questions(2), noted=noted)
    assert [shown(instance) for instance in found] == [["q0"], ["q0", "q1"], ["q0", "q2"]]
    assert noted == {"fewer examples": 1}


def test_nor_where_another_split_is_asked(tmp_path):
    shots = '\n[shots]\ncount = 2\nsplit = "train"\ntake = "sample"\n'
    mine = a_task(tmp_path, CHOICE.replace('"x"', '"x/{split}"') + shots)
    (tmp_path / "x").mkdir()
    lines = "".join(json.dumps(dict(document.fields)) + "\n" for document in questions(3))
    (tmp_path / "x" / "train.jsonl").write_text(lines)
    found = render.prepare(mine, str(tmp_path), split="train")
    assert [sorted(shown(instance)) for instance in found] == [["q0", "q1", "q2"]] * 3


def test_gold_must_be_a_choice(tmp_path):
    wrong = documents([{"question": "q", "options": ["a", "b"], "right": 2}])
    with pytest.raises(template.TemplateError, match="Document 0: gold is 2, of 2 choices"):
        render.instances(a_task(tmp_path, CHOICE), wrong)


def test_a_field_that_is_not_there_is_named_with_its_document(tmp_path):
    wrong = documents([{"options": ["a", "b"], "right": 1}])
    with pytest.raises(template.TemplateError, match="Document 0: .*'question' is undefined"):
        render.instances(a_task(tmp_path, CHOICE), wrong)


def test_examples_from_a_file_begin_after_the_canary(tmp_path):
    folder = tmp_path / "bbh"
    (folder / "bbh").mkdir(parents=True)
    (folder / "cot-prompts").mkdir()
    bbh = task.load("bbh")
    for subset in bbh.subsets:
        record = {"examples": [{"input": "1 + 1 =", "target": "2"}], "canary": "GUID"}
        (folder / "bbh" / f"{subset}.json").write_text(json.dumps(record, indent=1))
        text = f"canary GUID\n-----\nDo {subset}.\n\nQ: 0 + 1 =\nA: It is 1."
        (folder / "cot-prompts" / f"{subset}.txt").write_text(text)
    found = render.prepare(bbh, str(tmp_path))
    assert len(found) == 27 and found[1].subset == "causal_judgement"
    assert found[1].requests[0].context == (
        "Do causal_judgement.\n\nQ: 0 + 1 =\nA: It is 1.\n\n"
        "Q: 1 + 1 =\nA: Let's think step by step.\n"
    )
    assert found[1].gold == "2"


def read(tmp_path, name, path, records, as_lines=True):
    """The instances of a shipped task whose file holds these records."""
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    file.write_text(lines if as_lines else json.dumps(records[0], indent=1))
    return render.prepare(task.load(name), str(tmp_path), shots=0)


def test_options_of_quality_are_cut_out_of_its_text(tmp_path):
    """As SCROLLS publishes it: question, options, text, parted by blank lines."""
    text = "Who?\n\n (A) Ann  Lee (B) Bob\n (C) C. (D) Dan\n\nOnce (D) there\n\nwas one."
    records = [{"id": "x", "pid": "x_0", "input": text, "output": "Ann Lee"}]
    (found,) = read(tmp_path, "scrolls_quality", "scrolls/quality/validation.jsonl", records)
    assert found.choices == ("Ann Lee", "Bob", "C.", "Dan") and found.gold == 0
    wanted = "Once (D) there\n\nwas one.\n\nQuestion: Who?\nAnswer:"
    assert found.requests[1] == requests.Loglikelihood(context=wanted, continuation=" Bob")


def test_articles_of_quality_have_several_questions(tmp_path):
    asked = [
        {"question": "Who?", "options": ["a", "b"], "gold_label": 2, "question_unique_id": "u"},
        {"question": "Why?", "options": ["c", "d"], "gold_label": 1, "question_unique_id": "v"},
    ]
    path = "quality/QuALITY.v1.0.1.htmlstripped.dev.jsonl"
    found = read(tmp_path, "quality_mc", path, [{"article": "Text.", "questions": asked}])
    assert [instance.gold for instance in found] == [1, 0]
    assert found[1].id == "v"
    assert found[1].requests[0] == requests.Loglikelihood(
        context="Text.\n\nQuestion: Why?\n A. c\n B. d\nAnswer:", continuation=" A"
    )


def test_turns_of_coqa_tell_those_before(tmp_path):
    """The form of OLMES's set, whose first document is turn 0 of a story, and so on."""
    told = {
        "id": "s",
        "story": "A cat.",
        "questions": [{"input_text": "What?"}, {"input_text": "Big?"}],
        "answers": [{"input_text": "a cat"}, {"input_text": "no"}],
    }
    whole = {"version": "1.0", "data": [told]}
    first, second = read(tmp_path, "coqa_bpb", "coqa/coqa-dev-v1.0.json", [whole], as_lines=False)
    assert (first.id, second.id) == ("s_turn0", "s_turn1")
    head = task.load("coqa_bpb").description + "Passage: A cat.\n\n"
    assert first.requests[0] == requests.Loglikelihood(
        context=f"{head}Final question:\n\nQuestion: What?\nAnswer:", continuation=" a cat"
    )
    before = "Preceding questions:\n\nQuestion: What?\nAnswer: a cat\n\n"
    assert second.requests[0] == requests.Loglikelihood(
        context=f"{head}{before}Final question:\n\nQuestion: Big?\nAnswer:", continuation=" no"
    )


@pytest.mark.parametrize("name", ["gsm8k", "math500", "drop", "naturalqs", "squad"])
def test_what_is_written_is_asked_after_the_context_of_its_bits_per_byte(name):
    """OLMES has one context for both, and with it these stops."""
    stops = {
        "gsm8k": ["Question:", "</s>", "<|im_end|>", "\n\n"],
        "math500": ["Problem:", "\n\n"],
        "drop": ["Passage:", "Question:", "\n\n"],
        "naturalqs": ["Question:", "Q:", "\n\n"],
        "squad": ["Title:", "\n\n"],
    }
    (case,) = [case for case in given("olmes") if case["task"] == f"{name}_bpb"]
    pool = documents(case["pool"] or ())
    asked = render.instances(task.load(name), documents(case["documents"]), pool=pool)
    for instance, context in zip(asked, case["contexts"], strict=True):
        (request,) = instance.requests
        assert request.context == context and list(request.stop) == stops[name]


def test_limit_counts_in_each_subset(tmp_path):
    mine = a_task(tmp_path, 'subsets = ["u", "v"]\n' + CHOICE + 'subset = "part"\n')
    records = [
        {"question": f"q{i}", "options": ["a"], "right": 0, "part": "uv"[i % 2]} for i in range(6)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "x.jsonl").write_text(lines)
    found = render.prepare(mine, str(tmp_path), limit=2)
    assert [instance.id for instance in found] == ["u/0", "u/2", "v/1", "v/3"]


def test_variables_may_be_replaced_and_others_are_refused():
    infilling = task.load("infilling_single_line")
    record = {"prompt": "a", "suffix": "b", "test": "", "entry_point": "f"}
    (found,) = render.instances(
        infilling, documents([record]), variables={"fim_prefix": "<P>", "fim_middle": "<M>"}
    )
    assert found.requests[0].context == "<P>a<|fim_suffix|>b<M>"
    with pytest.raises(ValueError, match="no variable 'prefix'"):
        render.instances(infilling, documents([record]), variables={"prefix": "<P>"})


class Model:
    """Answers with what it was asked."""

    def loglikelihoods(self, asked):
        return [
            requests.Likelihood(nats=-len(a.continuation), greedy=False, tokens=1) for a in asked
        ]

    def generate(self, asked):
        return [(request.context,) for request in asked]


def test_answers_come_back_to_their_instances():
    instances = [
        render.Instance(
            id=str(i),
            subset="",
            requests=tuple(
                requests.Loglikelihood(context="", continuation="x" * (10 * i + j + 1))
                for j in range(i + 1)
            ),
        )
        for i in range(3)
    ]
    text = requests.Generate(context="hello", stop=(), max_new_tokens=1)
    instances.insert(1, render.Instance(id="t", subset="", requests=(text,)))
    answers = render.ask(Model(), instances)
    assert [[getattr(a, "nats", a) for a in told] for told in answers] == [
        [-1],
        [("hello",)],
        [-11, -12],
        [-21, -22, -23],
    ]


def test_a_group_is_not_rendered():
    with pytest.raises(ValueError, match="is a group: render its members"):
        render.instances(task.load("olmes_rc"), [])


def test_seeds_and_counts_of_a_task_reach_its_requests():
    record = {"prompt": "def f():\n", "test": "", "entry_point": "f"}
    (found,) = render.instances(task.load("humaneval_pass10"), documents([record]))
    (request,) = found.requests
    assert (request.samples, request.temperature, request.top_p) == (20, 0.8, 0.95)
    assert task_parts.Generation(stop=(), max_new_tokens=3).samples == 1
