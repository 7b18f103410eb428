# SPDX-License-Identifier: Apache-2.0
"""Folders that Hugging Face `datasets` saved (`save_to_disk`), read without that library.

PyArrow is imported where a file is read: recipes of all verbs know these readers.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from midjax import files
from midjax.corpora import reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceDisk(reading.Reader):
    """A record per row, in the dataset's order.

    Attributes:
      path: the folder that was given to `save_to_disk`.
      split: of a folder with several ("train"); None for one without.
      columns: read besides those that the format and the id need; documents keep them as `meta`.
        None is all of them.
    """

    path: str
    split: str | None
    columns: tuple[str, ...] | None

    def units(self) -> list[reading.Unit]:
        """Files of the dataset; local ones above 64 MB in ranges of record batches."""
        folder = self._folder()
        state = files.read_json(folder / "state.json")
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise ValueError(
                f"{folder} has an indices mapping: an old version of datasets saved it after "
                "select, shuffle or filter. Load it with datasets, call flatten_indices() and save "
                "it again."
            )
        found: list[reading.Unit] = []
        for entry in state["_data_files"]:
            name = str(folder / entry["filename"])
            if not files.path(name).exists():
                raise FileNotFoundError(
                    f"{folder}/state.json names {entry['filename']}, which is not there."
                )
            found += _cut(name, entry["filename"])
        return found

    def records(self, unit: reading.Unit, read: Callable[[int], None]) -> Iterator[reading.Found]:
        """A record per row."""
        place = unit.payload
        name, number = place["file"], place["row"]
        with _opened(name) as (stream, raw):
            kept = self.columns_of(name, stream.schema.names, self.columns)
            done = 0
            for batch in _batches(stream, place["end"]):
                done += 1
                if done <= place["begin"]:
                    continue
                for part in range(0, batch.num_rows, 256):  # not a whole batch as Python objects
                    for record in batch.select(kept).slice(part, 256).to_pylist():
                        number += 1
                        yield reading.Found(
                            f"{name}, row {number}", f"{place['key']}:{number}", record
                        )
                read(raw.tell() - place["offset"])
        read(unit.size_bytes)

    def _folder(self) -> Any:
        folder = files.path(self.path)
        dictionary = folder / "dataset_dict.json"
        if dictionary.exists():
            splits = files.read_json(dictionary)["splits"]
            if self.split not in splits:
                raise ValueError(
                    f"HuggingFaceDisk.split is {self.split!r}, and {folder} has the splits "
                    f"{splits}. Name one."
                )
            folder = folder / str(self.split)
        elif self.split is not None and (folder / "state.json").exists():
            raise ValueError(
                f"HuggingFaceDisk.split is {self.split!r}, and {folder} is one dataset without "
                "splits. Set None."
            )
        if not (folder / "state.json").exists():
            raise FileNotFoundError(
                f"No state.json or dataset_dict.json in {folder}: not a folder that datasets' "
                "save_to_disk made."
            )
        return folder


@contextlib.contextmanager
def _opened(name: str) -> Iterator[tuple[Any, Any]]:
    """The stream of record batches in a file, and the file. Local files are mapped: what is skipped
    is not read."""
    import pyarrow
    import pyarrow.ipc

    with contextlib.ExitStack() as stack:
        try:
            if "://" in name:
                raw = pyarrow.PythonFile(stack.enter_context(files.path(name).open("rb")), "r")
            else:
                raw = pyarrow.memory_map(name)
            stack.enter_context(contextlib.closing(raw))
            yield stack.enter_context(pyarrow.ipc.open_stream(raw)), raw
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(
                f"{name} is not a whole Arrow stream: {error}. Fetch it again."
            ) from error


def _batches(stream: Any, end: int | None) -> Iterator[Any]:
    done = 0
    while end is None or done < end:
        try:
            yield stream.read_next_batch()
        except StopIteration:
            return
        done += 1


def _cut(name: str, short: str) -> Iterator[reading.Unit]:
    size = files.size(name)
    place: dict[str, Any] = {"file": name, "key": short, "begin": 0, "end": None}
    place |= {"offset": 0, "row": 0}
    if "://" in name or size <= reading.CUT_BYTES:
        yield reading.Unit(key=short, size_bytes=size, payload=place, pieces=[(name, 0, None)])
        return
    with _opened(name) as (stream, raw):
        # The schema, which names the columns, counts for every unit.
        schema = (name, 0, raw.tell())
        place["offset"], row, number = raw.tell(), 0, 0
        for number, batch in enumerate(_batches(stream, None), 1):
            row += batch.num_rows
            if (end := raw.tell()) - place["offset"] >= reading.CUT_BYTES:
                yield _part(place | {"end": number}, schema, end)
                place |= {"begin": number, "offset": end, "row": row}
        if row > place["row"]:
            yield _part(place | {"end": number}, schema, size)


def _part(place: dict[str, Any], schema: tuple[str, int, int], end: int) -> reading.Unit:
    return reading.Unit(
        key=f"{place['key']}@{place['row']}" if place["row"] else place["key"],
        size_bytes=end - place["offset"],
        payload=place,
        pieces=[schema, (place["file"], place["offset"], end)],
    )
