# SPDX-License-Identifier: Apache-2.0
"""What a run forgot: a model's result against its parent's, and gates that fail where it is much.

    two results --pairing--> pairs --bootstrap--> a row per score: parent, now, delta, interval
                                                  retention, of all general scores in one figure
                                                  gates: which loss is too much

Retention of general ability, of K scores that are general:

    retention = exp(1/K * sum over scores of g),  g = ln(now / parent) where more is better,
                                                  g = ln(parent / now) where less is better

1.0: nothing lost on the whole; 0.9: a tenth of what the parent could; above 1: gained. It is the
geometric mean of ratios, the one mean of ratios that does not depend on which of two models is the
reference (Fleming and Wallace 1986, CACM 29, 218-221). The definition is ours: the literature on
forgetting reports differences by task. A gain may hide a loss in it, so the rows and gates stand
beside it. Of a task its primary metric counts, where the result says which that is. Where the
parent has 0, or no finite number, there is no ratio; such a score is left out, and said. Where the
parent has more and the model 0, or no finite number, all of it is lost: retention is not known, and
a gate on it fails.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from midjax import files
from midjax.evals import bootstrap, pairing

RETENTION = "retention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """How much of which scores may be lost.

    A loss is what got worse: bits per byte that rose, right answers that became fewer. Below 0 it
    is a gain. Of "retention" it is 1 - retention.

    Attributes:
      scores: names, with * and ?: "domain/prose/bits_per_byte", "task/*", "retention".
      largest_loss: that still passes.
      of: "absolute": in the score's unit; "relative": a share of the parent's score, 0.02 is 2 %.
        Where the parent has 0 and more is better, there is nothing to lose.
      must_hold_for: "estimate": the loss as measured; "best_case": the end of its interval where
        least is lost, so that only a loss beyond chance fails; "worst_case": the end where most is
        lost, so that passing takes enough documents to be sure.
    """

    scores: str
    largest_loss: float
    of: Literal["absolute", "relative"] = "relative"
    must_hold_for: Literal["estimate", "best_case", "worst_case"] = "estimate"

    def __post_init__(self) -> None:
        if not self.scores:
            raise ValueError(
                "Gate.scores is empty. Name scores, such as 'domain/*' or 'retention'."
            )
        if not math.isfinite(self.largest_loss) or self.largest_loss < 0:
            raise ValueError(
                f"Gate.largest_loss must be 0 or more (0.02 is 2 % where Gate.of is 'relative'), "
                f"got {self.largest_loss}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a result is compared with its parent's.

    Attributes:
      gates: what fails it; none for a table only.
      general: names of the scores that retention is of, with * and ?.
      level: of the intervals.
      resamples: draws for each score.
      seed: of the draws.
    """

    gates: tuple[Gate, ...] = ()
    general: tuple[str, ...] = ("domain/*", "task/*")
    level: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.5 <= self.level < 1:
            raise ValueError(f"Comparison.level must be from 0.5 to below 1, got {self.level}.")
        least = math.ceil(20 / (1 - self.level))
        if self.resamples < least:
            raise ValueError(
                f"Comparison.resamples={self.resamples} leaves fewer than 10 draws beyond an end "
                f"of an interval at level {self.level}. Take {least} or more."
            )
        if self.seed < 0:
            raise ValueError(f"Comparison.seed must be 0 or more, got {self.seed}.")
        if not self.general:
            raise ValueError("Comparison.general is empty. Name scores, such as 'domain/*'.")


class ForgottenError(ValueError):
    """A gate failed: more was lost than it allows."""

    exit_code = 6
    is_everywhere = True  # of several processes all know, and none has to be told


def path(run_dir: str, name: str) -> Any:
    """Where the comparison of the results NAME of a run is."""
    return files.path(run_dir) / "eval" / f"{name}.against.json"


def compare(parent: pairing.Measured, now: pairing.Measured, config: Comparison) -> dict[str, Any]:
    """The comparison, as plain JSON.

    Returns:
      name, run, step, weights; parent: {run, step, weights, path}; level, resamples, seed;
      rows: {score, less_is_better, documents, parent, now, delta, interval, method, relative,
      relative_interval, verdict}; retention: {value, interval, method, scores, left_out: {score:
      why}, lost: {score: why}}; not_compared: what else is in the results; gates: {scores, of,
      largest_loss, must_hold_for, score, loss, interval, passed, why}; passed. Unknown numbers are
      null. "method" is the one that gave the interval.

    Raises:
      pairing.IncomparableError: no difference of the two has a meaning.
      ValueError: a gate, or Comparison.general, names no score there is.
    """
    pairs = pairing.pairs(parent, now)
    check_names([pair.score for pair in pairs], config)
    drawn = {
        pair.score: bootstrap.draw(
            pair.strata, resamples=config.resamples, seed=config.seed, name=pair.score
        )
        for pair in pairs
        if pair.is_finite
    }
    rows = [_row(pair, drawn.get(pair.score), config) for pair in pairs]
    retention = _retention(pairs, drawn, config, now.result)
    gates = [
        _judged(gate, row)
        for gate in config.gates
        for row in [*rows, _as_row(retention)]
        if _is_meant(row["score"], gate.scores)
    ]
    return {
        **_of(now),
        "parent": _of(parent) | {"path": parent.path},
        "level": config.level,
        "resamples": config.resamples,
        "seed": config.seed,
        "rows": rows,
        "retention": retention,
        "not_compared": pairing.not_compared(parent, now),
        "gates": gates,
        "passed": all(gate["passed"] for gate in gates),
    }


