# SPDX-License-Identifier: Apache-2.0
"""Parquet files, read batch by batch.

PyArrow is imported where a file is read: recipes of all verbs know this reader.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from midjax import files
from midjax.corpora import reading

# Decoded at once: rows for about so many bytes.
_BATCH_BYTES = 16 * 1024 * 1024
_BATCH_ROWS = 1024
# Of a column, as it is stored, in memory at once.
_BUFFER_BYTES = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(reading.Reader):
    """A record per row.

    Attributes:
      path: file or glob; read in sorted order.
      columns: read besides those that the format and the id need; documents keep them as `meta`.
        None is all of them.
    """

    path: str
    columns: tuple[str, ...] | None

    def units(self) -> list[reading.Unit]:
        """Files; those above 64 MB in ranges of row groups."""
        return [
            unit for name, short in files.match_with_names(self.path) for unit in _cut(name, short)
        ]

    def records(self, unit: reading.Unit, read: Callable[[int], None]) -> Iterator[reading.Found]:
        """A record per row."""
        place = unit.payload
        name, number = place["file"], place["row"]
        last = number + place["rows"]
        with _Opened(name) as file:
            groups = list(range(place["begin"], place["end"]))
            names = self.columns_of(name, file.schema_arrow.names, self.columns)
            _check_expansion(name, [file.metadata.row_group(group) for group in groups])
            rows_bytes = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            wanted = _BATCH_BYTES * place["rows"] // max(rows_bytes, 1)
            batches = file.iter_batches(
                batch_size=min(max(wanted, 1), _BATCH_ROWS),
                row_groups=groups,
                columns=names,
                use_threads=False,
            )
            for batch in batches:
                for record in batch.to_pylist():
                    number += 1
                    yield reading.Found(f"{name}, row {number}", f"{place['key']}:{number}", record)
                read(unit.size_bytes - unit.size_bytes * (last - number) // place["rows"])


def _check_expansion(name: str, groups: list[Any]) -> None:
    """Refuses a decompression bomb. A value that stands once in a dictionary counts once."""
    for group in groups:
        for column in map(group.column, range(group.num_columns)):
            stored, expanded = column.total_compressed_size, column.total_uncompressed_size
            if expanded > files.expansion_limit(stored):
                raise ValueError(
                    f"{name}: {stored} bytes of the column {column.path_in_schema!r} expand to "
                    f"{expanded}: a decompression bomb. If it is none, write the file anew with "
                    "smaller row groups."
                )


class _Opened:
    """A Parquet file, with the library's errors as one that names the file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._raw = files.path(name).open("rb") if "://" in name else None

    def __enter__(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            self._file = pyarrow.parquet.ParquetFile(
                self._raw or self._name, buffer_size=_BUFFER_BYTES, pre_buffer=False
            )
        except (pyarrow.ArrowException, OSError) as error:
            self._fail(error)
        return self._file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import pyarrow

        self._file.close()
        if self._raw is not None:
            self._raw.close()
        if isinstance(error, pyarrow.ArrowException | OSError):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, FileNotFoundError):
            raise error
        raise ValueError(
            f"{self._name} is not a whole Parquet file: {error}. Fetch it again."
        ) from error


def _cut(name: str, short: str) -> Iterator[reading.Unit]:
    size = files.size(name)
    with _Opened(name) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    starts = [_range(group)[0] for group in groups]
    row, begin = 0, 0
    for end in range(1, len(groups) + 1):
        first, last = begin == 0, end == len(groups)
        until = size if last else starts[end]
        if not last and until - starts[begin] < reading.CUT_BYTES:
            continue
        rows = sum(group.num_rows for group in groups[begin:end])
        # The footer, which names the columns, counts for every unit.
        footer = _range(groups[-1])[1]
        pieces: list[tuple[str, int, int | None]] = [(name, starts[begin], until)]
        pieces = [(name, 0, None)] if first and last else [*pieces, (name, footer, None)]
        if rows:
            yield reading.Unit(
                key=short if first else f"{short}@{row}",
                size_bytes=until - (0 if first else starts[begin]),
                payload={
                    "file": name,
                    "key": short,
                    "begin": begin,
                    "end": end,
                    "row": row,
                    "rows": rows,
                },
                pieces=pieces,
            )
        row, begin = row + rows, end


def _range(group: Any) -> tuple[int, int]:
    """Bytes [begin, end) of a row group."""
    begins, ends = [], []
    for number in range(group.num_columns):
        column = group.column(number)
        dictionary = column.dictionary_page_offset
        # 0 where there is none, in the files of some writers.
        begins.append(min(column.data_page_offset, dictionary or column.data_page_offset))
        ends.append(begins[-1] + column.total_compressed_size)
    return min(begins, default=0), max(ends, default=0)
