# SPDX-License-Identifier: Apache-2.0
"""A sample whose answer the text gives away is drawn anew; what can't be made is said."""

import itertools

import long_answers
import pytest

from midjax.evals.long import prompts, tracking

WORDS = [a + b + c for a, b, c in itertools.product("abcdef", "ghijk", "lmnopqrst")]


class Text:
    """Running text that is the same words again and again."""

    def __init__(self, *words):
        self._words = words or ("Words", "and", "words.")

    def words(self, sample):
        return itertools.cycle(self._words)

    def vocabulary(self):
        return WORDS


def maker(text):
    return prompts.Maker(
        text=text, count=lambda one: len(one.encode()), seed=1, decoys=4, chains=tracking.Chains(),
        questions={},
    )  # fmt: skip


def test_a_prompt():
    made = maker(Text()).make("niah_single_2", 1000, 60, 0)
    assert made.tokens == len(made.text.encode()) == 940 and made.is_exact
    assert made.answer_tokens == 60 and made.redrawn == 0 and len(made.decoys) == 4
    assert made.text.count(made.references[0]) == 1 and made.pool == 9e6


def test_what_running_text_gives_away_is_drawn_anew():
    (taken,) = maker(Text()).make("niah_single_2", 1000, 60, 0).references
    made = maker(Text("Give", f"{taken}.")).make("niah_single_2", 1000, 60, 0)
    assert made.redrawn == 1 and made.references != (taken,) and made.is_exact
    assert made.text.count(made.references[0]) == 1


def test_text_that_gives_all_away_is_refused(monkeypatch):
    monkeypatch.setattr(prompts, "_TRIES", 1)
    (taken,) = maker(Text()).make("niah_single_2", 1000, 60, 0).references
    with pytest.raises(ValueError, match="stands in the source's own text, 1 times over"):
        maker(Text("Give", f"{taken}.")).make("niah_single_2", 1000, 60, 0)


def test_too_short():
    with pytest.raises(ValueError, match=r"row_tokens=300 is too short for fwe: its least text"):
        maker(Text()).make("fwe", 300, 50, 0)


def test_words_that_run_out_come_more_often():
    """270 words, each once and ten of them 6 times, make some 330 entries of 6 to 8 bytes."""
    made = maker(Text()).make("cwe", 2500, 120, 0)
    long = maker(Text()).make("cwe", 40_000, 120, 0)
    assert made.is_exact and long.is_exact and long.tokens == 39_880
    often = [long_answers.listed(one.text).count(one.references[0]) for one in (made, long)]
    # Of 40,000 bytes some 37,000 are entries of about 10; 10 words 30 times and 190 words 3 times
    # are 870, so that 4 times as many are too few.
    assert often == [6, 30 * 8]
