# SPDX-License-Identifier: Apache-2.0
"""Safetensors, read by slices and written as a stream. No pickle is ever read.

folder --opened--> Reader: names, shapes, slices        write_shards --> model-00001-of-00003...
"""

import contextlib
import dataclasses
import json
import math
import os
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
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
# float16 fits into float32 exactly.
_READ_AS = {"F32": "float32", "F16": "float32", "BF16": "bfloat16"}


# ---- reading ----


class Reader:
    """The tensors of a folder. Nothing is read before it is asked for.

    Attributes:
      names: of all tensors.
      dtype: "bfloat16" where every tensor is that, else "float32", which holds all others exactly.
    """

    def __init__(self, holders: Mapping[str, Any]) -> None:
        self._holders = holders
        self.names = frozenset(holders)
        codes = {file.get_slice(name).get_dtype() for name, file in holders.items()}
        if not codes <= set(_READ_AS):
            raise ValueError(
                f"Tensors of type {', '.join(sorted(codes - set(_READ_AS)))} are not supported; "
                f"supported: {', '.join(_READ_AS)}. Quantized weights must be dequantized first."
            )
        self.dtype = "bfloat16" if codes == {"BF16"} else "float32"

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its header."""
        return tuple(self._holders[name].get_slice(name).get_shape())

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """Rows [begin, end) along the first axis."""
        return self._holders[name].get_slice(name)[begin:end]

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
        holders: dict[str, Any] = {}
        for name in weight_files(folder):
            try:
                file = stack.enter_context(safetensors.safe_open(name, framework="numpy"))
            except safetensors.SafetensorError as error:
                raise ValueError(
                    f"{name} is damaged or no safetensors file: {error}. Fetch it again."
                ) from error
            if twice := sorted(holders.keys() & set(file.keys())):
                raise ValueError(
                    f"{folder} holds {', '.join(twice[:3])} in more than one file. Two exports "
                    "are mixed up there: fetch it again into an empty folder."
                )
            holders |= dict.fromkeys(file.keys(), file)
        yield Reader(holders)


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
    """A tensor to be written: what its header says, and how to make its numbers when it is due."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def write_shards(
    folder: str,
    tensors: Sequence[Named],
    dtype: str,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[str]:
    """Writes tensors in files of at most `max_shard_bytes`, one tensor in memory at a time.

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
        array = tensor.make()
        assert array.shape == tensor.shape, (tensor.name, array.shape, tensor.shape)
        whole = np.ascontiguousarray(array.astype(NUMPY[dtype], copy=False))
        file.write(whole.view(np.uint8).data)  # bfloat16 has no buffer format of its own
