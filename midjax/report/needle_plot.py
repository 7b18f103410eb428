# SPDX-License-Identifier: Apache-2.0
"""The needle test on the page: for each evaluation a field of lengths and depths."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from midjax.report import figure, records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One length and depth; NaN where a number is not known.

    Attributes:
      accuracy: share of keys that were found.
      saved: nats per token of the key that the statement saves, with its standard error.
      with_statement, without: nats per token of the key.
    """

    accuracy: float
    saved: float
    error: float
    with_statement: float
    without: float

    @property
    def share(self) -> str:
        """`75 %`."""
        return f"{100 * self.accuracy:.0f} %" if math.isfinite(self.accuracy) else "–"

    @property
    def nats(self) -> str:
        """`+0.25`, `−0.10`."""
        return f"{self.saved:+.2f}".replace("-", "−") if math.isfinite(self.saved) else "–"

    @property
    def nats_with_error(self) -> str:
        """`+0.25 ± 0.02`."""
        return self.nats + (f" ± {self.error:.2f}" if math.isfinite(self.error) else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles:
    """The needle test of one column of the report.

    Attributes:
      label: of the column.
      source: token folder of the haystacks.
      per_cell: keys per cell.
      lengths: of rows, in tokens, ascending.
      depths: ascending.
      cells: (length, depth) -> numbers.
      context: tokens that the model was trained on at once; None where that is not said.
    """

    label: str
    source: str
    per_cell: int
    lengths: list[int]
    depths: list[float]
    cells: dict[tuple[int, float], Cell]
    context: int | None


def read(columns: Sequence[records.Column]) -> list[Needles]:
    """The needle tests of the columns that have one."""
    found = []
    for column in columns:
        result = column.result.get("needle")
        if not result or not result.get("cells"):
            continue
        cells = {(c["row_tokens"], c["depth"]): _cell(c) for c in result["cells"]}
        found.append(
            Needles(
                label=column.label,
                source=str(result.get("source")),
                per_cell=result.get("per_cell"),
                lengths=sorted({length for length, _ in cells}),
                depths=sorted({depth for _, depth in cells}),
                cells=cells,
                context=column.result.get("context_tokens"),
            )
        )
    return found


def _cell(given: dict[str, Any]) -> Cell:
    nats, without = (records.number(given.get(k)) for k in ("nats_per_token", "nats_without"))
    return Cell(
        accuracy=records.number(given.get("accuracy")),
        saved=without - nats,
        error=records.number(given.get("saved_error")),
        with_statement=nats,
        without=without,
    )


def plots(columns: Sequence[records.Column]) -> list[figure.Plot]:
    """A field per column that has a needle test, shaded alike: by the nats that are saved."""
    found = read(columns)
    saved = [cell.saved for needles in found for cell in needles.cells.values()]
    most = max((value for value in saved if math.isfinite(value)), default=0.0)
    return [_plot(needles, most, f"needle{i}") for i, needles in enumerate(found)]


def _plot(needles: Needles, most: float, name: str) -> figure.Plot:
    from matplotlib import patches

    fig, axis = figure.new(height=1.1 + 0.42 * len(needles.depths))
    said = []
    # Beside each other there is room for four columns of numbers.
    between, size = ("  ", 10) if len(needles.lengths) <= 4 else ("\n", 8)
    for x, length in enumerate(needles.lengths):
        for y, depth in enumerate(needles.depths):
            cell = needles.cells.get((length, depth))
            if cell is None:
                continue
            shade = min(max(cell.saved / most, 0.0), 1.0) if most > 0 else 0.0
            # Pale enough for the text on it, in a light and in a dark page.
            alpha = 0.45 * shade if math.isfinite(shade) else 0.0
            box = patches.Rectangle(
                (x - 0.48, y - 0.46), 0.96, 0.92, facecolor=figure.color(2), alpha=alpha,
                linewidth=0,
            )  # fmt: skip
            axis.add_patch(box)
            axis.text(
                x, y, f"{cell.share}{between}{cell.nats}", ha="center", va="center", fontsize=size,
                color=figure.FOREGROUND,
            )  # fmt: skip
            said.append(f"{length:,} at {depth:g}: {cell.share}, {cell.nats}")
    beyond = [x for x, n in enumerate(needles.lengths) if needles.context and n > needles.context]
    if beyond:
        axis.axvline(beyond[0] - 0.5, color=figure.MUTED, linestyle="--", linewidth=1)
    axis.set_xlim(-0.5, len(needles.lengths) - 0.5)
    axis.set_ylim(len(needles.depths) - 0.5, -0.5)
    axis.set_xticks(range(len(needles.lengths)), [f"{n:,}" for n in needles.lengths])
    axis.set_yticks(range(len(needles.depths)), [f"{depth:g}" for depth in needles.depths])
    axis.grid(False)
    axis.set_xlabel("tokens of the row", fontsize=10)
    axis.set_ylabel("depth of the key", fontsize=10)
    dashed = " Right of the dashed line rows are longer than its context." if beyond else ""
    return figure.finish(
        fig,
        name=name,
        alt=f"Field: needle test of {needles.label}, keys found and nats saved. {'; '.join(said)}.",
        caption=f"Needle test, {needles.label}: share of {needles.per_cell} pass keys found, and "
        "the nats per token of the key that the line with the key saves. Depth 0 is the start of "
        f"the row.{dashed}",
    )
