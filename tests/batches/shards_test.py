# SPDX-License-Identifier: Apache-2.0
"""Token folders: what was written comes back, and what is damaged or half there is refused."""

import concurrent.futures
import os
import pickle

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
    names = {p.name for p in tmp_path.iterdir() if p.suffix == ".bin"}
    assert names == set(manifest["shards"]) and len(names) == 1


def test_a_damaged_shard_is_found(tmp_path):
    manifest = write(tmp_path)
    shards.verify(str(tmp_path))
    shard = tmp_path / next(iter(manifest["shards"]))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"00000.bin is damaged: sha256"):
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
    with pytest.raises(ValueError, match="lengths.npy holds 3 of 40"):
        shards.TokenSource(str(tmp_path / "a"))


def test_large_vocabularies_take_four_bytes(tmp_path):
    assert shards.token_dtype(1 << 16).itemsize == 2
    assert shards.token_dtype((1 << 16) + 1).itemsize == 4
    documents = [("a", 3, np.array([70_000, 1, 2])), ("b", 3, np.array([3]))]
    shards.write(str(tmp_path), documents, facts={"vocab_size": 100_000}, shard_tokens=2)
    source = shards.TokenSource(str(tmp_path))
    assert source[0].tolist() == [70_000, 1, 2] and source[1].tolist() == [3]


def test_any_piece_of_a_document_is_read_alone(tmp_path):
    write(tmp_path)
    source = shards.TokenSource(str(tmp_path))
    for i in (0, 12, 39):
        tokens = DOCUMENTS[i][2]
        for start in range(len(tokens)):
            for count in range(len(tokens) - start + 1):
                piece = source.read(i, start, count)
                assert piece.dtype == np.uint16
                assert piece.tolist() == tokens[start : start + count].tolist()
    assert source.offsets.tolist() == np.cumsum([0] + [len(t) for _, _, t in DOCUMENTS]).tolist()
    with pytest.raises(IndexError):
        source[40]
    with pytest.raises(AssertionError):
        source.read(0, 0, 2)  # has one token


def test_loss_masks_come_back_beside_documents_without_one(tmp_path):
    mask = np.arange(len(DOCUMENTS[5][2])) % 3 == 0
    documents = [(*d, mask) if i == 5 else d for i, d in enumerate(DOCUMENTS)]
    manifest = shards.write(str(tmp_path), documents, facts={"vocab_size": 200}, shard_tokens=100)
    source = shards.TokenSource(str(tmp_path))
    assert source.has_loss and not shards.TokenSource(str(write_plain(tmp_path))).has_loss
    assert source.loss(5).tolist() == mask.tolist() and source.loss(5).dtype == np.uint8
    assert source.loss(5, 2, 3).tolist() == mask[2:5].tolist()
    for i in (0, 4, 6, 39):
        assert source.loss(i).tolist() == [1] * len(DOCUMENTS[i][2])
    assert [bool(s["loss"]) for s in manifest["shards"].values()].count(True) == 1
    assert manifest["tokens"] - manifest["loss_tokens"] == (~mask).sum()


def write_plain(tmp_path):
    write(tmp_path / "plain")
    return tmp_path / "plain"


def test_a_mask_changes_the_content_hash(tmp_path):
    mask = np.zeros(1, bool)
    documents = [(*DOCUMENTS[0], mask), *DOCUMENTS[1:]]
    one = shards.write(str(tmp_path), documents, facts={"vocab_size": 200}, shard_tokens=100)
    assert one["content_hash"] != write(tmp_path / "2")["content_hash"]


def test_where_documents_end_changes_the_content_hash(tmp_path):
    """The same tokens in the same file, cut elsewhere."""
    hashes = []
    for cut in (3, 4):
        documents = [("a", 1, np.arange(cut)), ("b", 1, np.arange(cut, 9))]
        made = shards.write(str(tmp_path), documents, facts={"vocab_size": 9}, shard_tokens=100)
        hashes.append(made["content_hash"])
    assert hashes[0] != hashes[1]


def test_a_source_is_pickled_as_its_path(tmp_path):
    write(tmp_path)
    source = shards.TokenSource(str(tmp_path))
    source[3]
    data = pickle.dumps(source)
    assert len(data) < 300
    assert pickle.loads(data)[3].tolist() == source[3].tolist()  # noqa: S301


def test_few_files_stay_open_and_threads_share_them(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_POOL", shards._Pool(2))
    manifest = write(tmp_path, shard_tokens=20)
    source = shards.TokenSource(str(tmp_path))

    def opened():
        links = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
        return {link for link in links if link.endswith(".bin") and str(tmp_path) in link}

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        order = [i for _ in range(20) for i in range(40)]
        read = list(pool.map(lambda i: source[i].tolist(), order))
    assert read == [DOCUMENTS[i][2].tolist() for i in order]
    assert len(manifest["shards"]) > 20 and len(opened()) <= 2


def test_a_folder_that_is_written_anew_is_read_anew(tmp_path):
    write(tmp_path)
    assert shards.TokenSource(str(tmp_path))[3].tolist() == DOCUMENTS[3][2].tolist()
    other = [(key, size, tokens + 1) for key, size, tokens in DOCUMENTS]
    shards.write(str(tmp_path), other, facts={"vocab_size": 200}, shard_tokens=100)
    assert shards.TokenSource(str(tmp_path))[3].tolist() == other[3][2].tolist()


def test_missing_and_cut_shards_and_other_layouts_are_told(tmp_path):
    manifest = write(tmp_path)
    first, second, *_ = manifest["shards"]
    (tmp_path / first).unlink()
    (tmp_path / second).write_bytes(b"12")
    source = shards.TokenSource(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{first} is missing"):
        source[0]
    document = manifest["shards"][first]["documents"]
    with pytest.raises(ValueError, match=f"{second} is damaged: 2 bytes, not "):
        source[document]
    files.write_json(tmp_path / "manifest.json", manifest | {"format": 1})
    with pytest.raises(ValueError, match="has the layout 1, and this midjax reads 2"):
        shards.TokenSource(str(tmp_path))


def test_ids_with_any_characters_come_back(tmp_path):
    keys = ["a\u2028b", "line\nbreak", "ü", "\ud800", ""]
    documents = [(key, 1, np.array([1])) for key in keys]
    shards.write(str(tmp_path), documents, facts={"vocab_size": 9}, shard_tokens=100)
    source = shards.TokenSource(str(tmp_path))
    assert source.ids() == keys and source.ids_of([3, 0, 3]) == {0: keys[0], 3: keys[3]}
    assert source.ids_of([]) == {}
