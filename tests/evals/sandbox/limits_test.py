# SPDX-License-Identifier: Apache-2.0
import pytest

from midjax.evals.sandbox import limits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_seconds", 0),
        ("cpu_seconds", 0.5),
        ("processes", True),
        ("memory_bytes", 1 << 20),
        ("wall_seconds", 0),
        ("wall_seconds", float("nan")),
        ("output_bytes", -1),
    ],
)
def test_impossible_limits_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        limits.Limits(**{name: value})
