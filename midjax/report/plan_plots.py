# SPDX-License-Identifier: Apache-2.0
"""The plots of a plan: what fills memory and time, memory over a step, and the roofline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from midjax import units
from midjax.report import figure

# The order of the bars, and of their colours; what else there is comes after.
_TIME = ("matrix", "kernels", "vector", "collectives", "prefetch", "host", "sparse")
_PARTS = ("matrix", "kernels", "vector")
_LEAST_SHARE = 0.005  # smaller parts are one


def memory(step: Mapping[str, Any], name: str) -> figure.Plot:
    """What fills a chip at the fullest moment, a bar for each kind."""
    found = step["found"]
    parts = _merged(found["memory"], found["peak_bytes"])
    unit, per = _unit(found["peak_bytes"])
    said = ", ".join(f"{kind} {units.human_bytes(size)}" for kind, size in parts)
    fig, axis = figure.new(height=0.9 + 0.34 * len(parts))
    kinds = [kind for kind, _ in parts]
    axis.barh(kinds, [size / per for _, size in parts], height=0.62, color=figure.color(0))
    for at, (_, size) in enumerate(parts):
        axis.annotate(
            units.human_bytes(size),
            (size / per, at),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=figure.FOREGROUND,
        )
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", labelcolor=figure.FOREGROUND)
    axis.set_xlabel(f"{unit} of a chip", fontsize=10)
    return figure.finish(
        fig,
        name=name,
        alt=f"Bars: memory of a chip at the fullest moment. {said}.",
        caption=f"Memory at the fullest moment: {units.human_bytes(found['peak_bytes'])} in all.",
    )


def timeline(step: Mapping[str, Any], usable_bytes: int, name: str) -> figure.Plot:
    """Memory in use over the instructions of a step."""
    found = step["found"]
    points = np.array(found["timeline"], float).reshape(-1, 2)
    where = found["peak_op_name"] or "an operation without a name"
    unit, per = _unit(found["peak_bytes"])
    fig, axis = figure.new(height=2.8)
    x = points[:, 0] / max(found["positions"], 1)
    # Beside what moves there is the program, and gaps: there all the time.
    rest = found["peak_bytes"] - points[:, 1].max(initial=0.0)
    axis.fill_between(
        x, (points[:, 1] + rest) / per, step="post", alpha=0.25, color=figure.color(0)
    )
    axis.step(x, (points[:, 1] + rest) / per, where="post", linewidth=1.2, **figure.series(0))
    if found["peak_bytes"] > usable_bytes / 3:
        axis.axhline(usable_bytes / per, color=figure.ALARM, linewidth=1.2)
    at = found["peak_position"] / max(found["positions"], 1)
    axis.axvline(at, color=figure.MUTED, linestyle="--", linewidth=1)
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlabel("place in the program; a loop stands there once", fontsize=10)
    axis.set_ylabel(f"{unit} of a chip", fontsize=10)
    return figure.finish(
        fig,
        name=name,
        alt=f"Area: memory of a chip over a step, at most {units.human_bytes(found['peak_bytes'])} "
        f"of {units.human_bytes(usable_bytes)}, at {where}.",
        caption=f"Memory over a step. Dashed: the fullest moment, at {where}. The red line, where "
        "it is in sight, is what the compiler lets a program use.",
    )


def time(steps: Sequence[tuple[str, Mapping[str, Any]]], name: str) -> figure.Plot:
    """A bar for each step, divided among what the chip does and waits for."""
    fig, axis = figure.new(height=1.1 + 0.42 * len(steps))
    labels = [label for label, _ in steps]
    known = {part for _, step in steps for part in step["found"]["parts"]}
    order = [part for part in _TIME if part in known] + sorted(known - set(_TIME))
    left = np.zeros(len(steps))
    drawn = 0
    for part in order:
        widths = np.array([step["found"]["parts"].get(part, 0.0) for _, step in steps])
        if not widths.any():
            continue
        axis.barh(labels, widths, left=left, height=0.62, color=figure.color(drawn), label=part)
        left, drawn = left + widths, drawn + 1
    axis.invert_yaxis()
    axis.set_xlabel("seconds of a step", fontsize=10)
    axis.grid(False, axis="y")
    figure.legend(axis, drawn)
    said = "; ".join(
        f"{label}: " + ", ".join(f"{p} {s:.3g} s" for p, s in step["found"]["parts"].items() if s)
        for label, step in steps
    )
    return figure.finish(
        fig,
        name=name,
        alt=f"Bars: the time of a step by part. {said}.",
        caption="Matrix: products and what is fused with them; kernels: hand-written ones; vector: "
        "all else that is computed; collectives, prefetch and host: waiting for them, what is "
        "hidden behind computation left out.",
    )


def roofline(step: Mapping[str, Any], slice_: Mapping[str, Any], name: str) -> figure.Plot | None:
    """Rate over intensity of the instructions that take the longest; None where none is known."""
    points = [point for point in step["found"]["roofline"] if point["flops"] > 0]
    if not points:
        return None
    peak, rate = slice_["flops_per_second"], slice_["hbm_bytes_per_second"]
    fig, axis = figure.new(height=3.1)
    across = [point["flops"] / point["hbm_bytes"] for point in points]
    low, high = min(min(across), peak / rate) / 3, max(max(across), peak / rate) * 3
    roof = np.geomspace(low, high, 100)
    axis.plot(roof, np.minimum(peak, roof * rate) / 1e12, color=figure.FOREGROUND, linewidth=1.4)
    for index, part in enumerate(_PARTS):
        of_part = [point for point in points if point["part"] == part]
        if not of_part:
            continue
        share = [point["seconds"] / step["found"]["step_seconds"] for point in of_part]
        axis.scatter(
            [point["flops"] / point["hbm_bytes"] for point in of_part],
            [point["flops"] / point["seconds"] / 1e12 for point in of_part],
            s=[20 + 900 * one for one in share],
            color=figure.color(index),
            alpha=0.6,
            label=part,
            linewidths=0,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOPs per byte of HBM", fontsize=10)
    axis.set_ylabel("TFLOP/s", fontsize=10)
    ticks = [peak / 1e12 / share for share in (1, 2, 4, 8)]
    axis.set_yticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axis.minorticks_off()
    figure.legend(axis, len(_PARTS))
    top = max(points, key=lambda point: point["seconds"])
    return figure.finish(
        fig,
        name=name,
        alt=f"Dots under a roof: rate over intensity of {len(points)} instructions; the roof is "
        f"{peak / 1e12:.0f} TFLOP/s and {rate / 1e12:.2f} TB/s. The longest is {top['label']}, "
        f"{top['flops'] / top['seconds'] / 1e12:.0f} TFLOP/s.",
        caption="The instructions with products that take the longest, larger where they take "
        "longer. The roof is the chip's peak, and to the left of its edge what HBM could feed.",
    )


def front(search: Mapping[str, Any], name: str) -> figure.Plot | None:
    """Time against memory of the settings that fit; None where none does."""
    rows = [row for row in search["rows"] if row["step"]["found"] is not None]
    if not rows:
        return None
    unit, per = _unit(max(row["step"]["found"]["peak_bytes"] for row in rows))
    fig, axis = figure.new(height=3.0)
    for index, (on_front, label) in enumerate(((False, "other settings"), (True, "the front"))):
        some = [row for row in rows if row["on_front"] == on_front]
        axis.plot(
            [row["step"]["found"]["peak_bytes"] / per for row in some],
            [row["step"]["found"]["step_seconds"] for row in some],
            color=figure.color(1 - index) if on_front else figure.MUTED,
            marker="o",
            linestyle="-" if on_front else "none",
            markersize=5,
            label=label,
        )
    axis.set_ylim(bottom=0)
    axis.set_xlabel(f"{unit} of a chip", fontsize=10)
    axis.set_ylabel("seconds of a step", fontsize=10)
    figure.legend(axis, 2)
    best = rows[0]["step"]["found"]
    return figure.finish(
        fig,
        name=name,
        alt=f"Dots: time against memory of {len(rows)} settings; the fastest takes "
        f"{best['step_seconds']:.3g} s and {units.human_bytes(best['peak_bytes'])}.",
        caption="Of the settings on the front none other is both faster and smaller.",
    )


def _unit(most_bytes: float) -> tuple[str, float]:
    """What an axis up to so many bytes counts in."""
    return ("GB", 1e9) if most_bytes >= 1e9 else ("MB", 1e6)


def _merged(parts: Mapping[str, int], whole: int) -> list[tuple[str, int]]:
    """The largest first, those under half a percent together at the end."""
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    large = [(kind, size) for kind, size in ordered if size >= _LEAST_SHARE * whole]
    rest = sum(size for _, size in ordered) - sum(size for _, size in large)
    return [*large, ("the rest", rest)] if rest else large
