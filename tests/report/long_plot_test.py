# SPDX-License-Identifier: Apache-2.0
"""The long tasks in words and lines, and evaluations without any."""

from midjax.report import long_plot, records


def cell(task, row_tokens, **numbers):
    return {"task": task, "row_tokens": row_tokens, "samples": 8, "inexact": 1, **numbers}


def column(label, cells, means, effective=None, context=None):
    result = {"domains": {}, "context_tokens": context, "long_tasks": None}
    if cells is not None:
        result["long_tasks"] = {
            "source": "books", "threshold": 0.856, "cells": cells, "means": means,
            "effective_tokens": effective,
        }  # fmt: skip
    return records.Column(label=label, path="p", result=result)


def both(score, first):
    return {"score": score, "chance": 0.25, "first": first, "first_chance": 0.1}


AFTER = column(
    "after",
    [
        cell("vt", 2048, **both(0.5, None), score_error=0.125, first_error=None),
        cell("cwe", 2048, **both(1.0, 0.4), score_error=None, first_error=0.2),
        cell("vt", 512, **both(0.75, 0.5), score_error=0.0, first_error=0.25),
        cell("cwe", 512, **both(1.0, 0.5), score_error=0.0, first_error=0.25),
    ],
    [{"row_tokens": 2048, **both(0.75, None)}, {"row_tokens": 512, **both(0.875, 0.5)}],
    512,
    1024,
)
RANKED = column(
    "ranked",
    [cell("vt", 512, first=0.3, first_error=0.1, first_chance=0.1)],
    [{"row_tokens": 512, "first": 0.3, "first_chance": 0.1}],
)
NONE = [column("none", None, None), records.Column(label="old", path="p", result={"domains": {}})]


def test_a_line_for_each_evaluation_and_form():
    plot = long_plot.plot([NONE[0], AFTER, RANKED])
    assert "after, found: 88 % at 512, 75 % at 2,048" in plot.alt
    assert "after, ranked first: 50 % at 512;" in plot.alt  # what is not known is no point
    assert "ranked, ranked first: 30 % at 512." in plot.alt
    assert "Dotted: the 85.6 %" in plot.caption
    assert long_plot.plot(NONE) is None and long_plot.plot([]) is None


def test_numbers():
    after, ranked = long_plot.read([AFTER, *NONE, RANKED])
    assert after.lengths == [512, 2048] and after.tasks == ["vt", "cwe", "mean"]
    assert after.forms == ["found", "ranked first"] and ranked.forms == ["ranked first"]
    assert after.cells["vt", 2048] == ["50 ± 12 % (chance 25.0 %)", "–"]
    assert after.cells["cwe", 2048] == ["100 % (chance 25.0 %)", "40 ± 20 % (chance 10.0 %)"]
    assert after.cells["mean", 512] == ["88 % (chance 25.0 %)", "50 % (chance 10.0 %)"]
    assert (after.effective, after.inexact, after.samples) == ("512 tokens", 4, 8)
    assert ranked.effective == "not asked: nothing was written"
    none = column("x", [cell("vt", 512, **both(0.1, 0.1))], [{"row_tokens": 512, **both(0.1, 0.1)}])
    assert long_plot.read([none])[0].effective == "less than 512 tokens"
