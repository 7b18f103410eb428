# SPDX-License-Identifier: Apache-2.0
"""Scores over a run, from its evals.jsonl; what was lost since its parent, from *.against.json."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from midjax.report import figure, records

# So many scores are drawn; the caption says how many are not.
MAX_SCORES = 12
_TICKS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Against:
    """A table of `midjax eval --against`, or of the newest evaluation of a run with gates.

    Attributes:
      title: what is compared with what.
      level: of the intervals, as `95 %`.
      rows: (score, parent, now, delta, interval, verdict), all in words.
      retention: the same of retention, which has no parent and no delta.
      notes: scores that retention is not of.
      gates: (a sentence, whether it holds).
    """

    title: str
    level: str
    rows: Sequence[tuple[str, ...]]
    retention: tuple[str, ...]
    notes: list[str]
    gates: list[tuple[str, bool]]


def series(run: records.Run) -> dict[str, list[tuple[int, float]]]:
    """Score -> (step, value) in order, of scores with two steps or more."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for line in run.evals:  # of the same name and step the last one counts
        for score, value in line["scores"].items():
            points = found.setdefault((line["name"], score), {})
            points[line["step"]] = records.number(value)
    known = {
        key: [(step, value) for step, value in sorted(points.items()) if math.isfinite(value)]
        for key, points in found.items()
    }
    known = {key: points for key, points in known.items() if len(points) > 1}
    is_alone = len({name for name, _ in known}) == 1
    return {
        score if is_alone else f"{name}: {score}": points for (name, score), points in known.items()
    }


def plot(run: records.Run, name: str) -> figure.Plot | None:
    """A small drawing per score over tokens and steps; None where nothing was measured twice."""
    known = series(run)
    if not known:
        return None
    shown = list(known.items())[:MAX_SCORES]
    fig, axes = figure.new(height=0.9 + 1.15 * len(shown), rows=len(shown))
    axes = [axes] if len(shown) == 1 else list(axes)
    said, steps = [], sorted({step for _, points in shown for step, _ in points})
    for axis, (title, points) in zip(axes, shown, strict=True):
        x = [_tokens(run, step) for step, _ in points]
        y = [value for _, value in points]
        axis.plot(x, y, marker="o", markersize=4, linewidth=2, color=figure.color(0))
        axis.set_title(title, loc="left", fontsize=10, color=figure.FOREGROUND)
        said.append(f"{title} from {y[0]:.4f} to {y[-1]:.4f}")
    figure.token_axis(axes[-1], f"tokens of {run.label}, the steps above")
    marks = steps[:: max(1, math.ceil(len(steps) / _TICKS))]
    top = axes[0].secondary_xaxis("top")
    top.set_ticks([_tokens(run, step) for step in marks], [str(step) for step in marks])
    top.tick_params(colors=figure.MUTED, labelsize=10, length=0)
    top.spines["top"].set_visible(False)
    left = len(known) - len(shown)
    more = f" {left} more scores are in {run.folder}/evals.jsonl." if left else ""
    return figure.finish(
        fig,
        name=name,
        alt=f"Lines: what was measured over {run.label}. {'; '.join(said)}.",
        caption=f"{run.label}: what was measured on the way. Of losses and bits per byte less is "
        f"better, of right answers and retention more.{more}",
    )


def _tokens(run: records.Run, step: int) -> float:
    """On the run's own count after update `step`, as its metrics say."""
    done = [row for row in run.metrics if row["step"] <= step]
    return records.number(done[-1]["tokens"]) if done else run.start_tokens


def tables(run: records.Run) -> list[Against]:
    """The comparisons of a run with its parent."""
    return [_table(found) for found in run.against]


def _table(found: dict[str, Any]) -> Against:
    parent, retention = found["parent"], found["retention"]
    broken = {gate["score"] for gate in found["gates"] if not gate["passed"]}
    rows = [
        (
            row["score"],
            _number(row["parent"]),
            _number(row["now"]),
            _number(row["delta"], "+"),
            _interval(row["interval"], "+"),
            row["verdict"] + (", gate failed" if row["score"] in broken else ""),
        )
        for row in found["rows"]
    ]
    verdict = "1 is nothing lost" + (", gate failed" if "retention" in broken else "")
    kept = (_number(retention["value"]), "", _interval(retention["interval"]), verdict)
    return Against(
        title=f"{found['name']}: step {found['step']} of {found['run']} against step "
        f"{parent['step']} of {parent['run']}",
        level=f"{100 * found['level']:g} %",
        rows=rows,
        retention=("retention", "1", *kept),
        notes=[
            f"{score}: {why}"
            for key in ("left_out", "lost")
            for score, why in retention.get(key, {}).items()  # older files have no "lost"
        ],
        gates=[(_gate(gate), gate["passed"]) for gate in found["gates"]],
    )


def _gate(gate: dict[str, Any]) -> str:
    relative = gate["of"] == "relative"

    def amount(value: Any) -> str:
        known = records.number(value)
        if not math.isfinite(known):
            return "not known"
        return f"{100 * known:.2f} %" if relative else f"{known:.4f}"

    case = {"estimate": "", "best_case": " at best", "worst_case": " at worst"}
    loss = records.number(gate["loss"])
    moved = f"gained {amount(-loss)}" if loss < 0 else f"lost {amount(loss)}"
    return (
        f"{gate['score']}: {moved}; at most {amount(gate['largest_loss'])} may be lost"
        f"{case[gate['must_hold_for']]}. {'It holds.' if gate['passed'] else 'It failed.'}"
    )


def _number(value: Any, sign: str = "") -> str:
    known = records.number(value)
    return f"{known:{sign}.4f}".replace("-", "−") if math.isfinite(known) else "–"


def _interval(ends: Sequence[Any] | None, sign: str = "") -> str:
    return "–" if ends is None else " to ".join(_number(end, sign) for end in ends)
