# SPDX-License-Identifier: Apache-2.0
import pytest

from midjax import units


def test_conversions_round_up():
    assert units.steps_of_tokens(1000, 100) == 10 and units.steps_of_tokens(1001, 100) == 11
    assert units.rows_of_tokens(0, 8) == 0 and units.rows_of_tokens(1, 8) == 1


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (999, "999"), (1000, "1K"), (1_234_567, "1.23M"), (7e9, "7B"), (15e12, "15T")],
)
def test_human(amount, text):
    assert units.human(amount) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 B"), (1_234_567, "1.23 MB"), (95e9, "95 GB"), (2e15, "2e+03 TB")]
)
def test_human_bytes(amount, text):
    assert units.human_bytes(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59, "59s"), (60, "1m00s"), (3725, "1h02m"), (90_000, "25h00m")],
)
def test_human_seconds(seconds, text):
    assert units.human_seconds(seconds) == text
