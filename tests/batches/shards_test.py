# SPDX-License-Identifier: Apache-2.0
"""Token folders: what was written comes back, and what is damaged or half there is refused."""

import numpy as np
import pytest

from midjax import files
from midjax.batches import shards

DOCUMENTS = [(f"id {i}", 10 * i, np.arange(i, 3 * i + 1)) for i in range(40)]


def write(folder, **kwargs):
    given = {"facts": {"vocab_size": 200, "source": "s"}, "shard_tokens": 100} | kwargs
    return shards.write(str(folder), iter(DOCUMENTS), **given)


def test_documents_come_back_in_any_order(tmp_path):
    manifest = write(tmp_path)
    source = shards.TokenSource(str(tmp_path))
    assert len(manifest["shards"]) > 5 and len(source) == 40
    for i in (39, 0, 17, 5, 38):
        key, size, tokens = DOCUMENTS[i]
        assert source[i].dtype == np.int32 and source[i].tolist() == tokens.tolist()
        assert source.ids()[i] == key and source.text_bytes[i] == size
        assert source.lengths[i] == len(tokens)
    assert manifest["tokens"] == sum(len(t) for _, _, t in DOCUMENTS)
    assert manifest["source"] == "s"


def test_the_content_hash_is_a_function_of_the_content(tmp_path):
    one, two = write(tmp_path / "1"), write(tmp_path / "2")
    assert one["content_hash"] == two["content_hash"]
    other = shards.write(
        str(tmp_path / "3"), DOCUMENTS[:-1], facts={"vocab_size": 200}, shard_tokens=100
    )
    assert other["content_hash"] != one["content_hash"]


def test_rewriting_leaves_no_shard_of_the_older_folder(tmp_path):
    write(tmp_path)
    manifest = write(tmp_path, shard_tokens=10**9)
    names = {p.name for p in tmp_path.iterdir() if p.name.endswith("array_record")}
    assert names == set(manifest["shards"]) and len(names) == 1


def test_a_damaged_shard_is_found(tmp_path):
    manifest = write(tmp_path)
    shards.verify(str(tmp_path))
    shard = tmp_path / next(iter(manifest["shards"]))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"array_record is damaged: sha256"):
        shards.verify(str(tmp_path))


def test_half_a_folder_is_no_token_folder(tmp_path):
    """The manifest is written last, so a killed writer leaves a folder without one."""

    def killed():
        yield DOCUMENTS[0]
        raise KeyboardInterrupt

    write(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        shards.write(str(tmp_path), killed(), facts={"vocab_size": 200}, shard_tokens=100)
    with pytest.raises(FileNotFoundError, match="not a finished token folder"):
        shards.TokenSource(str(tmp_path))


def test_columns_of_another_folder_are_refused(tmp_path):
    write(tmp_path / "a")
    shards.write(str(tmp_path / "b"), DOCUMENTS[:3], facts={"vocab_size": 200}, shard_tokens=100)
    lengths = (tmp_path / "b" / "lengths.npy").read_bytes()
    files.write_bytes(tmp_path / "a" / "lengths.npy", lengths)
    with pytest.raises(ValueError, match="3 lengths for 40 documents"):
        shards.TokenSource(str(tmp_path / "a"))


def test_large_vocabularies_take_four_bytes(tmp_path):
    assert shards.token_dtype(1 << 16).itemsize == 2
    assert shards.token_dtype((1 << 16) + 1).itemsize == 4
    documents = [("a", 3, np.array([70_000, 1, 2])), ("b", 3, np.array([3]))]
    shards.write(str(tmp_path), documents, facts={"vocab_size": 100_000}, shard_tokens=2)
    source = shards.TokenSource(str(tmp_path))
    assert source[0].tolist() == [70_000, 1, 2] and source[1].tolist() == [3]
