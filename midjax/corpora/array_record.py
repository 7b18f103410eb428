# SPDX-License-Identifier: Apache-2.0
"""ArrayRecord files: the format that Grain and TFDS read at random."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

from array_record.python import array_record_module

from midjax import files
from midjax.corpora import reading

_BATCH_RECORDS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecord(reading.Reader):
    """A record per entry of local files.

    Attributes:
      path: file or glob; read in sorted order.
      payload: what an entry is: "text": UTF-8 text, which becomes the one field `text`; "json": a
        JSON object.
    """

    path: str
    payload: Literal["text", "json"]

    def units(self) -> list[reading.Unit]:
        """Files; those above 64 MB in ranges of entries."""
        found = []
        for name, short in files.match_with_names(self.path):
            files.require_local(name, "ArrayRecord")
            size = files.size(name)
            with _opened(name) as reader:
                count = reader.num_records()
            for begin, end in reading.cut(count, size):
                found.append(
                    reading.Unit(
                        key=f"{short}@{begin}" if begin else short,
                        size_bytes=size * (end - begin) // max(count, 1),
                        payload={"file": name, "key": short, "begin": begin, "end": end},
                        pieces=[(name, 0, None)],  # where an entry's bytes are is not known
                    )
                )
        return found

    def records(self, unit: reading.Unit, read: Callable[[int], None]) -> Iterator[reading.Found]:
        """A record per entry."""
        place = unit.payload
        name, number, end = place["file"], place["begin"], place["end"]
        begin = number
        with _opened(name) as reader:
            while number < end:
                for data in reader.read(number, min(number + _BATCH_RECORDS, end)):
                    number += 1
                    record, reason = (
                        ({"text": data}, "")
                        if self.payload == "text"
                        else reading.parse_object(data)
                    )
                    yield reading.Found(
                        f"{name}, record {number}", f"{place['key']}:{number}", record, reason
                    )
                read(unit.size_bytes * (number - begin) // (end - begin))


@contextlib.contextmanager
def _opened(name: str) -> Iterator[array_record_module.ArrayRecordReader]:
    """A reader that is closed in the end; what the library says of a damaged file names it."""
    try:
        reader = array_record_module.ArrayRecordReader(
            name, options="readahead_buffer_size:0,max_parallelism:0"
        )
        try:
            yield reader
        finally:
            reader.close()  # here it may say that the file is too short
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"{name} is not a whole ArrayRecord file: {error or 'cut off'}. Fetch it again."
        ) from error
