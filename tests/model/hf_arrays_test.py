# SPDX-License-Identifier: Apache-2.0
"""Slices of parts: the right numbers for each, and every row read once."""

import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import hf_arrays, tensor_files
from midjax.model.families import table

D, N, H, V = 6, 4, 2, 10


class Reader(tensor_files.Reader):
    """Tensors in memory, which counts the rows that are read."""

    def __init__(self, **tensors):
        super().__init__({})
        self._tensors, self.read = tensors, []

    def rows(self, name, begin, end):
        self.read += range(begin, end)
        return self._tensors[name][begin:end]


def part(name, *shape):
    path = (name,) if name == "embed" else ("layers", name)
    return table.Part(path, () if name == "embed" else (0,), shape)


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 25])
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("wq", numbers(D, N, H)),
        ("wo", numbers(N, H, D)),
        ("w_up", numbers(D, V)),
        ("embed", numbers(V, D)),
        ("q_bias", numbers(N, H)),
    ],
)
def test_slices_of_any_split(name, ours, piece_bytes, monkeypatch):
    """First and output axes cut in two, as fsdp and tensor do: four slices of one reading."""
    monkeypatch.setattr(hf_arrays, "_PIECE_BYTES", piece_bytes)
    one = part(name, *ours.shape)
    inner = one.input_axes
    theirs = ours
    if inner:
        theirs = ours.reshape(int(np.prod(ours.shape[:inner])), -1).T
    elif name != "embed":
        theirs = ours.reshape(-1)
    above = np.full((3, *theirs.shape[1:]), -1.0, np.float32)  # another part, fused on top
    reader = Reader(fused=np.concatenate([above, theirs]))
    place = hf_arrays.Place("fused", 3, one)
    cut = [slice(0, ours.shape[0] // 2), slice(ours.shape[0] // 2, ours.shape[0])]
    second = inner or (1 if name == "embed" else 0)
    indices = []
    for first in cut:
        for other in [slice(0, ours.shape[second] // 2), slice(ours.shape[second] // 2, None)]:
            index = [slice(None)] * ours.ndim
            index[0] = first
            if second:
                index[second] = other
            indices.append(tuple(index))
    found = hf_arrays.slices(place, indices, jnp.bfloat16, reader)
    for array, index in zip(found, indices, strict=True):
        np.testing.assert_array_equal(array, ours[index].astype(jnp.bfloat16))
    assert sorted(reader.read) == list(range(3, 3 + len(theirs)))


def test_only_the_rows_of_a_slice_are_read():
    ours = numbers(D, N, H)
    reader = Reader(q=ours.reshape(D, -1).T)
    index = (slice(None), slice(1, 3), slice(None))
    place = hf_arrays.Place("q", 0, part("wq", *ours.shape))
    (found,) = hf_arrays.slices(place, [index], np.float32, reader)
    np.testing.assert_array_equal(found, ours[index])
    assert reader.read == list(range(1 * H, 3 * H))
