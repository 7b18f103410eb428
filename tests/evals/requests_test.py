# SPDX-License-Identifier: Apache-2.0
"""Requests that make no sense are refused."""

import pytest

from midjax.evals import requests


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"stop": ("\n", "")}, "ends every continuation"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, got 0"),
        ({"samples": 0}, "samples must be 1 or more"),
        ({"temperature": -0.1}, "temperature must be 0 or more, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "at most 1, got 1.1"),
        ({"samples": 2}, "are all the same"),
    ],
)
def test_what_cannot_be_generated_is_refused(field, message):
    asked = {"context": "Once", "stop": (), "max_new_tokens": 5, **field}
    with pytest.raises(ValueError, match=message):
        requests.Generate(**asked)


def test_a_continuation_must_be_there():
    requests.Loglikelihood(context="", continuation="a")
    with pytest.raises(ValueError, match="No continuation"):
        requests.Loglikelihood(context="Question:", continuation="")
