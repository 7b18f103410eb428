# SPDX-License-Identifier: Apache-2.0
"""Text sources: JSON lines and plain text, `.gz` and `.zst` as well. Lazy, streamed, in a fixed
order, every drop counted."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from midjax import files
from midjax.corpora import reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonLines(reading.Reader):
    """One JSON object per line.

    Attributes:
      path: file or glob, in UTF-8, plain or compressed (`.gz`, `.zst`); read in sorted order.
    """

    path: str

    def units(self) -> list[reading.Unit]:
        """Files; plain ones above 64 MB in ranges that end at line ends."""
        return list(_units(self.path, cut=True))

    def records(self, unit: reading.Unit, read: Callable[[int], None]) -> Iterator[reading.Found]:
        """A record per line."""
        place = unit.payload
        for line in files.lines(place["file"], read, place["begin"], place["end"]):
            record, reason = (
                reading.parse_object(line.data) if line.data is not None else (None, line.reason)
            )
            yield reading.Found(
                where=_where(place, f"line {line.number}"),
                key=f"{unit.key}:{line.number}",
                record=record,
                reason=reason,
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainText(reading.Reader):
    """Plain text files, one document per file or split at a separator line. A record has the one
    field `text`.

    Attributes:
      path: file or glob, in UTF-8, plain or compressed (`.gz`, `.zst`); read in sorted order.
      separator: a line that stands between documents (compared without surrounding blanks), such
        as `<|endoftext|>`; None takes each file as one document, whatever its length.
    """

    path: str
    separator: str | None
    id_field: None = None  # there are no fields

    def units(self) -> list[reading.Unit]:
        """Whole files: where documents end is not known before they are read."""
        return list(_units(self.path, cut=False))

    def records(self, unit: reading.Unit, read: Callable[[int], None]) -> Iterator[reading.Found]:
        """A record per file or per part between separators. One bad line drops its document."""
        held: list[str] = []
        reason, number, size = "", 1, 0
        place = unit.payload
        separator = None if self.separator is None else self.separator.strip()

        def found() -> reading.Found:
            return reading.Found(
                where=_where(place, f"document {number}"),
                key=f"{unit.key}:{number}",
                record=None if reason else {"text": "\n".join(held)},
                reason=reason,
            )

        for line in files.lines(place["file"], read, 0, None):
            text, bad = _decoded(line)
            if separator is not None and text.strip() == separator and not bad:
                yield found()
                held, reason, size = [], "", 0
                number += 1
                continue
            reason = reason or bad
            size += len(text) + 1
            if size > files.MAX_LINE_BYTES:
                reason = reason or f"longer than {files.MAX_LINE_BYTES} bytes"
            if reason:
                held = []  # not kept in memory: the document is dropped anyway
            else:
                held.append(text)
        if held or reason or (number == 1 and not size):  # an empty file is dropped, and counted
            yield found()


def _decoded(line: files.Line) -> tuple[str, str]:
    if line.data is None:
        return "", line.reason
    try:
        return line.data.decode(), ""
    except UnicodeDecodeError:
        return "", "invalid UTF-8"


def _where(place: Mapping[str, Any], what: str) -> str:
    begin = f" from byte {place['begin']} on" if place["begin"] else ""
    return f"{place['file']}, {what}{begin}"


def _units(pattern: str, *, cut: bool) -> Iterator[reading.Unit]:
    for name, short in files.match_with_names(pattern):
        size = files.size(name)
        ranges: list[tuple[int, int | None]] = [(0, None)]
        if cut and size > reading.CUT_BYTES and not files.is_compressed(name):
            ranges = list(files.cut_at_lines(name, reading.CUT_BYTES))
        for begin, end in ranges:
            yield reading.Unit(
                key=f"{short}@{begin}" if begin else short,
                size_bytes=(size if end is None else end) - begin,
                payload={"file": name, "begin": begin, "end": end},
                pieces=[(name, begin, end)],
            )
