# SPDX-License-Identifier: Apache-2.0
"""Bars of known shares, and runs that said nothing."""

import re

from midjax.report import goodput_plot, records


def run(label, seconds):
    events = [{"event": "goodput", "run_seconds": seconds}] if seconds else []
    return records.Run(label=label, folder="r", metrics=[], events=events, config="")


def test_each_run_is_a_bar_and_what_is_nothing_is_left_out():
    runs = [
        run("one", {"start": 30.0, "compile": 10.0, "step": 60.0, "lost": 0.0, "eval": 0.0}),
        run("silent", None),
        run("two", {"start": 0.001, "step": 300.0, "lost": 100.0, "down": 0.0}),
    ]
    found = goodput_plot.plot(runs)
    assert "one: 60% of 1m40s in step, 30% start, 10% compile" in found.alt
    assert "two: 75% of 6m40s in step, 25% lost." in found.alt and "silent" not in found.svg
    legend = {text for text in ("step", "compile", "start", "lost", "eval", "down")
              if re.search(rf">{text}<", found.svg)}  # fmt: skip
    assert legend == {"step", "compile", "start", "lost"}


def test_without_a_word_of_time_there_is_no_plot():
    assert goodput_plot.plot([run("silent", None)]) is None and goodput_plot.plot([]) is None
