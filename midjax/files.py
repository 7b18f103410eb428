# SPDX-License-Identifier: Apache-2.0
"""Local and `gs://` paths through one layer: atomic writes, hashes, JSON, capped decompression."""

import contextlib
import glob as globbing
import hashlib
import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from etils import epath

# Paths that start with this lie in the installed package: data that ships with it.
PACKAGE = "package:"
# A longer line of text is skipped: hardly a document, and tokenizers need many times its size.
MAX_LINE_BYTES = 64 * 1024 * 1024
# A compressed file that expands beyond both is a decompression bomb. Text compresses 3 to 20 times.
BOMB_BYTES = 1 << 30
BOMB_RATIO = 200
_CHUNK_BYTES = 1 << 20
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_OTHER_COMPRESSIONS = {".bz2", ".xz", ".lz4", ".zip", ".7z", ".tar", ".tgz"}
_GLOB_CHARACTERS = frozenset("*?[")
# What epath reads buckets with: TensorFlow where it is installed (then it is imported), else gcsfs.
_GCS_LIBRARIES = ("gcsfs", "tensorflow")
# Packages whose own kinds of errors tell of the way to a bucket; a missing file is none of them.
_NETWORK = frozenset({"aiohttp", "gcsfs", "google", "requests", "urllib3"})
_TENSORFLOW_ERRORS = "tensorflow.python.framework.errors"
_PASSING_ERRORS = frozenset({"AbortedError", "DeadlineExceededError", "UnavailableError"})


class OutageError(OSError):
    """What is in a bucket cannot be reached; later it may be."""

    exit_code = 171


def path(name: str | os.PathLike[str]) -> epath.Path:
    """`name` as a path; `~` is expanded, and `package:x` is file x of this package.

    Raises:
      ValueError: a `gs://` path, and nothing that could read it is installed.
    """
    text = os.fspath(name)
    if text.startswith(PACKAGE):
        return epath.Path(__file__).parent / text[len(PACKAGE) :]
    if text.startswith("gs://"):
        if not any(map(importlib.util.find_spec, _GCS_LIBRARIES)):
            raise ValueError(
                f"{text} is in Google Cloud Storage, and gcsfs is not installed: "
                "pip install 'midjax[gcs]', or copy the files to a local folder."
            )
        _list_afresh()
    return epath.Path(name).expanduser()


def _list_afresh() -> None:
    """gcsfs keeps what it listed, for ever: it would not see what another process wrote, nor what
    TensorStore did in this one."""
    import fsspec.config

    for scheme in ("gcs", "gs"):
        fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket: objects, written whole, without folders."""
    return "://" in os.fspath(name)


def is_outage(error: BaseException) -> bool:
    """Whether an error tells that a bucket could not be reached, or is busy, so that the same may
    succeed later. That it refuses what was asked is none."""
    if isinstance(error, OutageError | TimeoutError | ConnectionError):
        return True
    if type(error).__module__.startswith(_TENSORFLOW_ERRORS):
        return type(error).__name__ in _PASSING_ERRORS
    code = str(getattr(error, "code", ""))
    is_refused = code.startswith("4") and code not in ("408", "429")
    return is_of_network(error) and not is_refused


def is_of_network(error: BaseException) -> bool:
    """Whether it is of a kind that the libraries between here and a bucket have of their own."""
    module = type(error).__module__
    return module.partition(".")[0] in _NETWORK or module.startswith(_TENSORFLOW_ERRORS)


def match(pattern: str) -> list[str]:
    """Files that match a glob, sorted, so that every process sees the same list.

    Raises:
      FileNotFoundError: nothing matches.
    """
    if pattern.startswith(PACKAGE):
        pattern = str(path(pattern))
    if "://" in pattern:
        scheme, _, rest = pattern.partition("://")
        bucket, _, tail = rest.partition("/")
        found = [str(p) for p in path(f"{scheme}://{bucket}").glob(tail)]
    else:
        found = globbing.glob(os.path.expanduser(pattern), recursive=True)
    found = sorted(name for name in found if not epath.Path(name).is_dir())
    if not found:
        raise FileNotFoundError(
            f"No file matches {pattern!r} (working folder {os.getcwd()}). "
            "Give a path or a glob that exists."
        )
    return found


def match_with_names(pattern: str) -> list[tuple[str, str]]:
    """`match`, and for each file its name below the pattern's folders without wildcards: unique,
    and the same wherever the folder lies.

    Raises:
      FileNotFoundError: nothing matches.
    """
    parts = pattern.split("/")
    fixed = next((i for i, part in enumerate(parts) if _GLOB_CHARACTERS & set(part)), len(parts))
    depth = len(parts) - 1 - min(fixed, len(parts) - 1)
    found = match(pattern)
    if "**" in parts:  # of any depth: cut off the folder itself
        root = "/".join(parts[:fixed])
        root = str(path(root)) if root else ("/" if pattern.startswith("/") else ".")
        return [(name, os.path.relpath(name, root)) for name in found]
    return [(name, "/".join(name.split("/")[-1 - depth :])) for name in found]


def require_local(name: str, what: str) -> None:
    """Refuses a path in a bucket, for what is read by a library that knows local files only.

    Raises:
      ValueError: says to copy.
    """
    if "://" in name:
        raise ValueError(f"{what} reads local files only, got {name}. Copy them here first.")


def write_bytes(name: str | os.PathLike[str], data: bytes) -> None:
    """Writes a whole file or nothing: no reader sees half, a crash leaves the old one."""
    target = path(name)
    if is_remote(target):  # an object appears when it is whole
        target.write_bytes(data)
        return
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
    hash_range(digest, name, 0, None)
    return digest.hexdigest()


def hash_range(
    digest: "hashlib._Hash", name: str | os.PathLike[str], begin: int, end: int | None
) -> None:
    """Updates a digest with the bytes [begin, end) of a file, read in pieces; end None is its end.

    Raises:
      FileNotFoundError: there is no such file.
    """
    with path(name).open("rb") as file:
        for piece in _pieces(file, begin, end):
            digest.update(piece)


def _pieces(file: BinaryIO, begin: int, end: int | None) -> Iterator[bytes]:
    file.seek(begin)
    left = end - begin if end is not None else None
    while piece := file.read(_CHUNK_BYTES if left is None else min(_CHUNK_BYTES, left)):
        yield piece
        if left is not None:
            left -= len(piece)


def size(name: str | os.PathLike[str]) -> int:
    """Bytes of a file."""
    return path(name).stat().length


def is_compressed(name: str) -> bool:
    """Whether `lines` decompresses this file, by its name."""
    return os.path.splitext(name)[1] in _COMPRESSIONS


def cut_at_lines(name: str, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges [begin, end) of an uncompressed file, which cover it, end at line ends, and have
    `piece_bytes` or the rest of a longer line more."""
    total, begin = size(name), 0
    with path(name).open("rb") as file:
        while begin < total:
            end = min(begin + piece_bytes, total)
            if end < total:
                file.seek(end - 1)  # a line that ends right there needs no more
                while piece := file.readline(_CHUNK_BYTES):
                    if piece.endswith(b"\n"):
                        break
                end = file.tell()
            yield begin, end
            begin = end


