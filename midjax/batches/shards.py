# SPDX-License-Identifier: Apache-2.0
"""Token folders: documents of one source, tokenized once, read at random by index.

<folder>/tokens-UUUUU-KKKKK.bin   token ids of whole documents, end to end, little-endian u2 or u4
                                  (`dtype` in the manifest); part K of the source's unit U
<folder>/loss-UUUUU-KKKKK.bin     one byte per token of that part: 1 where the token bears loss when
                                  it is the target. Only where a document of the part has a mask
<folder>/lengths.npy              [documents] tokens per document, BOS and EOS included
<folder>/offsets.npy              [documents + 1] sums of the lengths: documents as one long text
<folder>/text_bytes.npy           [documents] UTF-8 bytes of their texts
<folder>/ids.jsonl                source document ids, one JSON string per line
<folder>/manifest.json            written last: a folder without it is not a token folder

Flat files, because any piece of any document is then one `pread` of a few microseconds, nothing is
resident, and opening costs the same for ten documents and for ten million.
"""

import bisect
import collections
import itertools
import json
import os
import threading
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from midjax import files
from midjax.batches import parts

MANIFEST = parts.MANIFEST
token_dtype = parts.token_dtype
# Files that one process holds open for all its sources; the least used is closed first.
OPEN_FILES = 256


def write(
    folder: str, documents: Iterable[tuple], *, facts: dict[str, Any], shard_tokens: int
) -> dict[str, Any]:
    """Writes a token folder in one go and returns its manifest; `tokenize` writes in parts.

    Args:
      folder: destination; files of an older folder there are replaced.
      documents: (id, UTF-8 bytes of the text, token ids) in order, and as a fourth, where not all
        of it bears loss, its mask [tokens].
      facts: what the manifest says besides counts; needs `vocab_size`.
      shard_tokens: a shard is closed once it holds this many tokens.
    """
    files.path(folder).mkdir(parents=True, exist_ok=True)
    parts.clear(folder)
    dtype = token_dtype(facts["vocab_size"])
    writer = parts.PartWriter(folder, 0, key=str, dtype=dtype, shard_tokens=shard_tokens)
    for key, text_bytes, tokens, *loss in documents:
        writer.add(key, text_bytes, np.asarray(tokens), *loss)
    return parts.finish(folder, [writer.close({})], facts | {"dtype": dtype.str})


