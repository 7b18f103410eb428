# SPDX-License-Identifier: Apache-2.0
"""DROP's match, worked out by hand from its released evaluator's rules."""

import pytest

from midjax.evals.metrics import drop


@pytest.mark.parametrize(
    "predicted, gold, exact, f1",
    [
        ("3", [["3"]], 1, 1.0),
        ("3.0", [["3"]], 1, 1.0),  # numbers are floats
        ("the Cat!", [["a cat"]], 1, 1.0),
        ("4 field goals", [["4"]], 0, 0.5),  # 1 of 3 words, 1 of 1: 2 * 1/3 / (4/3)
        ("5 field goals", [["4 field goals"]], 0, 0.0),  # another number is nothing
        ("red", [["red", "blue"]], 0, 0.5),  # one of two spans
        ("red blue", [["red", "blue"]], 0, 0.33),  # (2/3 + 0) / 2, rounded
        ("blue", [["red"], ["blue"]], 1, 1.0),  # the best of the accepted answers
        ("two-thirds", [["two thirds"]], 1, 1.0),  # hyphens part words
        ("", [[" "]], 0, 0.0),  # an empty answer is none
    ],
)
def test_matches(predicted, gold, exact, f1):
    assert drop.best(predicted, gold) == (exact, f1)


def test_accepted_answers_of_a_record():
    empty = {"day": "", "month": "", "year": ""}
    answer = {"number": "", "date": empty, "spans": ["a", "b"]}
    validated = {
        "number": ["3", "", ""],
        "date": [empty, {"day": "1", "month": "May", "year": "1990"}, empty],
        "spans": [[], [], ["a", "b"]],
    }
    assert drop.answers(answer, validated) == [["a", "b"], ["3"], ["1 May 1990"]]
