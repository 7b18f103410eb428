# SPDX-License-Identifier: Apache-2.0
"""The tables of a task file refuse what makes no sense."""

import pytest

from midjax.evals import task_parts
from midjax.evals.metrics import names


def test_metrics_have_titles():
    assert task_parts.Metric(name="acc").title == "acc"
    assert task_parts.Metric(name="pass", k=10).title == "pass@10"
    assert task_parts.Metric(name="exact_match", label="strict").title == "strict"


def test_the_direction_of_a_metric_is_in_its_title():
    """`pairing` takes it from there: less is better of losses, and of nothing else."""
    for name in sorted(names.LESS_IS_BETTER):
        assert task_parts.Metric(name=name, label=name).title == name
        with pytest.raises(ValueError, match="'loss': by their names .* Leave the label of a loss"):
            task_parts.Metric(name=name, label="loss")
        for label in (name, f"mine/{name}"):
            with pytest.raises(ValueError, match="give another metric another one"):
                task_parts.Metric(name="acc", label=label)


def test_shots_need_where_to_come_from():
    with pytest.raises(ValueError, match="count is 2, and there are 1 examples"):
        task_parts.Shots(count=2, examples=({"a": 1},))
    with pytest.raises(ValueError, match="needs a split"):
        task_parts.Shots(count=2, take="first")
    with pytest.raises(ValueError, match="0 or more"):
        task_parts.Shots(count=-1)


def test_samples_are_of_one_or_more():
    with pytest.raises(ValueError, match="1 or more, got 0"):
        task_parts.Sample(count=0)
