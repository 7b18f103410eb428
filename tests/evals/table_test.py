# SPDX-License-Identifier: Apache-2.0
"""The table on the terminal, line by line."""

from midjax.evals import table


def a_task(value, metric="acc", **counts):
    return {
        "primary": metric,
        "metrics": {metric: value},
        "documents": 10,
        "counts": {"left out": {}, "cut requests": 0, "texts cut": 0} | counts,
    }


def test_a_row_for_each_number():
    result = {
        "domains": {"prose": {"bits_per_byte": 1.25, "documents": 3}},
        "tasks": {
            "ranked": a_task(0.1, **{"left out": {"limit": 4}, "cut requests": 2, "texts cut": 3})
            | {"macro": {"acc": 0.5}},
            "code": a_task(None, "pass@1", verdicts={"error": 1, "passed": 9}, empty=1),
        },
        "groups": {
            "core": {
                "members": {"ranked": {"acc_norm": 0.5}, "other": {"acc": 0.25}},
                "macro": {"acc": 0.375},
            }
        },
    }
    assert list(table.lines(result)) == [
        "          metric              score  documents",
        "  prose   bits_per_byte      1.2500          3",
        "  ranked  acc                0.5000         10  4 documents left out (limit), "
        "2 prompts cut, 3 texts not ended",
        "  code    pass@1         not finite         10  1 empty, 1 error, 9 passed",
        "  core    acc                0.3750             mean of 2 tasks",
    ]
    assert list(table.lines({"domains": {}, "tasks": {}, "groups": {}})) == []
