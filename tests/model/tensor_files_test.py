# SPDX-License-Identifier: Apache-2.0
"""Safetensors written as a stream and read by slices, against the library."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from midjax.model import tensor_files

ARRAYS = {
    name: np.random.default_rng(i).standard_normal(shape).astype(np.float32)
    for i, (name, shape) in enumerate({"a": (4, 6), "b": (8, 6), "c": (5,), "d": (3, 6)}.items())
}
NAMED = [tensor_files.Named(n, x.shape, lambda x=x: [x[:1], x[1:]]) for n, x in ARRAYS.items()]


def test_one_file_holds_what_the_library_reads(tmp_path):
    assert tensor_files.write_shards(str(tmp_path), NAMED, "float32") == ["model.safetensors"]
    found = safetensors.numpy.load_file(str(tmp_path / "model.safetensors"))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_shards_and_their_index(tmp_path):
    """A file is closed before it would pass the limit; a larger tensor has one to itself."""
    names = tensor_files.write_shards(str(tmp_path), NAMED, "float32", max_shard_bytes=130)
    assert names[-1] == "model.safetensors.index.json"
    index = json.loads((tmp_path / names[-1]).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in ARRAYS.values())
    places = index["weight_map"]
    groups = [
        [n for n in ARRAYS if places[n] == f"model-0000{i}-of-00003.safetensors"] for i in (1, 2, 3)
    ]
    assert groups == [["a"], ["b"], ["c", "d"]]
    with tensor_files.opened(str(tmp_path)) as reader:
        assert reader.names == ARRAYS.keys() and reader.dtype(ARRAYS) == "float32"
        assert reader.shape("b") == (8, 6)
        np.testing.assert_array_equal(reader.rows("b", 2, 5), ARRAYS["b"][2:5])
        assert reader.equal("a", "a") and not reader.equal("a", "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_bfloat16_is_rounded_to_nearest_even(tmp_path):
    tensor_files.write_shards(str(tmp_path), NAMED, "bfloat16")
    with tensor_files.opened(str(tmp_path)) as reader:
        assert reader.dtype(ARRAYS) == "bfloat16"
        want = ARRAYS["a"].astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(reader.rows("a", 0, 4), want)


def test_pieces_are_made_one_at_a_time(tmp_path):
    alive, most = set(), []

    class Watched(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def make(array):
        made = np.array(array).view(Watched)
        alive.add(id(made))
        most.append(len(alive))
        return made

    def pieces(array):
        for row in range(len(array)):
            yield make(array[row : row + 1])

    named = [tensor_files.Named(n, x.shape, lambda x=x: pieces(x)) for n, x in ARRAYS.items()]
    tensor_files.write_shards(str(tmp_path), named, "float32")
    # The one being written, and the next being made.
    assert len(most) == sum(map(len, ARRAYS.values())) and max(most) <= 2


def test_a_failure_leaves_no_file(tmp_path):
    def fail():
        raise OSError("disk")

    named = [*NAMED, tensor_files.Named("e", (2,), fail)]
    with pytest.raises(OSError, match="disk"):
        tensor_files.write_shards(str(tmp_path), named, "float32")
    assert not list(tmp_path.iterdir())


def test_the_same_tensor_in_two_files(tmp_path):
    for name in ("x.safetensors", "y.safetensors"):
        safetensors.numpy.save_file({"a": ARRAYS["a"]}, str(tmp_path / name))
    index = {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    (tmp_path / tensor_files.INDEX).write_text(json.dumps(index))
    with (
        pytest.raises(ValueError, match="holds a in more than one file"),
        tensor_files.opened(str(tmp_path)),
    ):
        pass
