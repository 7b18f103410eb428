# SPDX-License-Identifier: Apache-2.0
"""Filters and matches: lm_eval's GSM8K and trivia settings, SQuAD's examples."""

import pytest

from midjax.evals import task, task_parts
from midjax.evals.metrics import texts


def step(**values):
    return (task_parts.Filter(**values),)


@pytest.mark.parametrize(
    "text, strict, flexible",
    [
        ("He pays 3 + 4.\n#### 7", "7", "7"),
        ("#### 1,234 and then 5", "1,234", "5"),
        ("The answer is $12.50.", "[invalid]", "$12.50."),
        ("none", "[invalid]", "[invalid]"),
        ("#### -3\n#### 4", "-3", "4"),
    ],
)
def test_filters_of_gsm8k(text, strict, flexible):
    metrics = task.load("gsm8k_harness").metrics
    assert texts.filtered(text, metrics[0].filters) == strict
    assert texts.filtered(text, metrics[1].filters) == flexible


def test_other_filters():
    assert texts.filtered("  a b \n", step(kind="strip")) == "a b"
    assert texts.filtered("a == b == c", step(kind="before", pattern="==")) == "a "
    assert texts.filtered("a == b == c", step(kind="after", pattern="==")) == " c"
    boxed = "so \\boxed{1} but \\boxed{\\frac{1}{2}} ."
    assert texts.filtered(boxed, step(kind="boxed")) == "\\frac{1}{2}"
    assert texts.filtered("no box", step(kind="boxed")) == "no box"


def test_exact_match_cuts_then_lowers_then_strips_punctuation():
    metric = task_parts.Metric(
        name="exact_match", ignore=(r"\$", "(?s).*#### "), ignore_case=True, ignore_punctuation=True
    )
    assert texts.exact_match("$Seven!", ["work #### seven"], metric) == 1
    assert texts.exact_match("seven", ["eight", "seven"], metric) == 1
    assert texts.exact_match("seven ", ["seven"], metric) == 0  # white space is not ignored
    plain = task_parts.Metric(name="exact_match")
    assert texts.exact_match("Seven", ["seven"], plain) == 0


def test_squad():
    assert texts.squad_em("The Cat.", ["a cat"]) == 1
    assert texts.squad_em("cats", ["a cat"]) == 0
    # predicted {green, eggs, ham}, gold {eggs, and, ham, now}: 2 shared, p = 2/3, r = 2/4.
    assert texts.squad_f1("green eggs ham", ["eggs and ham now"]) == pytest.approx(4 / 7)
    # A word counts as often as both have it: 1 of 3 and 1 of 1.
    assert texts.squad_f1("no no no", ["no"]) == pytest.approx(0.5)
    assert texts.squad_f1("the", ["cat"]) == 0
    assert texts.squad_f1("x", ["cat", "x y"]) == pytest.approx(2 / 3)
