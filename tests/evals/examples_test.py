# SPDX-License-Identifier: Apache-2.0
"""Which examples stand before a question; rendered ones: render_test.py, with those of peers."""

import collections
import json
import random

import pytest

from midjax.evals import examples, task, task_data

TASK = """
source = "a test"
kind = "choice"
primary = "acc"
prompt = "Q: {{{{question}}}}"
answer = " {{{{choice}}}}"
choices = "[0]"
gold = "0"
metrics = [{{ name = "acc" }}]

[data]
path = "x"
split = "test"
licence = "none"

[shots]
{shots}
"""
DRAWN = 'count = 2\nsplit = "{split}"\ntake = "{take}"\nseed = 7'


def a_task(tmp_path, shots):
    path = tmp_path / "mine.toml"
    path.write_text(TASK.format(shots=shots))
    return task.load(str(path))


def of(names, subset=""):
    return [
        task_data.Document(id=name, subset=subset, fields={"question": name, "right": 0})
        for name in names
    ]


def names(documents):
    return [document.id for document in documents]


def chosen(tmp_path, asked, pool, split="train", take="first", count=2):
    mine = a_task(tmp_path, DRAWN.format(split=split, take=take))
    found = examples.Examples(mine, pool, count, [])
    return [names(found.of(document)) for document in asked]


def test_the_first_are_those_of_the_own_subset(tmp_path):
    pool = [*of("abc", "one"), *of("xyz", "two")]
    assert examples.subsets(pool) == ["one", "two"]
    assert names(examples.of_subset(pool, "two")) == ["x", "y", "z"]
    asked = [*of("p", "two"), *of("q", "one"), *of("r", "two")]
    assert chosen(tmp_path, asked, pool) == [["x", "y"], ["a", "b"], ["x", "y"]]
    assert chosen(tmp_path, asked, pool, count=0) == [[], [], []]


def test_one_draw_serves_all_questions_of_a_subset(tmp_path):
    """As OLMES and lm_eval draw: `random.Random(seed).sample`."""
    drawn = random.Random(7).sample("abcdefghi", 2)
    assert chosen(tmp_path, of("pqr"), of("abcdefghi"), take="sample") == [drawn] * 3
    # A question that the pool holds too is no example of itself.
    without = [name for name in drawn if name != drawn[0]]
    assert chosen(tmp_path, of(drawn[0]), of("abcdefghi"), take="sample") == [without]


def test_a_draw_for_each_question_goes_on_in_one_stream_per_subset(tmp_path):
    pool = [*of("abcdefghi", "one"), *of("rstuvwxyz", "two")]
    asked = [*of("1", "one"), *of("2", "two"), *of("3", "one")]
    one, two = random.Random(7), random.Random(7)
    wanted = [one.sample("abcdefghi", 2), two.sample("rstuvwxyz", 2), one.sample("abcdefghi", 2)]
    assert wanted[0] != wanted[2]
    assert chosen(tmp_path, asked, pool, take="each") == wanted


def test_one_more_is_drawn_where_the_question_may_be_among_them(tmp_path):
    asked = of("abc")
    assert chosen(tmp_path, asked, asked, split="test") == [["b", "c"], ["a", "c"], ["a", "b"]]
    drawn = random.Random(7).sample("abcdef", 3)
    pool = of("abcdef")
    for name, found in zip("abcdef", chosen(tmp_path, pool, pool, "test", "sample"), strict=True):
        assert found == [other for other in drawn if other != name][:2]


@pytest.mark.parametrize("split, there, wanted", [("train", "a", 2), ("test", "ab", 3)])
def test_too_few_are_refused(tmp_path, split, there, wanted):
    words = f"{split}' has {len(there)} documents of history, and {wanted} are needed"
    with pytest.raises(ValueError, match=words):
        chosen(tmp_path, of("a", "history"), of(there, "history"), split=split)


def listed(mine, pool, count, noted=None):
    noted = collections.Counter() if noted is None else noted
    return examples.listed(mine, pool, count, lambda document: document.fields, noted)


def test_listed_examples_are_taken_in_their_order(tmp_path):
    mine = a_task(tmp_path, 'count = 2\ntake = "list"\nexamples = [{a = 1}, {a = 2}, {a = 3}]')
    found = listed(mine, [], 2)
    assert [dict(document.fields) for document in found] == [{"a": 1}, {"a": 2}]
    before = examples.Examples(mine, [], 2, found)
    assert before.of(of("q")[0]) == before.of(of("r", "any")[0]) == found
    with pytest.raises(ValueError, match="mine lists 3 examples, 4 asked"):
        listed(mine, [], 4)


def picked(tmp_path, *wanted):
    """A task whose examples are named by (question, right)."""
    made = [f"{examples.digest(name)}-{examples.digest([name, right])}" for name, right in wanted]
    shots = 'count = 1\nsplit = "train"\ntake = "picked"\npick = "question"\n'
    return a_task(tmp_path, shots + f'content = "[question, right]"\npicked = {json.dumps(made)}')


def test_picked_examples_are_found_by_what_they_ask_and_then_by_what_they_show(tmp_path):
    again = task_data.Document(id="again", subset="", fields={"question": "b", "right": 1})
    pool = [*of("abc"), again]
    noted = collections.Counter()
    assert names(listed(picked(tmp_path, ("c", 0), ("b", 1)), pool, 2, noted)) == ["c", "again"]
    assert not +noted
    # There is a b, with other words: the first is taken, and counted.
    assert names(listed(picked(tmp_path, ("a", 0), ("b", 2)), pool, 2, noted)) == ["a", "b"]
    assert noted == {"other examples": 1}
    with pytest.raises(ValueError, match=r"'train' has 4 documents, .* number \[2\] are not"):
        listed(picked(tmp_path, ("a", 0), ("z", 0)), pool, 2)
    assert listed(picked(tmp_path, ("z", 0)), pool, 0) == []


def test_a_digest_is_of_the_text_as_json():
    """Sixteen digits of SHA-256 of what `json.dumps` writes; from `printf '"é"' | sha256sum`."""
    assert examples.digest("é") == "f2886017e9c7abac"
