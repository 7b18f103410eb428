# SPDX-License-Identifier: Apache-2.0
"""What each method takes, its weights, and what it refuses."""

import numpy as np
import pytest
import tiny_average as tiny

from midjax import checkpoint
from midjax.average import methods


def last(**kwargs):
    given = {"run": "a", "newest": None, "steps": None, "weights": None}
    return methods.LastN(**(given | kwargs))


def soup(**kwargs):
    return methods.Soup(**({"runs": ("a", "b"), "steps": None, "weights": None} | kwargs))


def greedy(**kwargs):
    given = {
        "runs": ("a", "b"), "steps": None, "tokens": "t", "domains": ("prose",), "row_tokens": 8,
        "batch_rows": 1, "tokenizer": "t",
    }  # fmt: skip
    return methods.GreedySoup(**(given | kwargs))


def between(weight, extrapolate=False):
    return methods.Interpolation(
        first_run="a", first_step=3, second_run="b", second_step=None, weight=weight,
        extrapolate=extrapolate,
    )  # fmt: skip


def test_what_they_take():
    assert last(steps=(2, 5)).checkpoints() == [("a", 2), ("a", 5)]
    assert last(steps=(2, 5)).parts() == last(newest=2).parts() == soup().parts() == [1, 1]
    assert soup().checkpoints() == [("a", None), ("b", None)]
    assert soup(steps=(7, None)).checkpoints() == [("a", 7), ("b", None)]
    assert soup(weights=(0.9, 0.1)).parts() == [0.9, 0.1]
    assert greedy(steps=(7, None)).checkpoints() == [("a", 7), ("b", None)]
    assert between(0.25).checkpoints() == [("a", 3), ("b", None)]
    assert between(0.25).parts() == [0.75, 0.25]
    assert between(-0.5, extrapolate=True).parts() == [1.5, -0.5]
    assert [between(w).parts() for w in (0, 1)] == [[1, 0], [0, 1]]


def test_the_newest_n_are_what_is_there(tmp_path):
    run = tiny.write(tmp_path, "run", dict.fromkeys((4, 8, 12), tiny.params(tiny.model())))
    assert last(run=run, newest=2).checkpoints() == [(run, 8), (run, 12)]
    with pytest.raises(
        checkpoint.CheckpointError, match=r"holds the checkpoints \[4, 8, 12\], asked for the newes"
    ):
        last(run=run, newest=4).checkpoints()


def test_weights_that_were_rounded_are_taken():
    assert soup(runs=("a", "b", "c"), weights=(0.333333,) * 3).parts() == [0.333333] * 3


@pytest.mark.parametrize(
    ("weights", "factors"),
    [
        (None, (0.75, 0.5, 0.25)),  # the mean is a linear decay
        ((0.1, 0.5, 0.15, 0.25), (0.9, 0.4, 0.25)),  # 1 - f_1, f_1 - f_2, f_2 - f_3, f_3
    ],
)
def test_weights_scale_the_updates_between_the_checkpoints(weights, factors):
    """WSM, 2507.17634: a merge is the newest checkpoint, had its updates been scaled."""
    updates = np.random.default_rng(0).normal(size=(4, 10))
    checkpoints = np.cumsum(updates, axis=0)
    parts = np.array(last(newest=4, weights=weights).parts())
    merged = parts @ checkpoints / parts.sum()
    np.testing.assert_allclose(merged, updates[0] + factors @ updates[1:], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (last, "newest = None and LastN.steps = None: set one"),
        (lambda: last(newest=2, steps=(1, 2)), "set one of them"),
        (lambda: last(newest=0), "must be 1 or more, got 0"),
        (lambda: last(steps=(5, 2)), r"must rise, got \(5, 2\)"),
        (lambda: last(steps=(5, 5)), r"must rise, got \(5, 5\)"),
        (lambda: last(steps=()), "names no checkpoint"),
        (lambda: last(newest=3, weights=(0.5, 0.5)), "has 2 numbers for 3 checkpoints"),
        (lambda: soup(runs=()), "names no checkpoint"),
        (lambda: soup(steps=(1,)), r"Soup.steps has 1 entries for 2 runs"),
        (lambda: soup(weights=(0.5, 0.4)), "sum to 1, got .*, which sum to 0.9"),
        (lambda: soup(weights=(1.5, -0.5)), "must be over 0 .* use Interpolation"),
        (lambda: soup(weights=(1.0, 0.0)), "must be over 0"),
        (lambda: soup(weights=(float("nan"), 0.5)), "must be over 0"),
        (lambda: greedy(runs=()), "names no checkpoint"),
        (lambda: greedy(steps=(1, 2, 3)), "GreedySoup.steps has 3 entries for 2 runs"),
        (lambda: between(1.1), r"weight = 1.1 lies outside \[0, 1\].*extrapolate = True"),
        (lambda: between(-0.1), "lies outside"),
        (lambda: between(float("nan"), extrapolate=True), r"within \+-1e\+06, got nan"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
