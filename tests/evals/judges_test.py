# SPDX-License-Identifier: Apache-2.0
"""Code tasks end to end but for the model: given answers, real sandbox; and function calls."""

import gzip
import json
import pathlib

import pytest
import sandboxes

from midjax.evals import judges, render, task, task_data
from midjax.evals.metrics import scoring

DATA = pathlib.Path(__file__).parents[1] / "data"


def documents(records):
    return [
        task_data.Document(id=str(number), subset="", fields=record)
        for number, record in enumerate(records)
    ]


def score(name, records, completions):
    mine = task.load(name)
    instances = render.instances(mine, documents(records), shots=0)
    answers = [(completion,) for completion in completions]
    judge = judges.of(mine, sandboxes.opened())
    return scoring.score(mine, instances, answers, judge=judge)["per_instance"]


def test_humaneval_answers_right_and_wrong():
    lines = gzip.decompress((DATA / "humaneval" / "HumanEval.jsonl.gz").read_bytes()).splitlines()
    records = [json.loads(line) for line in lines[:3]]
    right = [record["canonical_solution"] for record in records]
    completions = [(right[0],), ("    return None\n",), (right[2],)]
    assert score("humaneval", records, completions) == {"pass@1": [1, 0, 1]}


def test_other_forms():
    crux = {"id": "s0", "code": "def f(x):\n    return x + [1]", "input": "[0]", "output": "[0, 1]"}
    told = [("assert f([0]) == [0, 1]\n[/ANSWER] more",), ("assert f([0]) == [1]",)]
    assert score("cruxeval_output", [crux, crux], told) == {"pass@1": [1, 0]}
    assert score("cruxeval_input", [crux], [("assert f([0]) == [0, 1]\n",)]) == {"pass@1": [1]}
    mbpp = {
        "task_id": 1,
        "text": "Double.",
        "code": "def d(x):\r\n    return 2 * x",
        "test_list": ["assert d(1) == 2", "assert d(2) == 4", "assert d(0) == 0"],
        "test_setup_code": "",
    }
    assert score("mbpp", [mbpp], [("def d(x):\n    return x + x\n",)]) == {"pass@1": [1]}


def test_every_form_has_a_program():
    codes = [task.load(name).code for name in task.shipped()]
    forms = {code.form for code in codes if code is not None}
    assert forms >= {"humaneval", "humaneval_fix", "infilling", "mbpp"}
    assert forms <= judges._FORMS.keys()


def test_code_without_a_sandbox_is_refused():
    with pytest.raises(
        ValueError, match="humaneval runs what a model wrote, so it needs a sandbox"
    ):
        judges.of(task.load("humaneval"))
    assert judges.of(task.load("gsm8k")) is None


def test_function_calls():
    described = {
        "name": "area",
        "parameters": {"properties": {"side": {"type": "integer"}}, "required": ["side"]},
    }
    record = {"question": [[{"role": "user", "content": "?"}]], "function": [described]}
    gold = record | {"joined": {"ground_truth": [{"area": {"side": [3]}}]}}
    mine = task.load("bfcl_simple")
    instances = render.instances(mine, documents([gold] * 3))
    assert instances[0].requests[0].context.endswith("Answer: [")
    answers = [((text,),) for text in ("area(side=3)", "area(side=4)", "I do not know")]
    found = scoring.score(mine, instances, answers, judge=judges.of(mine))
    assert found["per_instance"] == {"match": [1, 0, 0]}
    other = task.load("bfcl_irrelevance")
    instances = render.instances(other, documents([record] * 2))
    answers = [(("",),), (("area(side=3)",),)]
    found = scoring.score(other, instances, answers, judge=judges.of(other))
    assert found["per_instance"] == {"match": [1, 0]}
