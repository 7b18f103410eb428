# SPDX-License-Identifier: Apache-2.0
"""Writing a token folder in parts that survive a kill.

A source is read in units, each by one process, and a unit is written in parts. What a killed run
leaves is whole: a file appears under its name once all of it is written, and the part's record
(`part-UUUUU-KKKKK.json`, with their hashes) after its files. The next run keeps parts whose record
has the key that it would write itself and whose files have those hashes, and skips their documents.
`finish` joins the columns of all parts, writes the manifest and removes what only a rerun needs.
The layout of the result: `midjax.batches.shards`.
"""

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from midjax import files

# Raised when what a token folder holds changes its layout or its meaning: older parts and folders
# are then made again.
FORMAT = 2
MANIFEST = "manifest.json"
_COLUMNS = ("lengths", "text_bytes", "offsets")
# Whole names: a folder may hold other files, and corpora often come as `part-00000.jsonl`.
_SHARD = re.compile(r"(tokens|loss)-\d{5,}-\d{5,}\.bin")
_WORK = re.compile(r"part-\d{5,}-\d{5,}\.(json|ids\.jsonl|columns\.bin)|unit-\d{5,}\.json")
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]+\.tmp")
_ENDS = frozenset([MANIFEST, "ids.jsonl", *(f"{column}.npy" for column in _COLUMNS)])
_FILE_BUFFER_BYTES = 1 << 20
_HELD_TOKENS = 1 << 16


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest little-endian unsigned type that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def name_of(kind: str, unit: int, part: int, suffix: str) -> str:
    """File name of one part, such as `tokens-00003-00000.bin`."""
    return f"{kind}-{unit:05d}-{part:05d}{suffix}"


def unit_record(folder: str, unit: int, key: Callable[[], str]) -> dict[str, Any] | None:
    """What `PartWriter.close` noted of a unit that is finished under this key, else None."""
    place = files.path(folder) / f"unit-{unit:05d}.json"
    return _record(place, key()) if place.exists() else None


