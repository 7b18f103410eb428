# SPDX-License-Identifier: Apache-2.0
"""The long tasks on the page: their mean by length, and a table for each evaluation."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from midjax.report import figure, records

# What a cell of the table shows: name of a number, of its error and of its chance, and in words.
_FORMS = (
    ("score", "score_error", "chance", "found"),
    ("first", "first_error", "first_chance", "ranked first"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongTasks:
    """The long tasks of one column of the report.

    Attributes:
      label: of the column.
      source: token folder of the texts.
      samples: of each task at each length.
      lengths: in tokens, ascending.
      tasks: names, and last the mean.
      forms: in words, those that were asked.
      cells: (task, length) -> words for each form.
      means: form -> (length, mean score) in order; of lengths with a number.
      chances: form -> mean chance by length.
      threshold: for the effective length.
      effective: in words.
      inexact: prompts that are shorter than asked for.
      context: tokens that the model was trained on at once; None where that is not said.
    """

    label: str
    source: str
    samples: int
    lengths: list[int]
    tasks: list[str]
    forms: list[str]
    cells: dict[tuple[str, int], list[str]]
    means: dict[str, list[tuple[int, float]]]
    chances: dict[str, list[tuple[int, float]]]
    threshold: float
    effective: str
    inexact: int
    context: int | None


def read(columns: Sequence[records.Column]) -> list[LongTasks]:
    """The long tasks of the columns that have some."""
    found = []
    for column in columns:
        result = column.result.get("long_tasks")
        if result and result.get("cells"):
            found.append(_read(column, result))
    return found


def _read(column: records.Column, result: dict[str, Any]) -> LongTasks:
    cells, means = result["cells"], result["means"]
    forms = [form for form in _FORMS if any(form[0] in cell for cell in cells)]
    words = {
        (cell["task"], cell["row_tokens"]): [_words(cell, *form[:3]) for form in forms]
        for cell in cells
    }
    for mean in means:
        words["mean", mean["row_tokens"]] = [_words(mean, *form[:3]) for form in forms]
    return LongTasks(
        label=column.label,
        source=str(result.get("source")),
        samples=cells[0]["samples"],
        lengths=sorted({cell["row_tokens"] for cell in cells}),
        tasks=[*dict.fromkeys(cell["task"] for cell in cells), "mean"],
        forms=[form[3] for form in forms],
        cells=words,
        means={form[3]: _series(means, form[0]) for form in forms},
        chances={form[3]: _series(means, form[2]) for form in forms},
        threshold=records.number(result.get("threshold")),
        effective=_effective(result),
        inexact=sum(cell.get("inexact", 0) for cell in cells),
        context=column.result.get("context_tokens"),
    )


def _series(means: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    numbers = ((mean["row_tokens"], records.number(mean.get(name))) for mean in means)
    return sorted((length, value) for length, value in numbers if math.isfinite(value))


def _words(given: dict[str, Any], name: str, error: str, chance: str) -> str:
    """`75 ± 4 % (chance 10 %)`."""
    value, spread, odds = (records.number(given.get(key)) for key in (name, error, chance))
    if not math.isfinite(value):
        return "–"
    shown = f"{100 * value:.0f}"
    shown += f" ± {100 * spread:.0f} %" if math.isfinite(spread) else " %"
    return shown + (f" (chance {100 * odds:.1f} %)" if math.isfinite(odds) else "")


def _effective(result: dict[str, Any]) -> str:
    if not any("score" in mean for mean in result["means"]):
        return "not asked: nothing was written"
    tokens = result.get("effective_tokens")
    shortest = min(mean["row_tokens"] for mean in result["means"])
    return f"{tokens:,} tokens" if tokens else f"less than {shortest:,} tokens"


def plot(columns: Sequence[records.Column]) -> figure.Plot | None:
    """Mean over the tasks by length, a line for each column and form."""
    found = [one for one in read(columns) if any(one.means.values())]
    if not found:
        return None
    fig, axis = figure.new()
    said, drawn = [], 0
    for index, tasks in enumerate(found):
        for form, line in tasks.means.items():
            if not line:
                continue
            style = "-" if form == _FORMS[0][3] else "--"
            x, y = zip(*line, strict=True)
            axis.plot(
                x, [100 * value for value in y], label=f"{tasks.label}, {form}", linewidth=2,
                color=figure.color(index), linestyle=style, marker="o", markersize=4,
            )  # fmt: skip
            numbers = ", ".join(f"{100 * value:.0f} % at {at:,}" for at, value in line)
            said.append(f"{tasks.label}, {form}: {numbers}")
            drawn += 1
    threshold = found[0].threshold
    if any(_FORMS[0][3] in one.means for one in found) and math.isfinite(threshold):
        axis.axhline(100 * threshold, color=figure.MUTED, linestyle=":", linewidth=1)
    odds = [value for one in found for _, value in one.chances.get(_FORMS[1][3], [])]
    if odds:
        axis.axhline(100 * odds[0], color=figure.MUTED, linestyle="--", linewidth=1)
    lengths = sorted({length for one in found for length in one.lengths})
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=9)
    axis.minorticks_off()
    axis.set_ylim(-3, 103)
    axis.set_xlabel("tokens of prompt and answer", fontsize=10)
    axis.set_ylabel("mean over the tasks, %", fontsize=10)
    figure.legend(axis, min(drawn, 2))
    dotted = ""
    if math.isfinite(threshold):
        dotted = f" Dotted: the {100 * threshold:g} % that make a length effective."
    return figure.finish(
        fig,
        name="long",
        alt=f"Lines: long tasks by length. {'; '.join(said)}.",
        caption="Long tasks (RULER's, on held-out text): the share of what was asked for that "
        "the model writes (found), and how often it takes the right answer for likelier than its "
        f"decoys (ranked first; grey dashes are chance).{dotted}",
    )
