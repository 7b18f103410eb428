# SPDX-License-Identifier: Apache-2.0
"""The plots of a plan say in words what they show."""

import copy

from plan_examples import FITS, PLAN

from midjax.report import plan_plots

SLICE = PLAN["slices"]["v5e-64"]


def test_memory_merges_what_is_small():
    plot = plan_plots.memory(FITS, "m")
    assert "gradients 7.99 GB, parameters 4 GB, the rest 10 MB" in plot.alt
    assert "12 GB in all" in plot.caption


def test_the_timeline_names_its_fullest_moment():
    plot = plan_plots.timeline(FITS, 16_000_000_000, "t")
    assert "12 GB of 16 GB, at mlp/dot_general" in plot.alt
    nameless = copy.deepcopy(FITS)
    nameless["found"]["peak_op_name"] = ""
    assert "without a name" in plan_plots.timeline(nameless, 16_000_000_000, "t").alt


def test_time_leaves_out_parts_without_any():
    plot = plan_plots.time([("midtrain", FITS)], "t")
    assert "midtrain: matrix 1.5 s, vector 0.4 s, collectives 0.1 s" in plot.alt
    assert "host" not in plot.alt


def test_the_roof_is_the_chips():
    plot = plan_plots.roofline(FITS, SLICE, "r")
    assert "1 instructions" in plot.alt
    assert "197 TFLOP/s and 0.82 TB/s" in plot.alt and "mlp/dot_general, 150 TFLOP/s" in plot.alt
    none = copy.deepcopy(FITS)
    none["found"]["roofline"] = []
    assert plan_plots.roofline(none, SLICE, "r") is None


def test_a_front_needs_a_setting_that_fits():
    search = PLAN["searches"][0]
    assert "1 settings; the fastest takes 2 s and 12 GB" in plan_plots.front(search, "f").alt
    assert plan_plots.front(search | {"rows": search["rows"][1:]}, "f") is None
