# SPDX-License-Identifier: Apache-2.0
"""Lines of documents by kind; suite_test.py has those of choices, texts and code."""

from midjax.evals import judges, render, requests, task, task_rows
from midjax.evals.metrics import scoring


def test_a_gold_answer_has_its_likelihood():
    mine = task.load("gsm8k_bpb")
    asked = requests.Loglikelihood(context="q", continuation=" the answer")
    instance = render.Instance(id="7", subset="", requests=(asked,))
    answers = [(requests.Likelihood(nats=-4.0, greedy=False, tokens=3),)]
    score = scoring.score(mine, [instance], answers)
    (row,) = task_rows.of(mine, [instance], answers, score, [])
    scores = row.pop("scores")
    assert row == {
        "task": "gsm8k_bpb",
        "subset": "",
        "id": "7",
        "gold": " the answer",
        "nats": -4.0,
        "tokens": 3,
    }
    assert scores == {title: part[0] for title, part in score["per_instance"].items()}


def test_function_calls_say_what_was_wrong():
    mine = task.load("bfcl_irrelevance")
    asked = requests.Generate(context="q", stop=(), max_new_tokens=5)
    instances = [
        render.Instance(id=str(i), subset="", requests=(asked,), fields={"function": []})
        for i in range(2)
    ]
    answers = [(("I can't.",),), (("[f(x=1)]",),)]
    told = []
    score = scoring.score(mine, instances, answers, judge=judges.of(mine, None, told))
    rows = task_rows.of(mine, instances, answers, score, told)
    assert [row["verdict"] for row in rows] == [["passed"], ["1 calls where none helps"]]
    assert [set(row["scores"].values()) for row in rows] == [{1.0}, {0.0}]
    assert task_rows.counts(mine, rows) == {"not finite": 0, "empty": 0}