def part_records(folder: str, units: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The records of all parts of finished units, in order."""
    root = files.path(folder)
    for unit, count in enumerate(units):
        for part in range(count):
            yield files.read_json(root / name_of("part", unit, part, ".json"))


def keys(folder: str) -> set[str]:
    """The keys of all parts and units that an unfinished run left."""
    places = files.path(folder).glob("*-*.json")
    return {files.read_json(place)["key"] for place in places if _is_work(place.name)}


def clear(folder: str) -> None:
    """Removes a token folder's files, and what an interrupted run left there.

    The manifest goes first: there is never a manifest beside half a folder.
    """
    root = files.path(folder)
    (root / MANIFEST).unlink(missing_ok=True)
    for old in root.iterdir():
        if _is_work(old.name) or _is_made(old.name):
            old.unlink()


def tidy(folder: str, shards: Collection[str]) -> None:
    """Removes what an interrupted run left beside a finished token folder of these shards."""
    for old in files.path(folder).iterdir():
        if _is_work(old.name) or (_SHARD.fullmatch(old.name) and old.name not in shards):
            old.unlink()


def move(source: str, folder: str) -> None:
    """Puts a finished token folder in the place of another; removes its own.

    What is killed meanwhile is done by calling it again.
    """
    root = files.path(source)
    manifest = files.read_json(root / MANIFEST)
    # There is never a manifest beside half a folder, and ours says that not all is moved.
    (files.path(folder) / MANIFEST).unlink(missing_ok=True)
    for place in sorted(root.iterdir()):
        if _is_made(place.name) and place.name != MANIFEST:
            place.replace(files.path(folder) / place.name)
    (root / MANIFEST).replace(files.path(folder) / MANIFEST)
    root.rmtree()
    tidy(folder, shard_files(manifest))


def _is_work(name: str) -> bool:
    """Whether a file is of no use once the folder is finished."""
    if temporary := _TEMPORARY.fullmatch(name):
        return _is_made(temporary[1]) or _is_work(temporary[1])
    return bool(_WORK.fullmatch(name))


def _is_made(name: str) -> bool:
    """Whether a file is part of a finished folder."""
    return name in _ENDS or bool(_SHARD.fullmatch(name))


def _record(place: Any, key: str) -> dict[str, Any] | None:
    record = files.read_json(place)
    return record if record["key"] == key else None


@contextlib.contextmanager
def _whole(place: Any) -> Iterator[Any]:
    """A file to write that gets its name once it is closed."""
    temporary = place.parent / f".{place.name}.{uuid.uuid4().hex}.tmp"
    with temporary.open("wb") as file:
        yield file
    temporary.replace(place)


def _to_disk(place: Any) -> None:
    """Waits until a file is on the disk; object stores do so by themselves."""
    if "://" not in str(place):
        with place.open("rb") as file:
            os.fsync(file.fileno())


class PartWriter:
    """Documents of one unit -> its parts.

    Args:
      folder: the token folder; exists.
      unit: number of the unit in its source.
      key: gives a hash of everything that the part depends on; asked for when it is needed.
      dtype: see `token_dtype`.
      shard_tokens: a part is closed once it holds this many tokens; documents are not cut.
      notes: what a part's record says besides, called once per part: of its documents alone.

    Attributes:
      documents: held by the parts that earlier runs finished. They are the unit's first: do not
        add them again.
      parts: finished.
    """

    def __init__(
        self,
        folder: str,
        unit: int,
        *,
        key: Callable[[], str],
        dtype: np.dtype,
        shard_tokens: int,
        notes: Callable[[], Any] = dict,
    ) -> None:
        self._root, self._unit, self._key = files.path(folder), unit, key
        self._dtype, self._limit, self._notes = dtype, shard_tokens, notes
        self.documents = self.parts = 0
        self._part_files: _PartFiles | None = None
        while record := self._finished(self.parts):
            self.documents += record["documents"]
            self.parts += 1

    def _finished(self, part: int) -> dict[str, Any] | None:
        """The record of a part that is there whole."""
        place = self._root / name_of("part", self._unit, part, ".json")
        record = _record(place, self._key()) if place.exists() else None
        if record is None:
            return None
        for name, expected in record["files"].items():
            place = self._root / name
            if not place.exists() or files.sha256_of(place) != expected:
                return None
        return record

    def add(
        self,
        key: str,
        text_bytes: int,
        tokens: np.ndarray,
        loss: np.ndarray | None = None,
    ) -> None:
        """Appends a document: its id, UTF-8 bytes, token ids, and the mask of what bears loss."""
        if self._part_files is None:
            self._part_files = _PartFiles(self._root, self._unit, self.parts, self._dtype)
        self._part_files.add(key, text_bytes, tokens, loss)
        if self._part_files.tokens >= self._limit:
            self._close_part()

    def _close_part(self) -> None:
        assert self._part_files is not None
        record = {"key": self._key()} | self._part_files.close() | {"notes": self._notes()}
        files.write_json(self._root / name_of("part", self._unit, self.parts, ".json"), record)
        self._part_files, self.parts = None, self.parts + 1

    def close(self, record: dict[str, Any]) -> int:
        """Ends the unit: closes its last part, notes `record` as the unit's; returns its parts."""
        if self._part_files is not None:
            self._close_part()
        whole = {"key": self._key(), "parts": self.parts} | record
        files.write_json(self._root / f"unit-{self._unit:05d}.json", whole)
        return self.parts


class _PartFiles:
    """The files of the part that is being written."""

    def __init__(self, root: Any, unit: int, part: int, dtype: np.dtype) -> None:
        self._root, self._dtype = root, dtype
        self._name = lambda kind, suffix: name_of(kind, unit, part, suffix)
        self._stack = contextlib.ExitStack()
        self._hashes: dict[str, Any] = {}
        self._tokens_file = self._open("tokens", ".bin")
        self._held: list[np.ndarray] = []  # documents that are written together
        self._loss_file: Callable[[bytes], None] | None = None
        self._ids: list[str] = []
        self._lengths: list[int] = []
        self._text_bytes: list[int] = []
        self.tokens = self._loss_tokens = self._held_tokens = 0

    def _open(self, kind: str, suffix: str) -> Callable[[bytes], None]:
        name = self._name(kind, suffix)
        file = self._stack.enter_context(_whole(self._root / name))
        digest = self._hashes[name] = hashlib.sha256()

        def write(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        return write

    def add(self, key: str, text_bytes: int, tokens: np.ndarray, loss: np.ndarray | None) -> None:
        if loss is not None and self._loss_file is None:
            self._loss_file = self._open("loss", ".bin")
            for begin in range(0, self.tokens, _FILE_BUFFER_BYTES):
                self._loss_file(b"\1" * min(_FILE_BUFFER_BYTES, self.tokens - begin))
        if self._loss_file is not None:
            mask = np.ones(len(tokens), np.uint8) if loss is None else loss.astype(np.uint8)
            assert len(mask) == len(tokens), (key, len(mask), len(tokens))
            self._loss_file(mask.tobytes())
        self._held.append(tokens)
        self._held_tokens += len(tokens)
        if self._held_tokens >= _HELD_TOKENS:
            self._write_held()
        self._ids.append(key)
        self._lengths.append(len(tokens))
        self._text_bytes.append(text_bytes)
        self.tokens += len(tokens)
        self._loss_tokens += len(tokens) if loss is None else int(np.count_nonzero(loss))

    def _write_held(self) -> None:
        if self._held:
            self._tokens_file(np.concatenate(self._held).astype(self._dtype).tobytes())
        self._held, self._held_tokens = [], 0

    def close(self) -> dict[str, Any]:
        self._write_held()
        # One JSON string a line: a list with line ends for commas.
        listed = json.dumps(self._ids, separators=("\n", ":"))[1:-1]
        self._open("part", ".ids.jsonl")(f"{listed}\n".encode())
        columns = np.array([self._lengths, self._text_bytes], "<i8")
        self._open("part", ".columns.bin")(columns.tobytes())
        self._stack.close()
        return {
            "documents": len(self._lengths),
            "tokens": self.tokens,
            "loss_tokens": self._loss_tokens,
            "files": {name: digest.hexdigest() for name, digest in self._hashes.items()},
        }


def finish(folder: str, units: Sequence[int], facts: dict[str, Any]) -> dict[str, Any]:
    """Makes a token folder of finished units; returns its manifest.

    Args:
      units: number of parts of each unit.
      facts: what the manifest says besides counts and hashes.
    """
    root = files.path(folder)
    shards: dict[str, dict[str, Any]] = {}
    loss_tokens = 0
    for unit, count in enumerate(units):
        for part in range(count):
            record = files.read_json(root / name_of("part", unit, part, ".json"))
            loss_name = name_of("loss", unit, part, ".bin")
            shards[name_of("tokens", unit, part, ".bin")] = {
                "documents": record["documents"],
                "tokens": record["tokens"],
                "sha256": record["files"][name_of("tokens", unit, part, ".bin")],
                "loss": loss_name if loss_name in record["files"] else None,
                "loss_sha256": record["files"].get(loss_name),
            }
            loss_tokens += record["loss_tokens"]
    documents = sum(shard["documents"] for shard in shards.values())
    places = [(unit, part) for unit, count in enumerate(units) for part in range(count)]
    text_bytes = _join_columns(root, places, documents)
    ids = [np.empty(0, np.int64)]
    with _whole(root / "ids.jsonl") as file:
        for unit, part in places:
            lines = (root / name_of("part", unit, part, ".ids.jsonl")).read_bytes()
            file.write(lines)
            ids.append(np.fromiter(map(hash, lines.splitlines()), np.int64))
    for name in (*shards, *(f"{column}.npy" for column in _COLUMNS), "ids.jsonl"):
        _to_disk(root / name)  # the manifest promises them, also after a power cut
    hashes = [shard["sha256"] + (shard["loss_sha256"] or "") for shard in shards.values()]
    hashes.append(files.sha256_of(root / "lengths.npy"))  # where documents end
    manifest = facts | {
        "format": FORMAT,
        "documents": documents,
        "tokens": sum(shard["tokens"] for shard in shards.values()),
        "loss_tokens": loss_tokens,
        "text_bytes": text_bytes,
        "repeated_ids": documents - len(np.unique(np.concatenate(ids))),
        "shards": shards,
        "content_hash": files.sha256("".join(hashes).encode()),
    }
    files.write_json(root / MANIFEST, manifest)
    tidy(folder, shard_files(manifest))
    return manifest


def shard_files(manifest: dict[str, Any]) -> dict[str, str]:
    """The files of a manifest's shards, tokens and loss, with their sha256."""
    found = {name: shard["sha256"] for name, shard in manifest["shards"].items()}
    losses = [shard for shard in manifest["shards"].values() if shard["loss"]]
    return found | {shard["loss"]: shard["loss_sha256"] for shard in losses}


def _join_columns(root: Any, places: Sequence[tuple[int, int]], documents: int) -> int:
    """The parts' columns as .npy files, one part in memory at a time; returns all text bytes."""
    text_bytes, first = 0, 0
    with contextlib.ExitStack() as stack:
        shapes = {"lengths": documents, "text_bytes": documents, "offsets": documents + 1}
        column = {}
        for name, size in shapes.items():
            column[name] = stack.enter_context(_whole(root / f"{name}.npy"))
            header = {"descr": "<i8", "fortran_order": False, "shape": (size,)}
            np.lib.format.write_array_header_1_0(column[name], header)
        column["offsets"].write(np.zeros(1, "<i8").tobytes())
        for unit, part in places:
            data = (root / name_of("part", unit, part, ".columns.bin")).read_bytes()
            lengths, sizes = np.frombuffer(data, "<i8").reshape(2, -1)
            column["lengths"].write(lengths.tobytes())
            column["text_bytes"].write(sizes.tobytes())
            column["offsets"].write((first + np.cumsum(lengths)).astype("<i8").tobytes())
            first += int(lengths.sum())
            text_bytes += int(sizes.sum())
    return text_bytes
