# SPDX-License-Identifier: Apache-2.0
"""Local and `gs://` paths through one layer: atomic writes, hashes, JSON, capped decompression."""

import glob as globbing
import gzip
import hashlib
import io
import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

# Paths that start with this lie in the installed package: data that ships with it.
PACKAGE = "package:"
# A line of text that expands beyond this is taken for a decompression bomb or a binary file.
MAX_LINE_BYTES = 64 * 1024 * 1024


def path(name: str | os.PathLike[str]) -> epath.Path:
    """`name` as a path; `~` is expanded, and `package:x` is file x of this package."""
    text = os.fspath(name)
    if text.startswith(PACKAGE):
        return epath.Path(__file__).parent / text[len(PACKAGE) :]
    return epath.Path(name).expanduser()


def match(pattern: str) -> list[str]:
    """Files that match a glob, sorted, so that every process sees the same list.

    Raises:
      FileNotFoundError: nothing matches.
    """
    if pattern.startswith(PACKAGE):
        pattern = str(path(pattern))
    if "://" in pattern:
        root, _, rest = pattern.partition("://")
        bucket, _, tail = rest.partition("/")
        found = [str(p) for p in epath.Path(f"{root}://{bucket}").glob(tail)]
    else:
        found = globbing.glob(os.path.expanduser(pattern), recursive=True)
    found = sorted(name for name in found if not epath.Path(name).is_dir())
    if not found:
        raise FileNotFoundError(
            f"No file matches {pattern!r} (working folder {os.getcwd()}). "
            "Give a path or a glob that exists."
        )
    return found


def write_bytes(name: str | os.PathLike[str], data: bytes) -> None:
    """Writes a whole file or nothing: no reader sees half, a crash leaves the old one."""
    target = path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    temporary.write_bytes(data)
    temporary.replace(target)


def write_text(name: str | os.PathLike[str], text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(name, text.encode())


def write_json(name: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON atomically, keys in insertion order; NaN and infinities are refused."""
    write_text(name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(name: str | os.PathLike[str]) -> Any:
    """Reads one JSON file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not JSON.
    """
    text = path(name).read_text()
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(name: str | os.PathLike[str]) -> str:
    """Hex digest of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path(name).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def lines(name: str, read: Callable[[int], None] = lambda position: None) -> Iterator[bytes]:
    """Lines of a text file, `.gz` decompressed on the way, without their line ends.

    Memory is bounded by the longest line. `read` is told how many bytes of the file were read.

    Raises:
      ValueError: a line is longer than `MAX_LINE_BYTES`, or the gzip stream is damaged.
    """
    with (
        path(name).open("rb") as raw,
        gzip.open(raw, "rb") if name.endswith(".gz") else io.BufferedReader(raw) as file,
    ):
        number = 0
        while True:
            try:
                line = file.readline(MAX_LINE_BYTES + 1)
            except (EOFError, OSError, zlib.error) as error:
                raise ValueError(f"{name} is damaged after line {number}: {error}") from error
            if not line:
                return
            number += 1
            read(raw.tell())
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{name}:{number} is longer than {MAX_LINE_BYTES} bytes. "
                    "Is it really one JSON object or one line of text per line?"
                )
            yield line.rstrip(b"\r\n")
