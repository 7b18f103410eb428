# SPDX-License-Identifier: Apache-2.0
"""The error that a plan states."""

import pytest

from midjax.plan import published


def test_the_error_is_that_of_the_runs():
    known = [{"off_percent": 10.0}, {"off_percent": -20.0}, {"outcome": "out of memory"}]
    said = published.sentence(known)
    assert "2 published runs" in said and "-20 to +10 %, 15 % in the mean" in said
    assert "were known" not in said
    more = [*known, {"run": "mixtral-8x7b-v6e", "off_percent": -2.0}]
    assert "(1 of them were known when" in published.sentence(more)
    assert "has not been set" in published.sentence([])


def test_the_file_adds_up():
    assert published.rows()
    for row in published.rows():
        assert row["source"] and row["slice"]
        if "off_percent" in row:
            off = 100 * (row["predicted_percent"] / row["published_percent"] - 1)
            assert row["off_percent"] == pytest.approx(off)
            tokens = row["rows_per_chip"] * row["row_tokens"] / row["step_seconds"]
            off = 100 * (tokens / row["published_tokens_per_second"] - 1)
            assert row["off_percent"] == pytest.approx(off)
            assert sum(row["parts"].values()) == pytest.approx(row["step_seconds"])