def expansion_limit(stored_bytes: int) -> int:
    """Bytes beyond which what expands from `stored_bytes` is taken for a decompression bomb."""
    return max(BOMB_BYTES, BOMB_RATIO * stored_bytes)


class Line(NamedTuple):
    """One line of a text file.

    Attributes:
      number: from 1, in the range that is read.
      data: its bytes without the line end; None of a line that is too long, for the `reason`.
      reason: why there is no data.
    """

    number: int
    data: bytes | None
    reason: str = ""


def lines(
    name: str,
    read: Callable[[int], None] = lambda position: None,
    begin: int = 0,
    end: int | None = None,
) -> Iterator[Line]:
    """Lines of a text file, `.gz` and `.zst` decompressed on the way; without a byte order mark.

    Memory is bounded by `MAX_LINE_BYTES`: the data of a longer line is let go as it is read.

    Args:
      name: the file.
      read: is told how many bytes of the range were read, as they are stored.
      begin, end: range of an uncompressed file, from the beginning of a line.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the compressed stream is damaged, ends too early, or expands beyond `BOMB_BYTES`
        and `BOMB_RATIO`; or it is compressed in another way.
    """
    held: list[bytes] = []
    number, held_bytes, started = 1, 0, begin > 0

    def line() -> Line:
        if held_bytes > MAX_LINE_BYTES:
            return Line(number, None, f"longer than {MAX_LINE_BYTES} bytes")
        return Line(number, b"".join(held).rstrip(b"\r\n"))

    chunks = _chunks(name, read, begin, end)
    while True:
        try:
            chunk = next(chunks, None)
        except (EOFError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(
                f"{name} is damaged or was cut off, in line {number}: {error}. Fetch it again."
            ) from error
        if chunk is None:
            break
        if not started:
            chunk, started = chunk.removeprefix(b"\xef\xbb\xbf"), True
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            held.append(part)
            held_bytes += len(part)
            yield line()
            number, held, held_bytes = number + 1, [], 0
        held_bytes += len(rest)
        held = [*held, rest] if held_bytes <= MAX_LINE_BYTES else []
    if held_bytes:
        yield line()


def _chunks(name: str, read: Callable[[int], None], begin: int, end: int | None) -> Iterator[bytes]:
    ending = os.path.splitext(name)[1]
    if ending in _OTHER_COMPRESSIONS:
        raise ValueError(
            f"{name}: {ending} is not read; {', '.join(_COMPRESSIONS)} and plain text are. "
            "Unpack it."
        )
    kind = _COMPRESSIONS.get(ending)
    with path(name).open("rb") as raw:
        if kind is None:
            for piece in _pieces(raw, begin, end):
                read(raw.tell() - begin)
                yield piece
            return
        import pyarrow  # not at the top: who reads no compressed text needs no pyarrow

        if not size(name):  # no compressor writes nothing; the decompressors take it for no lines
            raise EOFError("an empty file")
        expanded, limit = 0, expansion_limit(size(name))
        # Its decompressors, unlike the gzip and zstandard modules, have all that is needed: bounded
        # output per step, several streams in one file, and an error where a stream is cut off.
        with contextlib.closing(pyarrow.PythonFile(raw, "r")) as source:
            stream = pyarrow.CompressedInputStream(source, kind)
            while piece := stream.read(_CHUNK_BYTES):
                expanded += len(piece)
                if expanded > limit:
                    raise ValueError(
                        f"{name} expands to more than {limit} bytes from {size(name)}: a "
                        f"decompression bomb. Text does not compress {BOMB_RATIO} times; "
                        "if yours does, decompress it first."
                    )
                read(raw.tell())
                yield piece
