# SPDX-License-Identifier: Apache-2.0
"""The verb `report`: one self-contained HTML page, and the same table for the terminal."""

import dataclasses
import importlib.resources
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe
from rich import box as rich_box
from rich import console as rich_console
from rich import table as rich_table

from midjax import files
from midjax.report import (
    evaluations,
    figure,
    goodput_plot,
    long_plot,
    needle_plot,
    plots,
    records,
    summary,
    training,
)

TEMPLATE, STYLE = "template.html.j2", "style.css"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Which runs and results to put on the page.

    Attributes:
      title: of the page.
      output: path of the HTML file.
      runs: (label, run directory), in the order in which they ran.
      columns: (label, path of an eval result), the columns of the comparison.
      baseline: label of the column from before mid-training.
      control: label of the column that the mixture is judged against: the same tokens without it.
      result: label of the column from after mid-training.
      export: path of an export's result; None leaves it out.
      guard_domain: the domain that must not suffer.
      guard_percent: its bits per byte may rise by less than this against the control.
    """

    title: str
    output: str
    runs: tuple[tuple[str, str], ...]
    columns: tuple[tuple[str, str], ...]
    baseline: str
    control: str
    result: str
    export: str | None
    guard_domain: str
    guard_percent: float

    def __post_init__(self) -> None:
        for name in ("runs", "columns"):
            labels = [label for label, _ in getattr(self, name)]
            if not labels:
                raise ValueError(f"Report.{name} is empty. Give at least one (label, path).")
            if len(set(labels)) < len(labels):
                raise ValueError(f"Report.{name}: labels must differ, got {labels}.")
        labels = [label for label, _ in self.columns]
        for name in ("baseline", "control", "result"):
            if (label := getattr(self, name)) not in labels:
                raise ValueError(
                    f"Report.{name}={label!r} is not a label in Report.columns: {labels}."
                )
        if self.result in (self.control, self.baseline):
            raise ValueError(
                f"Report.result={self.result!r} is also the control or the baseline: there would "
                "be nothing to compare."
            )
        if not self.guard_percent > 0:
            raise ValueError(
                f"Report.guard_percent must be positive (5.0 is 5 %), got {self.guard_percent}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What a caller may want to act on.

    Attributes:
      path: of the page.
      bytes: its size.
      held: whether the guard domain rose by less than the limit; None when that is unknown.
      change_percent: change of bits per byte against the control by domain; None when unknown.
      trade: the same in words.
    """

    path: str
    bytes: int
    held: bool | None
    change_percent: dict[str, float | None]
    trade: tuple[str, ...]


def run(config: Report) -> ReportResult:
    """Writes the page.

    Raises:
      FileNotFoundError: an input is missing; says which command makes it.
      ValueError: an input is not what it should be.
    """
    columns, comparison = _comparison(config)
    runs = [records.read_run(label, folder) for label, folder in config.runs]
    export = records.read_export(config.export) if config.export else None
    page = _render(config, columns, comparison, runs, export)
    files.write_text(config.output, page)
    changes = {row.domain: row.against_control.percent for row in comparison.rows}
    return ReportResult(
        path=config.output,
        bytes=len(page.encode()),
        held=comparison.held,
        change_percent={k: v if math.isfinite(v) else None for k, v in changes.items()},
        trade=tuple(comparison.trade),
    )


def terminal_table(config: Report) -> str:
    """The comparison and the trade in words, plain text for a terminal or a Markdown file."""
    _, comparison = _comparison(config)
    table = rich_table.Table(
        title=None, caption=None, box=rich_box.MARKDOWN, pad_edge=True, show_edge=True
    )
    for index, heading in enumerate(_headings(comparison)):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for row in comparison.rows:
        table.add_row(row.domain, *_cells(comparison, row))
    stream = io.StringIO()
    console = rich_console.Console(file=stream, width=1000, color_system=None, highlight=False)
    console.print(table)
    lines = [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]
    said = [*comparison.trade, *(f"Note: {note}" for note in comparison.notes)]
    return "\n".join(["bits per byte of held-out text, lower is better", "", *lines, "", *said, ""])


def style() -> markupsafe.Markup:
    """The style sheet of every page."""
    return markupsafe.Markup(importlib.resources.files("midjax.report").joinpath(STYLE).read_text())


def _comparison(config: Report) -> tuple[list[records.Column], summary.Comparison]:
    columns = [records.read_column(label, path) for label, path in config.columns]
    return columns, summary.compare(
        columns,
        baseline=config.baseline,
        control=config.control,
        result=config.result,
        guard_domain=config.guard_domain,
        guard_percent=config.guard_percent,
    )


