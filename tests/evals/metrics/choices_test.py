# SPDX-License-Identifier: Apache-2.0
"""Normalisations against figures worked out by hand, and one that OLMES published."""

import math

import pytest

from midjax.evals import render, requests
from midjax.evals.metrics import choices


def instance(texts, gold, unconditional=False):
    asked = [requests.Loglikelihood(context="c", continuation=f" {text}") for text in texts]
    if unconditional:
        asked += [requests.Loglikelihood(context="", continuation=f" {text}") for text in texts]
    return render.Instance(
        id="0", subset="", requests=tuple(asked), choices=tuple(texts), gold=gold
    )


def told(*nats, tokens=()):
    counts = tokens or [1] * len(nats)
    return [
        requests.Likelihood(nats=n, greedy=False, tokens=t)
        for n, t in zip(nats, counts, strict=True)
    ]


def test_lengths_decide_as_each_definition_counts_them():
    # Choice 0 is the likeliest; per character without the space "abc" (-4/3 = -1.33) beats "a"
    # (-2/1); with the space "a" is -2/2 = -1 and "abc" -4/4 = -1: the first of equals.
    short = instance(["a", "abc"], 1)
    answers = told(-2.0, -4.0)
    assert choices.score("acc", short, answers) == 0
    assert choices.score("acc_norm", short, answers) == 1
    assert choices.score("acc_per_char", short, answers) == 0
    assert choices.score("acc_per_char", short, told(-2.0, -3.9)) == 1


def test_bytes_are_of_utf8():
    # "éé": 2 characters and 4 bytes; with the space 3 and 5. -4 / 4 beats -3 / 2; -3 / 2 of "ab".
    both = instance(["ab", "éé"], 1)
    answers = told(-3.0, -4.0)
    assert choices.score("acc_norm", both, answers) == 0
    assert choices.score("acc_bytes", both, answers) == 1
    assert choices.score("acc_per_char", both, answers) == 0
    assert choices.score("acc_per_byte", both, answers) == 1


def test_tokens():
    answers = told(-3.0, -4.0, tokens=(1, 2))
    assert choices.score("acc_per_token", instance(["a", "b"], 1), answers) == 1
    assert choices.score("acc", instance(["a", "b"], 1), answers) == 0


def test_pmi_is_a_difference_of_logarithms():
    # -3 - (-1) = -2 and -4 - (-3.5) = -0.5: what the question adds is more for the second.
    pair = instance(["a", "b"], 1, unconditional=True)
    assert choices.score("acc_uncond", pair, told(-3.0, -4.0, -1.0, -3.5)) == 1
    assert choices.score("acc", pair, told(-3.0, -4.0, -1.0, -3.5)) == 0


def test_bits_per_byte_as_olmes_reports_it():
    """A record of oe-eval: arc_challenge:mc, gold " C", sum_logits_corr and bits_per_byte_corr."""
    letters = instance(["A", "B", "C", "D"], 2)
    nats = -0.09184452891349792
    value = choices.score("bits_per_byte", letters, told(-5.0, -6.0, nats, -7.0))
    assert value == pytest.approx(0.06625182319819083, rel=1e-9)


def test_probability_among_the_choices():
    answers = told(math.log(0.1), math.log(0.3), math.log(0.1))
    assert choices.score("correct_prob", instance("abc", 1), answers) == pytest.approx(0.6)
    assert choices.score("correct_prob", instance("abc", 1), told(-1e4, -1e4, -1e5)) == 0.5


def test_any_of_several_gold_answers_counts():
    assert choices.score("acc", instance("abc", [0, 2]), told(-3.0, -2.0, -1.0)) == 1
    assert choices.score("acc", instance("abc", [0, 2]), told(-3.0, -1.0, -2.0)) == 0
