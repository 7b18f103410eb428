# SPDX-License-Identifier: Apache-2.0
"""The plots of the report. Sources keep their colour over all plots, columns theirs."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from midjax import units
from midjax.report import figure, records, summary, training

# Points per line, so that a long run doesn't make a page of many megabytes.
MAX_POINTS = 600
# The smoothed loss is a mean over this share of the run on either side.
SMOOTH_SHARE = 1 / 40
MIX_BINS = 48


def changes(comparison: summary.Comparison) -> figure.Plot | None:
    """Change of bits per byte against the control by domain, with the guard's limit."""
    rows = [row for row in comparison.rows if row.against_control.known]
    if not rows:
        return None
    fig, axis = figure.new(height=0.95 + 0.42 * len(rows))
    for at, row in enumerate(rows):
        moved = row.against_control
        good = moved.percent <= 0
        broken = row.domain == comparison.guard_domain and comparison.held is False
        shade = figure.ALARM if broken else figure.color(2 if good else 1)
        shade = shade if moved.clear or broken else figure.MUTED
        axis.barh(at, moved.percent, height=0.56, color=shade)
        spread = moved.error if math.isfinite(moved.error) else 0.0
        if spread:
            axis.errorbar(
                moved.percent, at, xerr=spread, color=figure.FOREGROUND, capsize=3, linewidth=1
            )
        axis.annotate(
            summary.percent(moved),
            (min(moved.percent - spread, 0), at),  # on the left: the limit is on the right
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=10,
            color=figure.FOREGROUND,
        )
    if rows[-1].domain == comparison.guard_domain:
        at = len(rows) - 1
        limit = comparison.guard_percent
        axis.plot([limit, limit], [at - 0.42, at + 0.42], color=figure.ALARM, linewidth=2)
        axis.annotate(
            f"limit {limit:g} %",
            (limit, at - 0.42),
            xytext=(4, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=9,
            color=figure.ALARM,
        )
    axis.axvline(0, color=figure.MUTED, linewidth=1)
    axis.set_yticks(range(len(rows)), [row.domain for row in rows])
    axis.tick_params(axis="y", labelcolor=figure.FOREGROUND)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.margins(x=0.3)
    axis.grid(False, axis="y")
    axis.set_xlabel(f"change of bits per byte against {comparison.control}, %", fontsize=10)
    said = ", ".join(f"{row.domain} {summary.percent(row.against_control)}" for row in rows)
    return figure.finish(
        fig,
        name="changes",
        alt=f"Bars: change of bits per byte of {comparison.result} against {comparison.control}. "
        f"{said}.",
        caption="To the left is better. Whiskers are one standard error over the held-out "
        "documents, where the evaluation gives enough of them; a grey bar is a change of less "
        "than two.",
    )


def by_position(columns: Sequence[records.Column]) -> figure.Plot | None:
    """Nats per token by distance from the start of long documents, a line per column."""
    fig, axis = figure.new()
    said: list[str] = []
    contexts: dict[int, list[str]] = {}
    drawn, end = 0, 0
    for index, column in enumerate(columns):
        position = column.result.get("by_position")
        if not position or not position.get("buckets"):
            continue
        x = [(b["from"] + b["to"]) / 2 for b in position["buckets"]]
        y = [records.number(b.get("nats_per_token")) for b in position["buckets"]]
        mark = {"marker": "o", "markersize": 4} if len(x) <= 40 else {}
        axis.plot(x, y, label=column.label, linewidth=2, **figure.series(index), **mark)
        drawn, end = drawn + 1, max(end, position["buckets"][-1]["to"])
        finite = [value for value in y if math.isfinite(value)]
        if finite:
            said.append(f"{column.label} {finite[0]:.2f} at the start, {finite[-1]:.2f} at the end")
        if context := column.result.get("context_tokens"):
            contexts.setdefault(context, []).append(column.label)
    if not drawn:
        figure.pyplot().close(fig)
        return None
    for context, labels in sorted(contexts.items()):
        if context < end:
            axis.axvline(context, color=figure.MUTED, linestyle="--", linewidth=1)
            axis.annotate(
                f"context of {', '.join(labels)}",
                (context, 0.98),
                xycoords=("data", "axes fraction"),
                xytext=(-4, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="top",
                fontsize=9,
                color=figure.MUTED,
            )
    figure.token_axis(axis, "tokens from the start of the document")
    axis.set_ylabel("nats per token", fontsize=10)
    figure.legend(axis, drawn)
    return figure.finish(
        fig,
        name="position",
        alt=f"Lines: loss by position in long documents, nats per token. {'; '.join(said)}.",
        caption="Lower is better. A line that keeps falling shows that the model still uses what "
        "stands further back; one that rises shows where its context ends. The same documents "
        "count in every bucket.",
    )


def learning_rates(runs: Sequence[records.Run]) -> figure.Plot:
    """Learning rate over tokens; a run stands where the run it started from was left."""
    fig, axis = figure.new()
    offsets = training.offsets(runs)
    said = []
    for index, run in enumerate(runs):
        x = np.array(run.column("tokens")) + offsets[run.label]
        y = np.array(run.column("lr"))
        keep = _thin(len(x))
        style = figure.series(index)
        # Runs that share a schedule lie on each other: the later ones are drawn thinner.
        width = 1.4 + 3.2 * (len(runs) - 1 - index) / max(len(runs), 1)
        axis.plot(x[keep], y[keep], label=run.label, linewidth=width, **style)
        finite = y[np.isfinite(y)]
        if len(finite):
            said.append(f"{run.label} from {finite[0]:.3g} to {finite[-1]:.3g}")
    figure.token_axis(axis)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("learning rate", fontsize=10)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    figure.legend(axis, len(runs))
    return figure.finish(
        fig,
        name="rates",
        alt=f"Lines: learning rate over tokens. {'; '.join(said)}.",
        caption="Each run is drawn from the point at which it left the run that it started from.",
    )


def losses(run: records.Run, colors: Mapping[str, int], name: str) -> figure.Plot:
    """Training loss of each source: every update faint, a token-weighted mean on top."""
    fig, axis = figure.new()
    x = np.array(run.column("tokens"))
    half = max(1, round(len(x) * SMOOTH_SHARE))
    tops, bottoms, said = [], [], []
    for source in run.sources:
        raw = np.array(run.column(f"loss/{source}"))
        smooth = smoothed(raw, np.array(run.column(f"tokens/{source}")), half)
        if not np.isfinite(smooth).any():
            continue
        style = figure.series(colors[source])
        seen = np.flatnonzero(np.isfinite(raw))
        seen = seen[_thin(len(seen))]
        axis.plot(x[seen], raw[seen], alpha=0.28, linewidth=0.8, color=style["color"])
        keep = _thin(len(x))
        axis.plot(x[keep], smooth[keep], label=source, linewidth=2, **style)
        settled = smooth[len(smooth) // 12 :]
        settled = settled[np.isfinite(settled)] if np.isfinite(settled).any() else smooth
        tops.append(np.nanmax(settled))
        bottoms.append(min(np.nanmin(raw), np.nanmin(smooth)))
        ends = smooth[np.isfinite(smooth)]
        said.append(f"{source} from {ends[0]:.2f} to {ends[-1]:.2f}")
    if tops:
        room = max(max(tops) - min(bottoms), 0.1)
        axis.set_ylim(min(bottoms) - 0.05 * room, max(tops) + 0.15 * room)
        figure.legend(axis, len(tops))
    _stage_lines(axis, training.stages(run))
    figure.token_axis(axis, f"tokens of {run.label}")
    axis.set_ylabel("nats per token", fontsize=10)
    return figure.finish(
        fig,
        name=name,
        alt=f"Lines: training loss by source in {run.label}, nats per token. {'; '.join(said)}.",
        caption=f"{run.label}: training loss by source. Faint: one update; strong: mean over "
        f"{2 * half + 1} updates, weighted by tokens. The first updates may start above the axis.",
    )


def mixture(run: records.Run, colors: Mapping[str, int], name: str) -> figure.Plot:
    """Share of loss tokens by source over the run, stacked; asked-for shares as dashed edges."""
    fig, axis = figure.new(height=3.0)
    asked = [stage.asked for stage in training.stages(run)]
    used = [t.source for t in training.totals(run) if t.tokens]
    sources = [s for s in run.sources if s in used or any(weights[s] for weights in asked)]
    edges, shares = _binned_shares(run, sources)
    stages = training.stages(run)
    stacked = np.vstack([np.zeros(len(shares)), np.cumsum(shares, axis=1).T])
    for index, source in enumerate(sources):
        axis.stairs(
            stacked[index + 1],
            edges,
            baseline=stacked[index],
            fill=True,
            color=figure.color(colors[source]),
            alpha=0.8,
            label=source,
            linewidth=0,
        )
    for stage in stages:
        level = 0.0
        for source in sources[:-1]:
            level += stage.asked[source]
            if 0 < level < 1:
                axis.plot(
                    [stage.first_token, stage.last_token],
                    [level, level],
                    color=figure.FOREGROUND,
                    linestyle=(0, (4, 3)),
                    linewidth=1.4,
                )
    _stage_lines(axis, stages)
    axis.set_ylim(0, 1)
    axis.set_xlim(edges[0], edges[-1])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    figure.token_axis(axis, f"tokens of {run.label}")
    axis.set_ylabel("share of loss tokens", fontsize=10)
    figure.legend(axis, len(sources))
    said = "; ".join(
        f"{s.name}: " + ", ".join(f"{k} {s.seen[k]:.1%}" for k in sources) for s in stages
    )
    return figure.finish(
        fig,
        name=name,
        alt=f"Stacked areas: share of tokens by source in {run.label}. {said}.",
        caption=f"{run.label}: areas are what was seen, dashed lines where the edges would lie "
        "if it were exactly what was asked.",
    )


def smoothed(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], half: int
) -> Float[np.ndarray, " n"]:
    """Weighted mean over [i - half, i + half]; NaN where that holds no value with weight."""
    known = np.isfinite(values) & (np.nan_to_num(weights) > 0)
    w = np.where(known, weights, 0.0)
    total = np.concatenate([[0.0], np.cumsum(w * np.where(known, values, 0.0))])
    weight = np.concatenate([[0.0], np.cumsum(w)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    span = weight[high] - weight[low]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(span > 0, (total[high] - total[low]) / span, np.nan)


def _binned_shares(
    run: records.Run, sources: Sequence[str]
) -> tuple[Float[np.ndarray, " bins_plus_1"], Float[np.ndarray, "bins sources"]]:
    counts = np.nan_to_num(np.array([run.column(f"tokens/{s}") for s in sources])).T
    ends = np.array(run.column("tokens"))
    # A bin never crosses a stage, or it would show a mixture that nobody asked for.
    steps = np.array([row["step"] for row in run.metrics])
    cuts = {0, len(ends)}
    for stage in training.stages(run):
        first, last = np.searchsorted(steps, [stage.first_step, stage.last_step + 1])
        bins = max(1, round(MIX_BINS * (last - first) / len(ends)))
        cuts |= set(np.linspace(first, last, min(bins, last - first) + 1).astype(int).tolist())
    order = sorted(cuts)
    sums = np.array([counts[a:b].sum(axis=0) for a, b in itertools.pairwise(order)])
    edges = np.concatenate([[run.start_tokens], ends])[order]
    whole = sums.sum(axis=1, keepdims=True)
    return edges, np.divide(sums, whole, out=np.zeros_like(sums), where=whole > 0)


def _stage_lines(axis: Any, stages: Sequence[training.Stage]) -> None:
    for stage in stages[1:]:
        axis.axvline(stage.first_token, color=figure.FOREGROUND, linewidth=1)
        axis.annotate(
            stage.name,
            (stage.first_token, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=9,
            color=figure.FOREGROUND,
        )


def _thin(count: int) -> np.ndarray:
    """At most `MAX_POINTS` indices, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).astype(int))


def describe_tokens(amount: float) -> str:
    """A token count for a table; a dash when unknown."""
    return units.human(amount) if math.isfinite(amount) else "–"
