# SPDX-License-Identifier: Apache-2.0
"""How often words come: counted in the text, set beside RULER's numbers and Zipf's law."""

import collections
import itertools
import math

import long_answers
import pytest

from midjax.evals.long import aggregation


class Text:
    """660 words, some of them parts of others."""

    def vocabulary(self):
        found = [a + b + c for a, b, c in itertools.product("abcdef", "ghijk", "lmnopqrstuvwxyz")]
        return found + [word + "ing" for word in found[:210]]


def of_list(row_tokens, times=0, name="0/cwe/0"):
    return list(itertools.islice(aggregation.common_words(Text(), row_tokens, name), times + 1))[-1]


@pytest.mark.parametrize(
    ("row_tokens", "often", "seldom", "shown"),
    [(4095, 6, 1, (3, 1, 20)), (4096, 30, 3, (10, 3, 40))],
)
def test_how_often_words_come(row_tokens, often, seldom, shown):
    one = of_list(row_tokens)
    text = one.render(50, 0, "")
    counts = collections.Counter(long_answers.listed(text))
    assert {word for word, n in counts.items() if n == often} == set(one.references)
    assert len(one.references) == 10 and set(one.beside(text)) == set(counts) - set(one.references)
    assert sorted(counts.values()) == [seldom] * 50 + [often] * 10
    example = text[: text.rindex("Below is a numbered list")]
    common, other, size = shown
    counts = collections.Counter(long_answers.listed(example))
    assert sorted(counts.values()) == [other] * (size - 10) + [common] * 10
    answers = example.rpartition("appear most often in the list are:")[2].split()[1::2]
    assert {word for word, n in counts.items() if n == common} == set(answers)
    assert not set(counts) & set(long_answers.listed(text))


def test_no_word_holds_a_common_one():
    one = of_list(2000)
    text = one.render(one.most_units, 60, "")
    others = set(one.beside(text))
    assert len(others) > 400
    assert not any(common in word for common in one.references for word in others)
    assert not any(a in b for a, b in itertools.permutations(one.references, 2))


def test_where_words_run_out_all_come_more_often():
    once, four = of_list(5000), of_list(5000, times=2)
    assert once.references == four.references
    counts = collections.Counter(long_answers.listed(four.render(20, 0, "")))
    assert sorted(counts.values()) == [12] * 20 + [120] * 10
    entries = four.render(20, four.characters, "").count(". ") - four.render(20, 0, "").count(". ")
    assert entries >= 12  # what is left over of a unit can be filled


@pytest.mark.parametrize("units", [53, 60, 79, 200, 1000])
def test_coded_words_are_as_frequent_as_zipf_says(units):
    one = aggregation.frequent_words(2000, "0/fwe/0")
    text = one.render(units, 0, "")
    within = text.partition("coded words. ")[2].rpartition("\nQuestion")[0].split()
    counts = collections.Counter(within)
    zeta = math.fsum(k**-2.0 for k in range(1, 200_000))
    expected = [int(units * k**-2.0 / zeta) for k in range(1, 41)]
    assert sorted(counts.values(), reverse=True) == [n for n in expected if n]
    assert counts.pop("...") == expected[0]
    ranked = counts.most_common()
    assert [word for word, _ in ranked[:3]] == list(one.references)
    assert len(ranked) == 3 or ranked[2][1] > ranked[3][1]
    assert set(one.beside(text)) == set(counts) - set(one.references)
