# SPDX-License-Identifier: Apache-2.0
"""Text sources: JSON lines and plain text. Lazy, streamed, in a fixed order, every drop counted."""

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Iterator

from midjax import files, types


class Tally:
    """What a source gave and what it dropped, by reason.

    Attributes:
      documents: given.
      dropped: reason -> records.
      examples: reason -> the first place.
      read_bytes: of its files, as they are stored.
    """

    def __init__(self) -> None:
        self.documents = self.read_bytes = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, str] = {}

    def reading(self) -> Callable[[int], None]:
        """To be told the position in the next file."""
        before = self.read_bytes

        def read(position: int) -> None:
            self.read_bytes = before + position

        return read

    def drop(self, reason: str, where: str) -> None:
        """Counts one dropped record and remembers the first place of each reason."""
        self.dropped[reason] += 1
        self.examples.setdefault(reason, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonLines:
    """One JSON object per line, in plain or gzip'd (`.gz`) files.

    Attributes:
      path: file or glob; files are read in sorted order.
      text_field: key of the text.
      id_field: key of the document's id; None numbers the lines (`file:line`).
      max_bad_lines: lines that are not an object with a string text are counted and skipped up
        to this many in all; one more is an error. Empty lines and empty texts count as well.
    """

    path: str
    text_field: str
    id_field: str | None
    max_bad_lines: int

    def __post_init__(self) -> None:
        if self.max_bad_lines < 0:
            raise ValueError(
                f"JsonLines.max_bad_lines must be 0 or more, got {self.max_bad_lines}."
            )

    def documents(self, source: str, tally: Tally) -> Iterator[types.Document]:
        """Streams the documents, counting drops in `tally`.

        Raises:
          FileNotFoundError: no file matches `path`.
          ValueError: more than `max_bad_lines` bad lines, or a damaged file.
        """
        for name in files.match(self.path):
            for number, line in enumerate(files.lines(name, tally.reading()), 1):
                where = f"{name}:{number}"
                record, reason = self._parse(line)
                if record is None:
                    tally.drop(reason, where)
                    self._check_budget(source, tally)
                    continue
                key = record.get(self.id_field) if self.id_field else None
                if self.id_field and not isinstance(key, str | int):
                    tally.drop("no id", where)
                    self._check_budget(source, tally)
                    continue
                meta = {
                    k: v for k, v in record.items() if k not in (self.text_field, self.id_field)
                }
                tally.documents += 1
                yield types.Document(
                    text=record[self.text_field],
                    id=str(key) if self.id_field else f"{os.path.basename(name)}:{number}",
                    source=source,
                    meta=meta,
                )

    def _parse(self, line: bytes) -> tuple[dict | None, str]:
        if not line.strip():
            return None, "empty line"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            return None, "not JSON"
        if not isinstance(record, dict):
            return None, "not an object"
        text = record.get(self.text_field)
        if not isinstance(text, str):
            return None, f"no string field {self.text_field!r}"
        if not text.strip():
            return None, "empty text"
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON may spell a lone surrogate, which no UTF-8 text holds
            return None, "lone surrogate"
        return record, ""

    def _check_budget(self, source: str, tally: Tally) -> None:
        bad = sum(tally.dropped.values())
        if bad > self.max_bad_lines:
            reasons = "; ".join(
                f"{count} x {reason} (first at {tally.examples[reason]})"
                for reason, count in tally.dropped.most_common()
            )
            raise ValueError(
                f"Source {source!r}: {bad} bad lines, and max_bad_lines allows "
                f"{self.max_bad_lines}: {reasons}. Mend the file, name the right text_field, or "
                "raise JsonLines.max_bad_lines."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainText:
    """Plain text files, one document per file or split at a separator line.

    Attributes:
      path: file or glob; files are read in sorted order.
      separator: a line that stands between documents (compared without surrounding blanks), such
        as `<|endoftext|>`; None takes each file as one document.
    """

    path: str
    separator: str | None

    def documents(self, source: str, tally: Tally) -> Iterator[types.Document]:
        """Streams the documents; empty ones are dropped and counted.

        Raises:
          FileNotFoundError: no file matches `path`.
          ValueError: a file is not UTF-8 or is damaged.
        """
        for name in files.match(self.path):
            for number, text in enumerate(self._texts(name, tally), 1):
                key = f"{os.path.basename(name)}:{number}"
                if not text.strip():
                    tally.drop("empty text", f"{name}, document {number}")
                    continue
                tally.documents += 1
                yield types.Document(text=text, id=key, source=source)

    def _texts(self, name: str, tally: Tally) -> Iterator[str]:
        held: list[str] = []
        for number, line in enumerate(files.lines(name, tally.reading()), 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{name}:{number} is not UTF-8: {error}") from error
            if self.separator is not None and text.strip() == self.separator.strip():
                yield "\n".join(held)
                held = []
            else:
                held.append(text)
        if held:
            yield "\n".join(held)
