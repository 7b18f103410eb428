# SPDX-License-Identifier: Apache-2.0
"""The needle test in words and marks, and evaluations without one."""

import math
import re

from midjax.report import needle_plot, records


def cell(row_tokens, depth, accuracy, nats, without, error=0.01):
    return {"row_tokens": row_tokens, "depth": depth, "accuracy": accuracy,
            "nats_per_token": nats, "nats_without": without, "saved_error": error}  # fmt: skip


def column(label, cells, context=None):
    result = {"domains": {}, "context_tokens": context, "needle": None}
    if cells is not None:
        result["needle"] = {"source": "books", "per_cell": 4, "cells": cells}
    return records.Column(label=label, path="p", result=result)


BEFORE = column(
    "before",
    [cell(8192, 0.5, 0.0, 6.0, 5.5), cell(512, 0.5, 0.75, 1.0, 5.0), cell(512, 0.0, None, None, 5)],
    1024,
)
AFTER = column("after", [cell(512, 0.5, 1.0, 3.0, 5.0, None)], 8192)
NONE = [column("none", None), records.Column(label="old", path="p", result={"domains": {}})]


def test_a_plot_for_each_evaluation_that_has_the_test():
    before, after = needle_plot.plots([NONE[0], BEFORE, AFTER, NONE[1]])
    assert "512 at 0.5: 75 %, +4.00" in before.alt and "512 at 0: –, –" in before.alt
    assert "8,192 at 0.5: 0 %, −0.50" in before.alt
    assert "512 at 0.5: 100 %, +2.00" in after.alt and "share of 4 pass keys" in after.caption
    assert "75 %  +4.00" in before.svg
    assert "dashed line" in before.caption and "dashed line" not in after.caption
    assert needle_plot.plots(NONE) == [] and needle_plot.plots([]) == []


def test_shades_compare_across_evaluations():
    shades = [
        [float(x) for x in re.findall(r"fill: var\(--s2\); opacity: ([0-9.]+)", plot.svg)]
        for plot in needle_plot.plots([BEFORE, AFTER])
    ]
    assert shades == [[0.45], [0.225]]  # one that saves nothing is not drawn


def test_numbers():
    before, after = needle_plot.read([BEFORE, *NONE, AFTER])
    assert before.lengths == [512, 8192] and before.depths == [0.0, 0.5]
    assert before.cells[512, 0.5].nats_with_error == "+4.00 ± 0.01"
    assert after.cells[512, 0.5].nats_with_error == "+2.00" and after.context == 8192
    assert math.isnan(before.cells[512, 0.0].saved) and before.cells[512, 0.0].share == "–"
    assert (8192, 0.0) not in before.cells
