# SPDX-License-Identifier: Apache-2.0
"""Safetensors, read by slices and written as a stream. No pickle is ever read.

folder --opened--> Reader: names, shapes, slices        write_shards --> model-00001-of-00003...

The format: 8 bytes with the header's length, the header as JSON, then the tensors. The library
checks files; slices are read here, as it maps files into memory, where all that was ever read
counts as the process's own.
"""

import contextlib
import dataclasses
import json
import math
import os
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from midjax import files

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
NUMPY: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_CODES = {"float32": "F32", "bfloat16": "BF16"}
_STORED: Mapping[str, np.dtype] = {
    "F32": NUMPY["float32"],
    "F16": np.dtype(np.float16),
    "BF16": NUMPY["bfloat16"],
}


# ---- reading ----


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where a tensor lies."""

    file: BinaryIO
    offset: int
    code: str
    shape: tuple[int, ...]


class Reader:
    """The tensors of a folder. Nothing is read before it is asked for.

    Attributes:
      names: of all tensors.
    """

    def __init__(self, stored: Mapping[str, _Stored]) -> None:
        self._stored = stored
        self.names = frozenset(stored)

    def dtype(self, names: Iterable[str]) -> str:
        """What holds these tensors exactly: "bfloat16" if all of them are that, else "float32".

        Raises:
          ValueError: one of them is of another type.
        """
        codes = {self._stored[name].code for name in names}
        if not codes <= set(_STORED):
            raise ValueError(
                f"Tensors of type {', '.join(sorted(codes - set(_STORED)))} are not supported; "
                f"supported: {', '.join(_STORED)}. Quantized weights must be dequantized first."
            )
        return "bfloat16" if codes == {"BF16"} else "float32"

    def under(self, prefix: str) -> "Reader":
        """The tensors whose names begin with `prefix`, named without it."""
        return Reader(
            {
                name.removeprefix(prefix): tensor
                for name, tensor in self._stored.items()
                if name.startswith(prefix)
            }
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its header."""
        return self._stored[name].shape

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """Rows [begin, end) along the first axis, in the stored dtype."""
        tensor = self._stored[name]
        dtype, inner = _STORED[tensor.code], tensor.shape[1:]
        row_bytes = math.prod(inner) * dtype.itemsize
        tensor.file.seek(tensor.offset + begin * row_bytes)
        read = tensor.file.read((end - begin) * row_bytes)
        return np.frombuffer(read, dtype).reshape(end - begin, *inner)

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers; compared in pieces."""
        shape = self.shape(one)
        if shape != self.shape(other):
            return False
        step = max(1, (1 << 24) // max(1, math.prod(shape[1:])))
        return all(
            np.array_equal(
                self.rows(one, at, min(at + step, shape[0])),
                self.rows(other, at, min(at + step, shape[0])),
            )
            for at in range(0, shape[0], step)
        )


@contextlib.contextmanager
def opened(folder: str) -> Iterator[Reader]:
    """The safetensors files of a folder, open.

    Raises:
      FileNotFoundError: there are none.
      ValueError: the weights are pickles, a file is damaged or missing, or a type is not supported.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, _Stored] = {}
        for name in weight_files(folder):
            stored = _stored(name, stack.enter_context(open(name, "rb")))
            if twice := sorted(found.keys() & stored.keys()):
                raise ValueError(
                    f"{folder} holds {', '.join(twice[:3])} in more than one file. Two exports "
                    "are mixed up there: fetch it again into an empty folder."
                )
            found |= stored
        yield Reader(found)


def _stored(name: str, file: BinaryIO) -> dict[str, _Stored]:
    """The tensors of one file, whose header the library has found to be consistent."""
    try:
        with safetensors.safe_open(name, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{name} is damaged or no safetensors file: {error}. Fetch it again."
        ) from error
    (size,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        key: _Stored(
            file=file,
            offset=8 + size + entry["data_offsets"][0],
            code=entry["dtype"],
            shape=tuple(entry["shape"]),
        )
        for key, entry in header.items()
    }


def weight_files(folder: str) -> list[str]:
    """The safetensors files of a folder.

    Raises:
      FileNotFoundError: there are none.
      ValueError: the weights are pickles, or a listed file is missing.
    """
    if os.path.exists(os.path.join(folder, INDEX)):
        index = files.read_json(os.path.join(folder, INDEX))
        found = sorted({os.path.join(folder, name) for name in index["weight_map"].values()})
        missing = [name for name in found if not os.path.exists(name)]
        if missing:
            raise ValueError(
                f"{INDEX} lists {', '.join(missing)}, which is not there. Fetch the rest."
            )
        return found
    if os.path.exists(os.path.join(folder, SINGLE)):
        return [os.path.join(folder, SINGLE)]
    pickles = sorted(n for n in os.listdir(folder) if n.endswith((".bin", ".pt", ".pth")))
    if pickles:
        raise ValueError(
            f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code "
            "when read; midjax reads safetensors only. Convert it where torch and transformers "
            'are installed: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained({folder!r}).save_pretrained('converted')\""
        )
    raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}.")


# ---- writing ----


@dataclasses.dataclass(frozen=True)
class Named:
    """A tensor to be written.

    Attributes:
      name, shape: what its header says.
      make: makes its numbers when it is due: pieces along the first axis, in order.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Iterable[np.ndarray]]


def write_shards(
    folder: str,
    tensors: Sequence[Named],
    dtype: str,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[str]:
    """Writes tensors in files of at most `max_shard_bytes`, one piece in memory at a time.

    One file is called model.safetensors; more are numbered and have an index, as transformers
    writes them. Files appear under their names when they are whole, the index last.

    Returns:
      The names of the files.
    """
    size = NUMPY[dtype].itemsize
    groups: list[list[Named]] = [[]]
    held = 0
    for tensor in tensors:
        count = math.prod(tensor.shape) * size
        if groups[-1] and held + count > max_shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += count
    names = [SINGLE]
    if len(groups) > 1:
        names = [
            f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)
        ]
    for name, group in zip(names, groups, strict=True):
        _write_file(folder, name, group, dtype)
    if len(groups) > 1:
        total = sum(math.prod(t.shape) for t in tensors) * size
        places = {t.name: n for n, group in zip(names, groups, strict=True) for t in group}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        files.write_json(files.path(folder) / INDEX, index)
        return [*names, INDEX]
    return names


def _write_file(folder: str, name: str, tensors: Sequence[Named], dtype: str) -> None:
    target = files.path(folder)
    temporary = target / f".{name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as file:
            _write_tensors(file, tensors, dtype)
        temporary.replace(target / name)
    finally:
        temporary.unlink(missing_ok=True)


def _write_tensors(file: BinaryIO, tensors: Sequence[Named], dtype: str) -> None:
    """The safetensors format: 8 bytes of header length, a JSON header, then the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * NUMPY[dtype].itemsize
        header[tensor.name] = {
            "dtype": _CODES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors:
        written = 0
        for piece in tensor.make():
            assert piece.shape[1:] == tensor.shape[1:], (tensor.name, piece.shape, tensor.shape)
            whole = np.ascontiguousarray(piece.astype(NUMPY[dtype], copy=False))
            file.write(whole.view(np.uint8).data)  # bfloat16 has no buffer format of its own
            written += len(piece)
        assert written == tensor.shape[0], (tensor.name, written, tensor.shape)
