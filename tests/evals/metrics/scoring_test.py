# SPDX-License-Identifier: Apache-2.0
"""Scores per instance, per subset, per task and per group."""

import math

import pytest

from midjax.evals import render, requests, task, task_data
from midjax.evals.metrics import scoring


def documents(records, subset=""):
    return [
        task_data.Document(id=f"{subset}/{i}", subset=subset, fields=record)
        for i, record in enumerate(records)
    ]


def likelihood(nats, tokens=1, greedy=False):
    return requests.Likelihood(nats=nats, greedy=greedy, tokens=tokens)


def mmlu(subject, gold):
    record = {"question": "q", "choices": ["1", "2", "3", "4"], "subject": subject}
    return documents([record | {"answer": answer} for answer in gold], subject)


def pick(instance, number):
    """Answers of a model that holds one choice for the likeliest."""
    return tuple(likelihood(-1.0 if i % 4 == number else -9.0) for i in range(4))


def test_subsets_have_macro_and_micro_means():
    mine = task.load("mmlu_mc")
    asked = [*mmlu("anatomy", [0, 0, 0]), *mmlu("virology", [0])]
    instances = render.instances(mine, asked, shots=0)
    answers = [pick(x, number) for x, number in zip(instances, [0, 0, 1, 3], strict=True)]
    found = scoring.score(mine, instances, answers)
    assert found["per_instance"]["acc"] == [1, 1, 0, 0]
    assert found["metrics"]["acc"] == 0.5  # 2 of 4
    assert found["macro"]["acc"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["subsets"]["anatomy"]["acc"] == pytest.approx(2 / 3)
    assert found["primary"] == "acc" and found["instances"] == 4


def test_a_text_is_filtered_and_matched():
    gsm8k = task.load("gsm8k_harness")
    asked = documents([{"question": "q", "answer": "so\n#### 1,234"}] * 4)
    instances = render.instances(gsm8k, asked, shots=0)
    answers = [((text,),) for text in ("#### 1234", "it is $1,234.", "#### 1 or 1234", "7")]
    found = scoring.score(gsm8k, instances, answers)
    assert found["per_instance"] == {"strict": [1, 0, 0, 0], "flexible": [1, 1, 1, 0]}


def test_gold_texts_have_bits_per_byte():
    mine = task.load("gsm8k_bpb")
    (instance,) = render.instances(
        mine, documents([{"question": "q", "answer": "é\n#### 1"}]), shots=0
    )
    assert instance.requests[0].continuation == " É. So the answer is 1."
    found = scoring.score(mine, [instance], [(likelihood(-24 * math.log(2) / 2, tokens=6),)])
    assert len(" É. So the answer is 1.".encode()) == 24
    assert found["metrics"]["bits_per_byte"] == pytest.approx(0.5)
    assert found["metrics"]["nats_per_token"] == pytest.approx(2 * math.log(2))


def test_code_is_judged_from_outside():
    mine = task.load("humaneval_pass10")
    record = {"prompt": "def f():\n", "test": "", "entry_point": "f"}
    instances = render.instances(mine, documents([record, record]))
    answers = [(tuple(f"{i}" for i in range(20)),), (("1",) * 20,)]
    seen = []

    def judge(pairs):
        seen.extend(pairs)
        return [text == "1" for _, text in pairs]

    found = scoring.score(mine, instances, answers, judge=judge)
    assert len(seen) == 40 and seen[1] == (instances[0], "1")
    assert found["per_instance"]["pass@1"] == pytest.approx([1 / 20, 1])
    # Of 20 samples 1 is right: 10 drawn miss it half the time.
    assert found["per_instance"]["pass@10"] == pytest.approx([0.5, 1])
    with pytest.raises(ValueError, match="give score the judge that runs programs"):
        scoring.score(mine, instances, answers)
    with pytest.raises(ValueError, match="given 40 completions, and judged 1"):
        scoring.score(mine, instances, answers, judge=lambda pairs: [True])


def test_calls_are_judged_with_their_gold():
    mine = task.load("bfcl_simple")
    record = {"question": [[{"role": "user", "content": "hi"}]], "function": [{"name": "f"}]}
    (instance,) = render.instances(
        mine, documents([record | {"joined": {"ground_truth": [{"f": {}}]}}])
    )
    assert instance.gold == [{"f": {}}]
    found = scoring.score(
        mine, [instance], [(("f()",),)], judge=lambda pairs: [pairs[0][1] == "f()"]
    )
    assert found["metrics"] == {"match": 1}


def test_references_of_a_summary_are_several():
    mine = task.load("scrolls_gov_report")
    record = {"id": "x", "input": "text", "merged": [{"output": "a b c d"}, {"output": "a b"}]}
    (instance,) = render.instances(mine, documents([record]))
    found = scoring.score(mine, [instance], [(("a b",),)])
    assert found["metrics"]["rougeL"] == 1 and found["metrics"]["rouge2"] == 1


def test_drop_and_squad_are_reached():
    drop = task.load("drop_harness")
    (instance,) = render.instances(
        drop, documents([{"passage": "p", "question": "q", "answers": [["red", "blue"]]}])
    )
    found = scoring.score(drop, [instance], [(("red",),)])
    assert found["metrics"] == {"drop_f1": 0.5, "drop_em": 0}
    squad = task.load("naturalqs")
    asked = documents([{"question": "q", "answer": ["x y"]}])
    (instance,) = render.instances(squad, asked, shots=0)
    found = scoring.score(squad, [instance], [((" x",),)])
    assert found["metrics"] == {"squad_em": 0, "squad_f1": pytest.approx(2 / 3)}


def test_groups_have_a_mean_per_kind_of_figure():
    group = task.load("core_small")
    scores = {
        name: {"primary": "acc", "metrics": {"acc": 0.5}, "per_instance": {"acc": [0, 1]}}
        for name in group.members
    }
    scores["arc_easy_rc"] = {
        "primary": "acc_per_char",
        "metrics": {"acc_per_char": 1},
        "per_instance": {"acc_per_char": [1] * 18},
    }
    scores["mmlu_rc"] |= {"macro": {"acc": 0.25}}
    loss = {"primary": "bits_per_byte", "metrics": {"bits_per_byte": 2}}
    scores["gsm8k_bpb_selection"] = loss | {"per_instance": {"bits_per_byte": [1, 3]}}
    found = scoring.combine(group, scores)
    others = len(group.members) - 3
    total = 0.5 * others + 1 + 0.25
    assert found["macro"]["acc"] == pytest.approx(total / (others + 2))
    assert found["macro"]["bits_per_byte"] == 2
    assert found["micro"]["acc"] == pytest.approx((others + 1 + 18) / (2 * (others + 1) + 18))
    assert found["members"]["mmlu_rc"] == {"acc": 0.25}
    del scores["gsm8k_bpb_selection"]
    with pytest.raises(ValueError, match="member 'gsm8k_bpb_selection', which has no score"):
        scoring.combine(group, scores)


def test_answers_that_do_not_fit_are_refused():
    mine = task.load("mmlu_mc")
    instances = render.instances(mine, mmlu("anatomy", [0]), shots=0)
    with pytest.raises(ValueError, match="4 requests and 3 answers"):
        scoring.score(mine, instances, [pick(instances[0], 0)[:3]])
    with pytest.raises(ValueError, match="nothing to score"):
        scoring.score(mine, [], [])
