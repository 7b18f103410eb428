# SPDX-License-Identifier: Apache-2.0
"""What an order draws, by stage and source: the printed plan, which is counted, not estimated."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from midjax import units
from midjax.mixture import order as order_lib

BEFORE = "(drawn before)"
_HEAD = ("stage", "source", "asked", "in force", "tokens", "epochs", "repeats")


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
    """The plan for people: a line for each stage and source, one for each source's total."""
    found = rows(order)
    total = max(sum(row.tokens for row in found), 1)
    lines = [_HEAD, *(_cells(row, f"{row.asked:.2%}", f"{row.share:.2%}") for row in found)]
    sums = totals(order)
    lines += [_cells(row, "", f"{row.tokens / total:.2%}") for row in sums]
    tokens, repeats = sum(row.tokens for row in sums), sum(row.repeats for row in sums)
    lines.append(("total", "", "", "", units.human(tokens), "", units.human(repeats)))
    return _aligned(lines)


def totals(order: order_lib.Order) -> list[PlanRow]:
    """The plan of the whole run by source; `stage` is "total"."""
    done = order.counts(order.total_rows)
    shares = done / max(done.sum(), 1)
    return _rows(order, "total", shares, shares, np.zeros_like(done), done)


def _cells(row: PlanRow, asked: str, share: str) -> tuple[str, ...]:
    repeats = units.human(row.repeats) if row.repeats else "-"
    tokens = units.human(row.tokens)
    return row.stage, row.source, asked, share, tokens, f"{row.epochs:.2f}", repeats


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    placed = [
        f"{cell:<{width}}" if i < 2 else f"{cell:>{width}}"
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(placed).rstrip()
