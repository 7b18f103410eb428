# SPDX-License-Identifier: Apache-2.0
"""Documents are paired by id whatever their order; what can't be compared is refused by name."""

import copy
import json
import math

import pytest

from midjax import files
from midjax.evals import pairing


def result(**changes):
    blocks = [{"nats": 10.0 + k, "bytes": 4 + k} for k in range(3)]
    domain = {
        "bits_per_byte": 3.0,
        "bytes": 15,
        "documents": 7,
        "content_hash": "c",
        "blocks": blocks,
    }
    task = {
        "metrics": {"acc": 0.5},
        "macro": {"acc": 0.25},
        "settings": {"shots": 5},
        "hash": "h",
        "documents": 3,
    }
    given = {
        "name": "n",
        "run": "r",
        "step": 1,
        "tokenizer_hash": "t",
        "row_tokens": 8,
        "compute_dtype": "float32",
        "domains": {"prose": domain},
        "tasks": {"quiz": task},
    }
    return given | changes


def lines(*values, ids="abc"):
    subsets = ("one", "two", "two")
    return [
        {"task": "quiz", "subset": subset, "id": i, "scores": {"acc": value}}
        for subset, i, value in zip(subsets, ids, values, strict=True)
    ]


def measured(documents=None, **changes):
    rows = lines(1, 0, 0) if documents is None else documents
    return pairing.Measured(result=result(**changes), documents={"quiz": rows}, path="p")


def test_blocks_are_bits_and_documents_are_paired_by_id_within_subsets():
    now = measured(documents=list(reversed(lines(0, 1, 0))))
    domain, task = pairing.pairs(measured(), now)
    assert (domain.score, domain.method) == ("domain/prose/bits_per_byte", "bootstrap-t")
    assert domain.documents == 7 and domain.less_is_better
    (blocks,) = domain.strata
    assert blocks.parent.tolist() == pytest.approx([x / math.log(2) for x in (10, 11, 12)])
    assert blocks.size.tolist() == [4, 5, 6]
    assert (task.score, task.method) == ("task/quiz/acc", "expanded percentile")
    assert not task.less_is_better and task.documents == 3
    found = [(s.parent.tolist(), s.now.tolist(), s.size.tolist()) for s in task.strata]
    assert found == [([1], [0], [1]), ([0, 0], [1, 0], [1, 1])]  # a; then b and c


def test_without_subsets_all_documents_are_one_stratum():
    tasks = {"quiz": {"metrics": {"acc": 0.5}}}
    (_, task) = pairing.pairs(measured(tasks=tasks), measured(tasks=tasks))
    assert [len(s.size) for s in task.strata] == [3]


def test_numbers_that_are_not_finite_are_known_as_such():
    domains = copy.deepcopy(result()["domains"])
    domains["prose"]["blocks"][1]["nats"] = None
    domain, task = pairing.pairs(measured(), measured(domains=domains))
    assert not domain.is_finite and task.is_finite


def changed(key, value):
    found = result()
    place, name = (found["domains"], "prose") if key in ("content_hash", "blocks") else (
        found["tasks"], "quiz"
    )  # fmt: skip
    place[name][key] = value
    return {"domains": found["domains"], "tasks": found["tasks"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer_hash": "u"}, 'the tokenizer: the parent has "t", now it is "u"'),
        ({"row_tokens": 16}, "row_tokens: the parent has 8, now it is 16"),
        (
            {"compute_dtype": "bfloat16"},
            'compute_dtype: the parent has "float32", now it is "bfloat16"',
        ),
        ({"compute_dtype": None}, r"Eval\.compute_dtype: r, step 1 \(p\) does not say it"),
        (changed("content_hash", "d"), r"domain 'prose' \(content_hash\): .*\"c\", .*\"d\""),
        (changed("blocks", [{"nats": 1.0, "bytes": 15}]), "the parent's blocks have other"),
        ({"domains": {"law": result()["domains"]["prose"]}}, "domain 'law': the parent has no"),
        (changed("settings", {"shots": 0}), 'settings of task \'quiz\': .*{"shots": 5}, .*: 0'),
        (changed("hash", "i"), "hash of task 'quiz'"),
        ({"documents": lines(1, 0, 0, ids="abd")}, r"2 documents .* \(two/c, two/d\)"),
        ({"documents": lines(1, 0, 0, ids="abb")}, "1 documents of task 'quiz' have"),
        ({"tasks": {"exam": result()["tasks"]["quiz"]}}, "task 'exam': the parent has no number"),
        ({"domains": {}, "tasks": {}}, "neither domains nor tasks"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_by_name(changes, words):
    with pytest.raises(pairing.IncomparableError, match=words):
        pairing.pairs(measured(), measured(**changes))


def test_all_that_differs_is_told_at_once():
    with pytest.raises(pairing.IncomparableError, match=r"the tokenizer.*\n.*Eval\.row_tokens"):
        pairing.pairs(measured(), measured(tokenizer_hash="u", row_tokens=16))


def test_what_has_no_pair_is_named():
    parent = measured(domains={n: result()["domains"]["prose"] for n in ("prose", "law")})
    now = measured(needle={"cells": []}, groups={})
    assert pairing.not_compared(parent, now) == ["domains 'law', of the parent only", "needle"]


def test_a_result_is_read_with_its_documents(tmp_path):
    path = tmp_path / "after.json"
    with pytest.raises(FileNotFoundError, match="`midjax eval` writes"):
        pairing.read(path)
    files.write_json(path, result())
    with pytest.raises(
        FileNotFoundError, match=r"after\.documents\.jsonl, their documents, is miss"
    ):
        pairing.read(path)
    text = "".join(json.dumps(line) + "\n" for line in lines(1, 0, 1))
    (tmp_path / "after.documents.jsonl").write_text(text)
    found = pairing.read(path)
    assert found.documents == {"quiz": lines(1, 0, 1)} and found.where == f"r, step 1 ({path})"
    files.write_json(path, result(tasks={}))
    assert not pairing.read(path).documents
