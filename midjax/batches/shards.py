# SPDX-License-Identifier: Apache-2.0
"""Token folders: documents of one source, tokenized once, read at random by index.

<folder>/tokens-00000.array_record ...   one record per document: token ids, little-endian
<folder>/lengths.npy                     tokens per document, BOS and EOS included
<folder>/text_bytes.npy                  UTF-8 bytes per document
<folder>/ids.jsonl                       source document ids, one JSON string per line
<folder>/manifest.json                   written last: a folder without it is not a token folder
"""

import json
from collections.abc import Iterable
from typing import Any

import grain
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int

from midjax import files

MANIFEST = "manifest.json"


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest little-endian unsigned type that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def write(
    folder: str,
    documents: Iterable[tuple[str, int, Int[np.ndarray, " tokens"]]],
    *,
    facts: dict[str, Any],
    shard_tokens: int,
) -> dict[str, Any]:
    """Writes a token folder and returns its manifest.

    Args:
      folder: destination; files of an older folder there are replaced.
      documents: (id, UTF-8 bytes of the text, token ids) in order.
      facts: what the manifest says besides counts; needs `vocab_size`.
      shard_tokens: a shard is closed once it holds this many tokens.
    """
    root = files.path(folder)
    root.mkdir(parents=True, exist_ok=True)
    for old in root.iterdir():  # the manifest goes first: never a manifest beside half a folder
        if old.name == MANIFEST:
            old.unlink()
    for old in root.iterdir():
        if old.name.endswith((".array_record", ".npy", "ids.jsonl")):
            old.unlink()
    dtype = token_dtype(facts["vocab_size"])
    shards = _ShardWriter(root, dtype, shard_tokens)
    ids, lengths, sizes = [], [], []
    for key, text_bytes, tokens in documents:
        shards.add(tokens)
        ids.append(json.dumps(key, ensure_ascii=False) + "\n")
        lengths.append(len(tokens))
        sizes.append(text_bytes)
    names = shards.close()
    for name, column in (("lengths", lengths), ("text_bytes", sizes)):
        with (root / f"{name}.npy").open("wb") as file:
            np.save(file, np.array(column, np.int64), allow_pickle=False)
    files.write_text(root / "ids.jsonl", "".join(ids))
    hashes = {name: files.sha256_of(root / name) for name in names}
    manifest = facts | {
        "documents": len(lengths),
        "tokens": int(sum(lengths)),
        "text_bytes": int(sum(sizes)),
        "dtype": dtype.str,
        "shards": hashes,
        "content_hash": files.sha256("".join(hashes.values()).encode()),
    }
    files.write_json(root / MANIFEST, manifest)
    return manifest


class _ShardWriter:
    def __init__(self, root: Any, dtype: np.dtype, shard_tokens: int) -> None:
        self._root, self._dtype, self._limit = root, dtype, shard_tokens
        self._names: list[str] = []
        self._writer: Any = None
        self._held = 0

    def add(self, tokens: np.ndarray) -> None:
        if self._writer is None:
            self._names.append(f"tokens-{len(self._names):05d}.array_record")
            # Groups of one record: the only layout that is read at random without waste.
            self._writer = array_record_module.ArrayRecordWriter(
                str(self._root / self._names[-1]), "group_size:1"
            )
        self._writer.write(tokens.astype(self._dtype).tobytes())
        self._held += len(tokens)
        if self._held >= self._limit:
            self._finish()

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._held = None, 0

    def close(self) -> list[str]:
        self._finish()
        return self._names


class TokenSource:
    """One token folder. `source[i]` is document i's token ids, int32.

    Raises:
      FileNotFoundError: there is no whole token folder at `folder`.
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
        self.lengths = self._column("lengths")
        self.text_bytes = self._column("text_bytes")
        if len(self.lengths) != self.manifest["documents"]:
            raise ValueError(
                f"{folder} is damaged: {len(self.lengths)} lengths for "
                f"{self.manifest['documents']} documents. Tokenize it again."
            )
        self._dtype = np.dtype(self.manifest["dtype"])
        paths = [str(root / name) for name in self.manifest["shards"]]
        self._records = grain.sources.ArrayRecordDataSource(paths) if paths else []

    def _column(self, name: str) -> np.ndarray:
        with (files.path(self.folder) / f"{name}.npy").open("rb") as file:
            return np.load(file, allow_pickle=False)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Int[np.ndarray, " tokens"]:
        return np.frombuffer(self._records[int(index)], self._dtype).astype(np.int32)

    def ids(self) -> list[str]:
        """Source document ids, in order."""
        text = (files.path(self.folder) / "ids.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def verify(folder: str) -> None:
    """Reads every shard and compares it with its hash in the manifest.

    Raises:
      ValueError: a shard differs; says which.
    """
    manifest = files.read_json(files.path(folder) / MANIFEST)
    for name, expected in manifest["shards"].items():
        if (found := files.sha256_of(files.path(folder) / name)) != expected:
            raise ValueError(
                f"{folder}/{name} is damaged: sha256 {found}, manifest {expected}. Delete the "
                "folder and tokenize it again."
            )