class TokenSource:
    """One token folder. `source[i]` is document i's token ids, int32. Pickles as its path.

    Attributes:
      folder: its path.
      manifest: what `midjax tokenize` noted.
      lengths, text_bytes: [documents] int64, mapped, not read.
      offsets: [documents + 1] int64, mapped.
      has_loss: whether some document has a mask of what bears loss.

    Raises:
      FileNotFoundError: there is no whole token folder at `folder`.
      ValueError: the folder is damaged or of another version of midjax.
    """

    def __init__(self, folder: str) -> None:
        root = files.path(folder)
        if not (root / MANIFEST).exists():
            raise FileNotFoundError(
                f"{folder} is not a finished token folder (no {MANIFEST}). "
                "Run `midjax tokenize` for this source first."
            )
        self.folder = folder
        self.manifest: dict[str, Any] = files.read_json(root / MANIFEST)
        if (found := self.manifest.get("format")) != parts.FORMAT:
            raise ValueError(
                f"{folder} has the layout {found}, and this midjax reads {parts.FORMAT}. Run "
                "`midjax tokenize` for this source again."
            )
        documents = self.manifest["documents"]
        self.lengths = self._column("lengths", documents)
        self.text_bytes = self._column("text_bytes", documents)
        self.offsets = self._column("offsets", documents + 1)
        self._dtype = np.dtype(self.manifest["dtype"])
        self._shards = [_Shard(str(root), *item) for item in self.manifest["shards"].items()]
        self._first_tokens = [0]
        for shard in self._shards:
            self._first_tokens.append(self._first_tokens[-1] + shard.tokens)
        self.has_loss = any(shard.loss for shard in self._shards)

    def __reduce__(self) -> tuple:
        return TokenSource, (self.folder,)

    def _column(self, name: str, size: int) -> np.ndarray:
        place = files.path(self.folder) / f"{name}.npy"
        if "://" in self.folder or not size:  # no empty file can be mapped
            with place.open("rb") as file:
                column = np.load(file, allow_pickle=False)
        else:
            column = np.load(place, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if column.shape != (size,) or column.dtype != np.int64:
            raise ValueError(
                f"{self.folder} is damaged: {place.name} holds {len(column)} of {size} numbers. "
                "Tokenize it again."
            )
        return column

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Int[np.ndarray, " tokens"]:
        return self.read(int(index)).astype(np.int32)

    def read(self, document: int, start: int = 0, count: int | None = None) -> np.ndarray:
        """Ids [start, start + count) of a document, in the files' own dtype, read-only.

        Args:
          count: None reads to the document's end.
        """
        shard, first, count = self._locate(document, start, count)
        if not count:
            return np.zeros(0, self._dtype)
        size = self._dtype.itemsize
        return np.frombuffer(shard.read(shard.name, first * size, count * size, size), self._dtype)

    def loss(
        self, document: int, start: int = 0, count: int | None = None
    ) -> UInt8[np.ndarray, " tokens"]:
        """1 where a token of `read` with the same arguments bears loss when it is the target."""
        shard, first, count = self._locate(document, start, count)
        if not count or not shard.loss:
            return np.ones(count, np.uint8)
        return np.frombuffer(shard.read(shard.loss, first, count, 1), np.uint8)

    def _locate(self, document: int, start: int, count: int | None) -> tuple["_Shard", int, int]:
        """The shard, the place in it in tokens, and how many tokens."""
        begin, end = self.offsets.item(document), self.offsets.item(document + 1)
        if count is None:
            count = end - begin - start
        begin += start
        inside = document >= 0 and start >= 0 and 0 <= count <= end - begin
        assert inside, (self.folder, document, start, count)
        number = bisect.bisect_right(self._first_tokens, begin) - 1
        number = min(number, len(self._shards) - 1)  # an empty document at the very end
        return self._shards[number], begin - self._first_tokens[number], count

    def ids(self) -> list[str]:
        """Source document ids, in order."""
        text = (files.path(self.folder) / "ids.jsonl").read_text(encoding="utf-8")
        # Not splitlines, which also cuts at characters that JSON strings may hold as they are.
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def ids_of(self, documents: Collection[int]) -> dict[int, str]:
        """Document -> its source id, of a few: reads up to the last of them and keeps no other."""
        wanted, found = set(documents), {}
        with (files.path(self.folder) / "ids.jsonl").open("rb") as lines:
            for number, line in enumerate(itertools.islice(lines, max(wanted, default=-1) + 1)):
                if number in wanted:
                    found[number] = json.loads(line)
        return found


class _Shard:
    """One part of a token folder, opened when it is first read."""

    def __init__(self, root: str, name: str, facts: dict[str, Any]) -> None:
        self._root, self.name, self.loss = root, name, facts["loss"]
        self.tokens: int = facts["tokens"]
        # A folder that is written anew in this process gets new hashes, and new open files.
        self._keys = {name: (root, name, facts["sha256"])}
        if self.loss:
            self._keys[self.loss] = (root, self.loss, facts["loss_sha256"])

    def read(self, name: str, begin: int, count: int, itemsize: int) -> bytes:
        data = _POOL.open(self._keys[name], self.tokens * itemsize).read(begin, count)
        if len(data) != count:
            raise ValueError(f"{self._root}/{name} was cut off while it was in use.")
        return data


class _Pool:
    """Open files of all sources of a process, so that a thousand shards need no thousand files."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._files: collections.OrderedDict[tuple, _Local | _Remote] = collections.OrderedDict()

    def open(self, key: tuple[str, str, str], size: int) -> "_Local | _Remote":
        with self._lock:
            found = self._files.get(key)
            if found is not None:
                self._files.move_to_end(key)
                return found
        place = files.path(key[0]) / key[1]
        if not place.exists():
            raise FileNotFoundError(
                f"{place} is missing, and the folder's manifest names it. Tokenize it again."
            )
        if (length := place.stat().length) != size:
            raise ValueError(
                f"{place} is damaged: {length} bytes, not {size}. Delete the folder and tokenize "
                "it again."
            )
        opened = _Remote(place) if "://" in key[0] else _Local(str(place))
        with self._lock:
            # Of two threads that opened it at once, one's is closed with its last use.
            found = self._files.setdefault(key, opened)
            while len(self._files) > self._most:
                self._files.popitem(last=False)
        return found


class _Local:
    """A file that threads read at once; closed when its last user lets it go."""

    _descriptor = -1

    def __init__(self, place: str) -> None:
        self._descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def read(self, begin: int, count: int) -> bytes:
        return os.pread(self._descriptor, count, begin)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class _Remote:
    """A file of an object store: one reader at a time, each read a ranged request."""

    def __init__(self, place: Any) -> None:
        self._file, self._lock = place.open("rb"), threading.Lock()

    def read(self, begin: int, count: int) -> bytes:
        with self._lock:
            self._file.seek(begin)
            return self._file.read(count)

    def __del__(self) -> None:
        self._file.close()


_POOL = _Pool(OPEN_FILES)


def verify(folder: str) -> None:
    """Reads every shard and compares it with its hash in the manifest.

    Raises:
      ValueError: a shard differs; says which.
    """
    manifest = files.read_json(files.path(folder) / MANIFEST)
    for name, expected in parts.shard_files(manifest).items():
        if (found := files.sha256_of(files.path(folder) / name)) != expected:
            raise ValueError(
                f"{folder}/{name} is damaged: sha256 {found}, manifest {expected}. Delete the "
                "folder and tokenize it again."
            )
