# SPDX-License-Identifier: Apache-2.0
"""The greedy soup against the recipe of 2203.05482, with scores from a table."""

import itertools
import math
import random

import pytest

from midjax.average import greedy, ingredients


def chosen(table, count=3):
    """Runs it on a table of frozenset of members -> score."""
    asked = []

    def score(members):
        asked.append(members)
        value = table[frozenset(members)]
        return value if isinstance(value, dict) else {"prose": value}

    names = [f"run{i}" for i in range(count)]
    return *greedy.choose(names, list, score), asked


def test_the_best_is_first_and_only_what_does_not_hurt_is_added(capsys):
    table = {
        frozenset({0}): 3.0, frozenset({1}): 1.0, frozenset({2}): 2.0,
        frozenset({1, 2}): 1.1,  # worse than 1 alone
        frozenset({1, 0}): 0.9,
    }  # fmt: skip
    members, trials, asked = chosen(table)
    assert members == [1, 0]
    assert asked == [[0], [1], [2], [1, 2], [1, 0]]
    assert [trial.kept for trial in trials] == [False, True, False, False, True]
    assert [trial.mean for trial in trials] == [3.0, 1.0, 2.0, 1.1, 0.9]
    said = capsys.readouterr().out
    assert "1.10000 bits per byte with run2: left out" in said
    assert "0.90000 bits per byte with run0: added" in said


def test_an_equal_score_is_not_worse():
    table = {frozenset({0}): 1.0, frozenset({1}): 1.0, frozenset({0, 1}): 1.0}
    assert chosen(table, 2)[0] == [0, 1]


def test_domains_count_the_same():
    def domains(a, b):
        return {"long": a, "short": b}

    table = {
        frozenset({0}): domains(1.0, 3.0), frozenset({1}): domains(2.0, 1.5),
        frozenset({0, 1}): domains(3.0, 0.4),
    }  # fmt: skip
    members, trials, _ = chosen(table, 2)
    assert members == [1, 0] and [trial.mean for trial in trials] == [2.0, 1.75, 1.7]


def test_what_is_not_finite_is_never_taken():
    table = {
        frozenset({0}): None, frozenset({1}): 2.0, frozenset({2}): {"a": 1.0, "b": None},
        frozenset({1, 0}): None, frozenset({1, 2}): 1.9,
    }  # fmt: skip
    members, trials, _ = chosen(table)
    assert members == [1, 2] and trials[0].mean is None and not trials[3].kept
    none = dict.fromkeys(map(frozenset, ({0}, {1})), None)
    with pytest.raises(ingredients.AverageError, match="None of the 2 .* finite loss: run0, run1"):
        chosen(none, 2)


def test_never_worse_than_the_best_alone():
    """And the same as the recipe, written down a second time, on random tables."""
    draw = random.Random(0)
    for _ in range(50):
        every = [c for n in range(1, 5) for c in itertools.combinations(range(4), n)]
        table = {frozenset(members): draw.random() for members in every}
        members, trials, _ = chosen(table, 4)
        soup, best = [], math.inf
        for i in sorted(range(4), key=lambda i: table[frozenset({i})]):
            if table[frozenset([*soup, i])] <= best:
                soup.append(i)
                best = table[frozenset(soup)]
        assert members == soup and best <= min(table[frozenset({i})] for i in range(4))
        assert [t.members for t in trials if t.kept][-1] == tuple(soup)
