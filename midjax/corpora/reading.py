# SPDX-License-Identifier: Apache-2.0
"""What every reader shares: units of work, the count of drops, records -> documents.

    reader.units() -> [Unit]        each can be read alone, by any process, at any time
    reader.documents(source, unit, tally, facts) -> Document stream, drops counted in the tally

A reader gives records (mappings of fields); its `format` makes the text of each, and says which
characters bear loss.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from midjax import files, types
from midjax.corpora import chat, fim, formats

# What a reader's `format` may be.
Format = formats.Text | formats.Template | formats.QuestionAnswer | chat.Chat | fim.FillInTheMiddle
# A larger input is cut into units of about this size, where its kind allows it.
CUT_BYTES = 64 * 1024 * 1024
# Of a drop's place, in a tally.
_WHERE_CHARACTERS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of a source that one process reads from its beginning to its end.

    Attributes:
      key: stable name, unique in the source: `part-3.jsonl`, or `part-3.jsonl@67108864` where a
        file is cut.
      size_bytes: of its input, about, as it is stored: for progress and for balance.
      payload: what the reader needs to find it, as plain JSON.
      pieces: (file, begin, end) byte ranges that its documents depend on; end None is the file's.
    """

    key: str
    size_bytes: int
    payload: Mapping[str, Any]
    pieces: Sequence[tuple[str, int, int | None]]

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content of its pieces: another one means that the input changed.

        Reads every byte. Names are not part of it, so that a folder may be moved.

        Raises:
          FileNotFoundError: a file is gone.
        """
        digest = hashlib.sha256()
        for name, begin, end in self.pieces:
            digest.update(_digest(name, begin, end))
        return digest.hexdigest()


def _digest(name: str, begin: int, end: int | None) -> bytes:
    whole = begin == 0 and end is None
    if whole and "://" not in name and (status := os.stat(name)).st_size > CUT_BYTES:
        # All the units of a file that is cut by index depend on all of its bytes.
        return _digest_of_large_file(name, status.st_size, status.st_mtime_ns)
    digest = hashlib.sha256()
    files.hash_range(digest, name, begin, end)
    return digest.digest()


@functools.lru_cache(maxsize=1024)
def _digest_of_large_file(name: str, size: int, mtime_ns: int) -> bytes:
    return bytes.fromhex(files.sha256_of(name))


class Tally:
    """What was given and what was dropped, by reason, of a unit or of a whole source.

    Attributes:
      documents: given.
      dropped: reason -> records.
      examples: reason -> the first place.
      read_bytes: of the input, as it is stored.
    """

    def __init__(self) -> None:
        self.documents = self.read_bytes = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, str] = {}

    def reading(self) -> Callable[[int], None]:
        """To be told how many bytes of the next unit are read."""
        before = self.read_bytes

        def read(position: int) -> None:
            self.read_bytes = before + position

        return read

    def drop(self, reason: str, where: str) -> None:
        """Counts one dropped record and remembers the first place of each reason."""
        self.dropped[reason] += 1
        self.examples.setdefault(reason, where[:_WHERE_CHARACTERS])

    def add(self, other: "Tally") -> None:
        """Takes in the tally of the unit that comes after what was counted here."""
        self.documents += other.documents
        self.read_bytes += other.read_bytes
        self.dropped.update(other.dropped)
        for reason, where in other.examples.items():
            self.examples.setdefault(reason, where)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON that `from_json` reads."""
        return {
            "documents": self.documents,
            "read_bytes": self.read_bytes,
            "dropped": dict(self.dropped),
            "examples": dict(self.examples),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Tally":
        """The tally that gave this JSON."""
        tally = cls()
        tally.documents, tally.read_bytes = data["documents"], data["read_bytes"]
        tally.dropped.update(data["dropped"])
        tally.examples.update(data["examples"])
        return tally


def check_budget(source: str, tally: Tally, max_bad_records: int) -> None:
    """Refuses a source, or a part of it, that dropped more than is allowed.

    Raises:
      ValueError: more than `max_bad_records` were dropped; says how many, why, and where first.
    """
    bad = sum(tally.dropped.values())
    if bad > max_bad_records:
        reasons = "; ".join(
            f"{count} x {reason} (first at {tally.examples[reason]})"
            for reason, count in tally.dropped.most_common()
        )
        raise ValueError(
            f"Source {source!r}: {bad} bad records, and max_bad_records allows {max_bad_records}: "
            f"{reasons}. Mend the input, name the right fields, or raise max_bad_records."
        )


class Found(NamedTuple):
    """What a reader found at one place.

    Attributes:
      where: the place, for people: file and line, or file and row.
      key: `file:number`: unique in the source and the same in every run.
      record: its fields; None where it could not be read, for the `reason`.
      reason: why not.
    """

    where: str
    key: str
    record: Mapping[str, Any] | None
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """The fields and the loop that all readers of records have in common.

    Attributes:
      format: how a record becomes text, and which of its characters bear loss.
      id_field: field of the document's id (a string or an integer, unique in the source); None
        numbers the records: `file:number`, the file relative to the fixed part of the path.
      max_bad_records: records that give no document (unreadable, without the fields, empty, refused
        by the format) are counted by reason and skipped, up to this many in the whole source; one
        more is an error.
    """

    format: Format
    id_field: str | None
    max_bad_records: int
    tokenized: ClassVar[bool] = False  # whether it gives `TokenDocument`s

    def __post_init__(self) -> None:
        if self.max_bad_records < 0:
            raise ValueError(
                f"{type(self).__name__}.max_bad_records must be 0 or more, "
                f"got {self.max_bad_records}."
            )

    def units(self) -> list[Unit]:
        """The source in parts, in a fixed order.

        Raises:
          FileNotFoundError: there is no such source.
          ValueError: it is not of this reader's kind.
        """
        raise NotImplementedError

    def records(self, unit: Unit, read: Callable[[int], None]) -> Iterator[Found]:
        """Streams what a unit holds. `read` is told how many of its bytes are read."""
        raise NotImplementedError

    def documents(
        self, source: str, unit: Unit, tally: Tally, facts: formats.TokenizerFacts
    ) -> Iterator[types.Document]:
        """Streams the documents of one unit, in bounded memory, counting drops in `tally`.

        Args:
          source: its name, which the documents carry.
          unit: one of `units()`.
          tally: of this unit or of all so far; the budget is checked against it at each drop.
          facts: of the tokenizer that will read the texts.

        Raises:
          ValueError: more than `max_bad_records` drops in the tally; damaged input; a format that
            this tokenizer cannot serve.
        """
        render = self.format.open(facts)
        used = self.format.fields()
        for found in self.records(unit, tally.reading()):
            try:
                document = self._document(source, found, render, used)
            except formats.Drop as drop:
                detail = f" ({drop.detail})" if drop.detail else ""
                tally.drop(drop.reason, found.where + detail)
                check_budget(source, tally, self.max_bad_records)
            else:
                tally.documents += 1
                yield document

    def columns_of(
        self, name: str, there: Sequence[str], wanted: Sequence[str] | None
    ) -> list[str]:
        """Columns of a table to read: what the text and the id are made of, and `wanted`.

        Raises:
          ValueError: the table `name` has none of those that the text is made of, or not another.
        """
        used = self.format.fields()
        if not used & set(there):
            raise ValueError(
                f"{name} has no column {' or '.join(map(repr, sorted(used)))}; it has {there}. "
                "Name the right fields, or leave this file out of the path."
            )
        others = {*(wanted or ()), *([] if self.id_field is None else [self.id_field])}
        if missing := sorted(others - set(there)):
            raise ValueError(f"{name} has no column {missing[0]!r}; it has {there}.")
        return [column for column in there if wanted is None or column in used | others]

    def _document(
        self, source: str, found: Found, render: formats.Render, used: frozenset[str]
    ) -> types.Document:
        record = found.record
        if record is None:
            raise formats.Drop(found.reason)
        key = found.key
        if self.id_field is not None:
            given = plain(record.get(self.id_field))
            if isinstance(given, bool) or not isinstance(given, str | int):
                raise formats.Drop("no id")
            key = str(given)
        text = render(record, key)
        if not text.text.strip():
            raise formats.Drop("empty text")
        if len(text.text) > files.MAX_LINE_BYTES:
            raise formats.Drop(f"longer than {files.MAX_LINE_BYTES} bytes")
        try:
            text.text.encode()
        except UnicodeEncodeError:  # JSON may spell a lone surrogate, which no UTF-8 text holds
            raise formats.Drop("lone surrogate") from None
        return types.Document(
            text=text.text,
            id=key,
            source=source,
            meta={
                name: plain(value)
                for name, value in record.items()
                if name not in used and name != self.id_field
            },
            loss=text.loss,
            special=text.special,
        )


def plain(value: Any) -> Any:
    """A field's value as plain JSON: bytes as UTF-8 text, arrays as lists, the unknown as `str`."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return plain(value.tolist())
    return str(value)


def parse_object(data: bytes) -> tuple[dict[str, Any] | None, str]:
    """(object, "") of one JSON object in UTF-8, or (None, why not)."""
    if not data.strip():
        return None, "empty line"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None, "invalid UTF-8"
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: of numbers with too many digits as well
        return None, "not JSON"
    return (record, "") if isinstance(record, dict) else (None, "not an object")


def cut(count: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges [begin, end) that cover 0..count, each of about `CUT_BYTES` of `size_bytes`."""
    parts = min(count, -(-size_bytes // CUT_BYTES)) or 1
    bounds = [count * part // parts for part in range(parts + 1)]
    yield from itertools.pairwise(bounds)
