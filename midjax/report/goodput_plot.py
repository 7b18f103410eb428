# SPDX-License-Identifier: Apache-2.0
"""Where the time of each run went: a bar for each, divided among the buckets."""

from collections.abc import Sequence

from midjax import units
from midjax.report import figure, records, training

# The order in the bar; what a run has besides comes after.
_ORDER = ("step", "data_wait", "compile", "start", "checkpoint", "eval", "lost", "other", "down")
_LEAST_SHARE = 0.0005  # smaller ones are said with the rest, not drawn


def plot(runs: Sequence[records.Run]) -> figure.Plot | None:
    """None where no run has said where its time went."""
    told = {run.label: seconds for run in runs if (seconds := training.seconds(run))}
    if not told:
        return None
    known = {name for seconds in told.values() for name in seconds}
    buckets = [name for name in _ORDER if name in known] + sorted(known - set(_ORDER))
    fig, axis = figure.new(height=1.1 + 0.42 * len(told))
    labels = list(told)
    drawn = 0
    left = dict.fromkeys(labels, 0.0)
    for index, bucket in enumerate(buckets):
        widths = [told[label].get(bucket, 0.0) / sum(told[label].values()) for label in labels]
        if max(widths) < _LEAST_SHARE:
            continue
        drawn += 1
        axis.barh(
            labels,
            widths,
            left=[left[label] for label in labels],
            height=0.62,
            color=figure.ALARM if bucket == "lost" else figure.color(index),
            label=bucket.replace("_", " "),
        )
        for label, width in zip(labels, widths, strict=True):
            left[label] += width
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlabel("share of the time from the first process's start to the last one's end")
    axis.xaxis.label.set_fontsize(10)
    figure.legend(axis, drawn)
    said = "; ".join(f"{label}: {words(seconds)}" for label, seconds in told.items())
    return figure.finish(
        fig,
        name="goodput",
        alt=f"Bars: where the time of each run went. {said}.",
        caption="Step is the loop itself. Lost is work that was done again after a kill or a "
        "rollback, down the time between two processes of a run.",
    )


def words(seconds: dict[str, float]) -> str:
    """`93 % of 12m03s in step, 3 % compile, ...`, the largest first."""
    whole = sum(seconds.values())
    rest = sorted((s, name) for name, s in seconds.items() if name != "step" and s / whole >= 0.005)
    parts = [f"{s / whole:.0%} {name.replace('_', ' ')}" for s, name in reversed(rest)]
    first = f"{seconds.get('step', 0.0) / whole:.0%} of {units.human_seconds(whole)} in step"
    return ", ".join([first, *parts])