def _of(measured: pairing.Measured) -> dict[str, Any]:
    named = {key: measured.result.get(key) for key in ("name", "run", "step")}
    return named | {"weights": measured.result.get("weights", "params")}


def _is_meant(score: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(score, pattern)


def check_names(scores: Sequence[str], config: Comparison) -> None:
    """That gates and retention name scores that there are, or will be.

    Args:
      scores: as of `pairing.scores_of`.

    Raises:
      ValueError: one names none; says which there are.
    """
    known = [*scores, RETENTION]
    for gate in config.gates:
        if not fnmatch.filter(known, gate.scores):
            raise ValueError(
                f"Gate.scores = {gate.scores!r} is no score; there are {', '.join(known)}."
            )
    if not any(fnmatch.filter(scores, pattern) for pattern in config.general):
        raise ValueError(
            f"Comparison.general = {config.general!r} names no score; there are "
            f"{', '.join(scores)}."
        )


def _row(pair: pairing.Pair, drawn: bootstrap.Drawn | None, config: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {
        "score": pair.score,
        "less_is_better": pair.less_is_better,
        "documents": pair.documents,
        "method": None,
    }
    if drawn is None:
        unknown = ("parent", "now", "delta", "interval", "relative", "relative_interval")
        return row | dict.fromkeys(unknown) | {"verdict": "not finite"}
    row |= {"parent": drawn.parent, "now": drawn.now, "delta": drawn.now - drawn.parent}
    asked: dict[str, Any] = {"level": config.level, "method": pair.method}
    ends = bootstrap.difference(drawn, **asked)
    row["interval"] = _ends(ends and ends.ends)
    row["method"] = ends and ends.method
    row["relative"] = row["relative_interval"] = None
    if drawn.parent > 0:
        row["relative"] = drawn.now / drawn.parent - 1
        if drawn.now > 0:
            ratio = bootstrap.log_ratio([drawn], [1.0], **asked)
            row["relative_interval"] = _ends(ratio and _safely(np.expm1, ratio.ends))
    row["verdict"] = _verdict(row["interval"], pair.less_is_better)
    return row


def _ends(interval: Any) -> list[float | None] | None:
    """As JSON: an end that is not finite is null."""
    if interval is None:
        return None
    return [float(end) if math.isfinite(end) else None for end in interval]


def _safely(function: np.ufunc, values: Any) -> Any:
    """What is too large for a float is infinite, as an end that is not known is."""
    with np.errstate(over="ignore"):
        return function(np.asarray(values, np.float64))


def _verdict(interval: list[float | None] | None, less_is_better: bool) -> str:
    if interval is None:
        return "unsure: too few documents"
    low, high = interval
    rose, fell = low is not None and low > 0, high is not None and high < 0
    if not rose and not fell:
        return "no clear change"
    return "worse" if rose == less_is_better else "better"


def _retention(
    pairs: Sequence[pairing.Pair],
    drawn: Mapping[str, bootstrap.Drawn],
    config: Comparison,
    result: Mapping[str, Any],
) -> dict[str, Any]:
    used, left_out, lost = [], {}, {}
    for pair in pairs:
        score = pair.score
        if not any(_is_meant(score, pattern) for pattern in config.general):
            continue
        if not _is_primary(score, result.get("tasks") or {}):
            continue
        if not pair.parent_has_ratio:
            left_out[score] = "the parent has 0, or no finite number, and no ratio"
        elif score not in drawn:
            lost[score] = "not finite now, which counts as all lost"
        elif drawn[score].now > 0:
            used.append(pair)
        elif pair.less_is_better:
            left_out[score] = "now it is 0, a gain without a ratio"
        else:
            lost[score] = "now it is 0, all of it is lost"
    scores = [pair.score for pair in used]
    found: dict[str, Any] = {"value": None, "interval": None, "method": None}
    if used and not lost:
        weights = [(-1 if pair.less_is_better else 1) / len(used) for pair in used]
        parts = [drawn[pair.score] for pair in used]
        methods = {pair.method for pair in used}
        method = methods.pop() if len(methods) == 1 else "expanded percentile"
        ends = bootstrap.log_ratio(parts, weights, level=config.level, method=method)
        logs = [
            w * (math.log(part.now) - math.log(part.parent))
            for w, part in zip(weights, parts, strict=True)
        ]
        (found["value"],) = _ends(_safely(np.exp, [math.fsum(logs)])) or [None]
        found["interval"] = _ends(ends and _safely(np.exp, ends.ends))
        found["method"] = ends and ends.method
    return found | {"scores": scores, "left_out": left_out, "lost": lost}


def _is_primary(score: str, tasks: Mapping[str, Any]) -> bool:
    kind, _, rest = score.partition("/")
    name, _, metric = rest.rpartition("/")
    return kind != "task" or tasks[name].get("primary", metric) == metric


def _as_row(retention: Mapping[str, Any]) -> dict[str, Any]:
    """Retention as a gate sees it: a score whose parent has 1."""
    value, interval = retention["value"], retention["interval"]
    delta = None if value is None else value - 1
    ends = interval and [None if end is None else end - 1 for end in interval]
    return {
        "score": RETENTION,
        "less_is_better": False,
        "parent": 1.0,
        "now": value,
        "delta": delta,
        "interval": ends,
        "relative": delta,
        "relative_interval": ends,
        "unknown": "".join(f"; {score}: {why}" for score, why in retention["lost"].items()),
    }


def _judged(gate: Gate, row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("delta", "interval") if gate.of == "absolute" else ("relative", "relative_interval")
    change, ends = row[names[0]], row[names[1]]
    if gate.of == "relative" and _has_nothing_to_lose(row):
        change, ends = 0.0, [0.0, 0.0]
    elif not row["less_is_better"]:
        change = None if change is None else -change
        ends = ends and [None if end is None else -end for end in reversed(ends)]
    loss = {
        "estimate": change,
        "best_case": ends and ends[0],
        "worst_case": ends and ends[1],
    }[gate.must_hold_for]
    why = ""
    if loss is None and gate.must_hold_for == "best_case" and change is not None:
        loss = (
            change  # at best even less is lost: where a gain may be without bounds, it has no end
        )
        why = "" if loss <= gate.largest_loss else "at best it is not known"
    elif loss is None:
        why = "it is not known" + row.get("unknown", "")
    elif loss > gate.largest_loss:
        why = f"it is above {_amount(gate.largest_loss, gate.of)}"
    return {
        **dataclasses.asdict(gate),
        "score": row["score"],
        "loss": change,
        "interval": ends,
        "passed": not why,
        "why": why,
    }


def _has_nothing_to_lose(row: Mapping[str, Any]) -> bool:
    """Whether the parent has 0, of which there are no shares, and the model is not worse."""
    parent, now = row["parent"], row["now"]
    return parent == 0 and now is not None and (now == 0 or not row["less_is_better"])


def _amount(value: float | None, of: str) -> str:
    if value is None:
        return "?"
    return f"{value:.4g}" if of == "absolute" else f"{100 * value:.3g} %"


def failures(found: Mapping[str, Any]) -> list[str]:
    """A sentence for each gate that failed."""
    said = []
    for gate in found["gates"]:
        if gate["passed"]:
            continue
        low, high = gate["interval"] or (None, None)
        of = gate["of"]
        case = {"estimate": "", "best_case": ", at best", "worst_case": ", at worst"}
        said.append(
            f"gate {gate['scores']!r}: {gate['score']} lost {_amount(gate['loss'], of)}, "
            f"{100 * found['level']:g} % interval {_amount(low, of)} to {_amount(high, of)}"
            f"{case[gate['must_hold_for']]}: {gate['why'] or 'it holds'}"
        )
    return said


def table(found: Mapping[str, Any]) -> str:
    """score | parent | now | delta | interval | verdict, and retention, for the terminal."""
    lines = [("", "parent", "now", "delta", f"{100 * found['level']:g} % interval", "verdict")]
    broken = {gate["score"] for gate in found["gates"] if not gate["passed"]}
    for row in found["rows"]:
        verdict = row["verdict"] + (", GATE FAILED" if row["score"] in broken else "")
        numbers = (_number(row["parent"]), _number(row["now"]), _number(row["delta"], "+"))
        lines.append((row["score"], *numbers, interval_text(row["interval"], "+"), verdict))
    retention = found["retention"]
    verdict = "1 is nothing lost" + (", GATE FAILED" if RETENTION in broken else "")
    ends = interval_text(retention["interval"])
    lines.append((RETENTION, "1", _number(retention["value"]), "", ends, verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in (0, 5) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _number(value: float | None, sign: str = "") -> str:
    return "?" if value is None else f"{value:{sign}.4f}"


def interval_text(ends: Sequence[float | None] | None, sign: str = "") -> str:
    """`+0.0100 to +0.0200`; `?` where it is not known."""
    return "?" if ends is None else " to ".join(_number(end, sign) for end in ends)
