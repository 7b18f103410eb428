# SPDX-License-Identifier: Apache-2.0
"""Run directories and eval files -> one HTML page that says what a mixture bought and what it cost.

    run/metrics.jsonl, events.jsonl, config  --\\
    run/eval/<name>.json (before, control, after) >-- records --> summary (numbers, sentences)
    result of an export                      --/         |              |
                                                         +--> plots     |
                                                                v       v
                                                    page: template.html.j2 -> report.html

    records.py   reads files; a missing one is an error that names the command which makes it
    summary.py   the comparison with the control: changes, standard errors, the trade in words
    training.py  what the runs did: stages asked and seen, totals, starts, speed, time, skips
    figure.py    Matplotlib -> SVG that takes its colours from the page (light and dark)
    plots.py     the plots
    goodput_plot.py  where the time of each run went
    needle_plot.py  the needle test: lengths by depths
    long_plot.py    the long tasks: their mean by length, and a table
    page.py      the root `Report`, the HTML page and the terminal's table
"""