def _headings(comparison: summary.Comparison) -> list[str]:
    against = dict.fromkeys((comparison.control, comparison.baseline))
    return ["domain", *comparison.labels, *(f"{comparison.result} vs {a}" for a in against)]


def _cells(comparison: summary.Comparison, row: summary.Row) -> list[str]:
    changes = {
        comparison.control: row.against_control,
        comparison.baseline: row.against_baseline,
    }
    return [
        *(summary.bits(value) for value in row.values),
        *(summary.percent(c, error=True) for c in changes.values()),
    ]


def _render(
    config: Report,
    columns: Sequence[records.Column],
    comparison: summary.Comparison,
    runs: Sequence[records.Run],
    export: dict[str, Any] | None,
) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": summary.percent,
        "bits": summary.bits,
        "tokens": plots.describe_tokens,
        "count": lambda x: f"{x:,.0f}" if math.isfinite(x) else "–",
        "share": lambda x: f"{100 * x:.2f} %" if math.isfinite(x) else "–",
        "nats": lambda x: f"{x:.3f}" if math.isfinite(x) else "–",
        "points": _points,
        "epochs": lambda x: f"{x:.3f}" if math.isfinite(x) else "–",
        "svg": lambda plot: markupsafe.Markup(plot.svg),
    }
    source = importlib.resources.files("midjax.report").joinpath(TEMPLATE).read_text()
    sources = sorted({name for run in runs for name in run.sources})
    colors = {name: index for index, name in enumerate(sources)}
    return environment.from_string(source).render(
        style=style(),
        config=config,
        comparison=comparison,
        headings=_headings(comparison),
        table=[(row, _cells(comparison, row)) for row in comparison.rows],
        columns=columns,
        change_plot=plots.changes(comparison),
        position_plot=plots.by_position(columns),
        needle_plots=needle_plot.plots(columns),
        needles=needle_plot.read(columns),
        long_task_plot=long_plot.plot(columns),
        long_tasks=long_plot.read(columns),
        positions=[c for c in columns if c.result.get("by_position")],
        rate_plot=plots.learning_rates(runs),
        goodput_plot=goodput_plot.plot(runs),
        runs=[_run_view(index, run, colors) for index, run in enumerate(runs)],
        events=[row for run in runs for row in training.event_rows(run)],
        samples=_samples(columns),
        export=_export_rows(export) if export is not None else None,
        export_sentence=_export_sentence(export or {}),
        series=figure.SERIES,
    )


def _points(difference: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * difference:+.2f} points".replace("-", "−") if math.isfinite(difference) else "–"


def _run_view(index: int, run: records.Run, colors: dict[str, int]) -> dict[str, Any]:
    return {
        "label": run.label,
        "folder": run.folder,
        "overview": training.overview(run),
        "stages": training.stages(run),
        "totals": training.totals(run),
        "sources": run.sources,
        "config": run.config,
        "loss_plot": plots.losses(run, colors, f"loss{index}"),
        "mixture_plot": plots.mixture(run, colors, f"mixture{index}"),
        "evals_plot": evaluations.plot(run, f"evals{index}"),
        "against": evaluations.tables(run),
    }


def _samples(columns: Sequence[records.Column]) -> list[dict[str, Any]]:
    """Prompts in order of first appearance, each with a continuation per column (None: none)."""
    by_column = [
        {str(s.get("prompt")): s.get("continuation") for s in c.result.get("samples") or []}
        for c in columns
    ]
    prompts = dict.fromkeys(prompt for found in by_column for prompt in found)
    return [
        {
            "prompt": prompt,
            "continuations": [
                (column.label, found.get(prompt))
                for column, found in zip(columns, by_column, strict=True)
            ],
        }
        for prompt in prompts
    ]


def _export_sentence(result: dict[str, Any]) -> str:
    difference = records.number(result.get("max_difference"))
    if "compared_with" not in result:
        return ""
    if not math.isfinite(difference):
        return f"Loaded back with {result['compared_with']}: the logits could not be compared."
    return (
        f"Loaded back with {result['compared_with']} and run on "
        f"{result.get('compared_tokens', 'some')} tokens of text: no logit differs from ours by "
        f"more than {difference:.2g}."
    )


def _export_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The export's result as it is: key with spaces, value in JSON where it isn't text."""
    return [
        (
            key.replace("_", " "),
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        )
        for key, value in result.items()
    ]
