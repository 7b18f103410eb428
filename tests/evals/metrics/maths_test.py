# SPDX-License-Identifier: Apache-2.0
"""Answers that are equal in mathematics, and some that are not."""

import importlib.util
import threading

import pytest

from midjax.evals.metrics import maths


@pytest.mark.parametrize(
    "predicted, gold, is_equal",
    [
        ("The answer is $\\frac{1}{2}$.", "0.5", True),
        ("so \\boxed{x^2+2x+1}", "$(x+1)^2$", True),
        ("Final Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)", True),
        ("\\boxed{[2,5)}", "thus it is $\\boxed{[2,5)}$.", True),
        ("\\boxed{[2,5]}", "[2,5)", False),
        ("24", "24", True),
        ("25", "24", False),
        ("", "24", False),
    ],
)
def test_equality(predicted, gold, is_equal):
    assert maths.equal(predicted, gold) is is_equal


def test_outside_of_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(maths.equal("$2/4$", "0.5")))
    thread.start()
    thread.join()
    assert found == [True]


def test_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'midjax\[maths\]'"):
        maths.require()
