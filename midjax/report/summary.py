# SPDX-License-Identifier: Apache-2.0
"""The comparison that a mixture is judged by: each domain's bits per byte against the control."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from midjax.report import records

# A standard error from fewer groups of documents than this is not shown.
MIN_BLOCKS = 8
# A change of less than this many standard errors is called "no clear change".
CLEAR_ERRORS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """Relative change between two columns, in percent; both NaN when unknown."""

    percent: float
    error: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.percent)

    @property
    def clear(self) -> bool:
        """Known, and not within the noise of the held-out text (when that is known)."""
        noise = CLEAR_ERRORS * self.error if math.isfinite(self.error) else 0.0
        return self.known and abs(self.percent) > noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One domain: a value per column, and the result's change against baseline and control."""

    domain: str
    values: list[float]
    against_baseline: Change
    against_control: Change
    size: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything the head of the report says.

    Attributes:
      labels: of the columns.
      rows: the guard domain last, others by name.
      held: whether the guard domain rose by less than the limit; None when that is unknown.
      trade: sentences: what was bought, what it cost, the guard.
      notes: why numbers may not be comparable.
    """

    labels: list[str]
    baseline: str
    control: str
    result: str
    guard_domain: str
    guard_percent: float
    rows: list[Row]
    held: bool | None
    trade: list[str]
    notes: list[str]


def compare(
    columns: Sequence[records.Column],
    *,
    baseline: str,
    control: str,
    result: str,
    guard_domain: str,
    guard_percent: float,
) -> Comparison:
    """Compares the columns labelled `baseline`, `control` and `result` in every domain.

    Raises:
      ValueError: no column has the guard domain.
    """
    by_label = {column.label: column for column in columns}
    domains = sorted({d for c in columns for d in c.result["domains"]})
    if guard_domain not in domains:
        raise ValueError(
            f"Report.guard_domain={guard_domain!r} is in no column; the columns have {domains}."
        )
    rows = [
        Row(
            domain=domain,
            values=[c.value(domain, "bits_per_byte") for c in columns],
            against_baseline=change(by_label[result], by_label[baseline], domain),
            against_control=change(by_label[result], by_label[control], domain),
            size={k: by_label[result].value(domain, k) for k in ("bytes", "tokens", "documents")},
        )
        for domain in sorted(domains, key=lambda d: (d == guard_domain, d))
    ]
    guard = rows[-1].against_control
    held = guard.percent < guard_percent if guard.known else None
    return Comparison(
        labels=[c.label for c in columns],
        baseline=baseline,
        control=control,
        result=result,
        guard_domain=guard_domain,
        guard_percent=guard_percent,
        rows=rows,
        held=held,
        trade=_trade(rows, control, result, guard_domain, guard_percent, held),
        notes=_notes(columns, domains),
    )


def change(result: records.Column, reference: records.Column, domain: str) -> Change:
    """100 * (result / reference - 1) of bits per byte, and its standard error in points.

    The error is a delete-one jackknife over groups of documents that both columns have. Documents
    are paired, so what is hard for both models cancels. It covers the choice of held-out text; it
    does not cover what another seed of the training would change.
    """
    new, old = (c.value(domain, "bits_per_byte") for c in (result, reference))
    percent = 100 * (new / old - 1) if old else math.nan
    return Change(
        percent=percent,
        error=_jackknife(_block_nats(result, domain), _block_nats(reference, domain)),
    )


def _block_nats(column: records.Column, domain: str) -> list[tuple[float, float]]:
    blocks = column.result["domains"].get(domain, {}).get("blocks") or []
    return [(records.number(b.get("nats")), records.number(b.get("bytes"))) for b in blocks]


def _jackknife(new: list[tuple[float, float]], old: list[tuple[float, float]]) -> float:
    """Standard error of 100 * (sum of new nats / sum of old nats - 1) over blocks of equal text."""
    count = len(new)
    if count < MIN_BLOCKS or [b for _, b in new] != [b for _, b in old]:
        return math.nan
    total_new, total_old = sum(n for n, _ in new), sum(n for n, _ in old)
    left_out = [
        100 * ((total_new - n) / (total_old - o) - 1)
        for (n, _), (o, _) in zip(new, old, strict=True)
    ]
    mean = sum(left_out) / count
    return math.sqrt((count - 1) / count * sum((x - mean) ** 2 for x in left_out))


def percent(change: Change, *, signed: bool = True, error: bool = False) -> str:
    """`+1.25 %`, `−3.1 %`; a dash when unknown. Never rounds a change to a zero it is not."""
    if not change.known:
        return "–"
    places = 2 if abs(change.percent) < 10 else 1
    text = f"{abs(change.percent):.{places}f}"
    sign = "" if not signed or not float(text) else "+" if change.percent > 0 else "−"
    spread = f" ± {change.error:.{places}f}" if error and math.isfinite(change.error) else ""
    return f"{sign}{text}{spread} %"


def bits(value: float) -> str:
    """Bits per byte to four digits after the point; a dash when unknown."""
    return f"{value:.4f}" if math.isfinite(value) else "–"


def _trade(
    rows: list[Row],
    control: str,
    result: str,
    guard_domain: str,
    guard_percent: float,
    held: bool | None,
) -> list[str]:
    known = [row for row in rows if row.against_control.known]
    clear = [row for row in known if row.against_control.clear]
    better = [row for row in clear if row.against_control.percent < 0]
    worse = [row for row in clear if row.against_control.percent > 0]
    same = [row.domain for row in known if row not in clear]
    said = [
        f"Bought: against {control}, {result} needs {_list(better, 'fewer')}."
        if better
        else f"Bought: nothing clear. {result} is better than {control} in no domain.",
        f"Paid: it needs {_list(worse, 'more')}."
        if worse
        else f"Paid: nothing clear. {result} is worse than {control} in no domain.",
    ]
    if same:
        said.append(f"No clear change (within twice the standard error): {_and(same)}.")
    if unknown := [row.domain for row in rows if row not in known]:
        said.append(f"Not known, for want of a number in {control} or {result}: {_and(unknown)}.")
    guard = rows[-1].against_control
    limit = f"{guard_percent:g} %"
    if held is None:
        said.append(f"Guard: whether {guard_domain} rose by less than {limit} is not known.")
        return said
    rose = "rose" if guard.percent > 0 else "fell" if guard.percent < 0 else "changed"
    moved = f"{guard_domain} {rose} by {percent(guard, signed=False)} against {control}"
    if held:
        said.append(f"Guard: {moved}; the limit is a rise of less than {limit}. It holds.")
    else:
        said.append(f"Guard: {moved}, which is not less than the limit of {limit}. It is broken.")
    return said


def _list(rows: list[Row], word: str) -> str:
    ordered = sorted(rows, key=lambda row: -abs(row.against_control.percent))
    parts = [f"{percent(row.against_control, signed=False)} on {row.domain}" for row in ordered]
    return _and([parts[0].replace(" on ", f" {word} bits per byte on ", 1), *parts[1:]])


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _notes(columns: Sequence[records.Column], domains: list[str]) -> list[str]:
    """Differences between columns that make their numbers incomparable."""
    notes = []
    for domain in domains:
        having = [c for c in columns if domain in c.result["domains"]]
        if lacking := [c.label for c in columns if c not in having]:
            notes.append(f"{domain} was not measured for {_and(lacking)}.")
        seen: list[Any] = [
            (c.value(domain, "bytes"), c.result["domains"][domain].get("content_hash"))
            for c in having
        ]
        if len(set(seen)) > 1:
            notes.append(
                f"{domain}: the columns were scored on different held-out text. "
                "Their numbers can't be compared; run `midjax eval` again on one set."
            )
        if broken := [c.label for c in having if math.isnan(c.value(domain, "bits_per_byte"))]:
            notes.append(f"{domain}: the loss of {_and(broken)} is not a finite number.")
    if len({c.result.get("row_tokens") for c in columns}) > 1:
        given = ", ".join(f"{c.label} {c.result.get('row_tokens')}" for c in columns)
        notes.append(
            f"Eval.row_tokens differs ({given}): a model that sees more text at once scores better "
            "for that alone."
        )
    if len({c.result.get("tokenizer_hash") for c in columns}) > 1:
        notes.append("The columns use different tokenizers: compare bits per byte, not nats.")
    return notes
