# SPDX-License-Identifier: Apache-2.0
"""What an order draws, by stage and source: the printed plan, which is counted, not estimated."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from midjax import units
from midjax.mixture import order as order_lib

BEFORE = "(drawn before)"
_HEAD = ("stage", "source", "asked", "in force", "tokens", "epochs", "cap", "repeats")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRow:
    """What one stage draws from one source.

    Attributes:
      stage: name; `BEFORE` for rows of the run that an earlier mixture drew.
      source: name.
      asked: share of tokens that the weights ask for, after the stage's ramp.
      share: share in force after the ramp: rounded to blocks, shifted by caps.
      rows, tokens: drawn, padding included.
      epochs: rows drawn, in epochs of the source.
      repeats: tokens of it that were read before, by this run or those whose place it keeps.
    """

    stage: str
    source: str
    asked: float
    share: float
    rows: int
    tokens: int
    epochs: float
    repeats: int


def rows(order: order_lib.Order) -> list[PlanRow]:
    """What each stage of the whole run draws from each source; the tokens are those of the run.

    Of a mixture that came in at a resume, only the stages that it still reaches.
    """
    found = []
    if order.first_row:
        drawn = order.counts(order.first_row)
        shares = drawn / max(drawn.sum(), 1)
        found += _rows(order, BEFORE, shares, shares, np.zeros_like(drawn), drawn)
    for index, stage in enumerate(order.stages):
        begin, end = max(stage.begin, order.first_row), min(stage.end, order.total_rows)
        if begin < end:
            found += _rows(
                order,
                stage.name,
                stage.shares,
                order.stage_shares(index),
                order.counts(begin),
                order.counts(end),
            )
    return found


def _rows(
    order: order_lib.Order,
    stage: str,
    asked: np.ndarray,
    shares: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> list[PlanRow]:
    drawn = after - before
    read = np.maximum(order.base + np.stack([before, after]) - order.source_rows, 0)
    return [
        PlanRow(
            stage=stage,
            source=name,
            asked=float(asked[k]),
            share=float(shares[k]),
            rows=int(drawn[k]),
            tokens=int(drawn[k]) * order.row_tokens,
            epochs=float(drawn[k] / order.source_rows[k]),
            repeats=int(read[1, k] - read[0, k]) * order.row_tokens,
        )
        for k, name in enumerate(order.names)
    ]


def table(order: order_lib.Order) -> str:
    """The plan for people: the stages, a line for each stage and source, the run by source."""
    found, sums = rows(order), totals(order)
    caps = order.mixture.max_epochs
    lines: list[tuple[str, ...]] = [_HEAD]
    lines += [_cells(row, f"{row.asked:.2%}", "") for row in found]
    lines += [_cells(row, "", f"{caps[row.source]:g}") for row in sums]
    tokens, repeats = sum(row.tokens for row in sums), sum(row.repeats for row in sums)
    left_out = {n: r for n, r in order.past.drawn.items() if r and n not in order.names}
    for name, drawn in left_out.items():
        gone = drawn * order.row_tokens
        tokens += gone
        lines.append((BEFORE, name, "", "left out", f"{gone:,}", "", "", ""))
    lines.append(("total", "", "", "", f"{tokens:,}", "", "", f"{repeats:,}" if repeats else "-"))
    return "\n".join([*_stage_lines(order), "", *_aligned(lines)])


def totals(order: order_lib.Order) -> list[PlanRow]:
    """The plan of the whole run by source; `stage` is "total"."""
    done = order.counts(order.total_rows)
    shares = done / max(done.sum(), 1)
    return _rows(order, "total", shares, shares, np.zeros_like(done), done)


def _stage_lines(order: order_lib.Order) -> list[str]:
    """Where each stage begins and ends."""
    found = []
    if order.first_row:
        before = units.human(order.first_row * order.row_tokens)
        found.append(f"{BEFORE}: the run's first {before} tokens, under an earlier mixture")
    for stage in order.stages:
        begin, end = (units.human(r * order.row_tokens) for r in (stage.begin, stage.end))
        ramp = stage.ramp_blocks * order.mixture.block_rows * order.row_tokens
        found.append(
            f"{stage.name}: from {begin} to {end} tokens"
            + (f", the first {units.human(ramp)} a ramp" if ramp else "")
            + (", over before" if stage.end <= order.first_row else "")
        )
    return found


def _cells(row: PlanRow, asked: str, cap: str) -> tuple[str, ...]:
    repeats = f"{row.repeats:,}" if row.repeats else "-"
    share, epochs = f"{row.share:.2%}", f"{row.epochs:.2f}"
    return row.stage, row.source, asked, share, f"{row.tokens:,}", epochs, cap, repeats


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Names to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    return [
        "  ".join(
            f"{cell:<{width}}" if i < 2 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
