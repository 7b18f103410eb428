# SPDX-License-Identifier: Apache-2.0
"""Parts of token folders: what a killed writer leaves is whole, is kept, and joins to the same."""

import json

import numpy as np
import pytest

from midjax.batches import parts, shards

RNG = np.random.default_rng(0)
# Three units; some documents have a mask.
UNITS = [
    [
        (f"{u}:{i}", 10 * i + u, RNG.integers(0, 999, RNG.integers(1, 60)), None)
        for i in range(count)
    ]
    for u, count in enumerate((20, 1, 33))
]
for u, i in ((0, 7), (0, 8), (2, 30)):
    key, size, tokens, _ = UNITS[u][i]
    UNITS[u][i] = (key, size, tokens, RNG.integers(0, 2, len(tokens)).astype(bool))
FACTS = {"dtype": "<u2", "vocab_size": 999}


class Killed(Exception):
    pass


def write_unit(folder, unit, *, key="k", documents=None, kill_at=None):
    """Writes a unit, or goes on writing it; dies before document `kill_at`."""
    writer = parts.PartWriter(
        str(folder),
        unit,
        key=lambda: key,
        dtype=np.dtype("<u2"),
        shard_tokens=200,
        notes=lambda: {"n": 1},
    )
    kept = writer.documents
    for number, document in enumerate(documents or UNITS[unit]):
        if number < kept:
            continue
        if number == kill_at:
            raise Killed
        writer.add(*document)
    return writer.close({"unit": unit}), kept


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    counts = [write_unit(folder, unit)[0] for unit in range(3)]
    manifest = parts.finish(str(folder), counts, FACTS)
    return folder, counts, manifest


def test_units_join_to_one_folder_in_their_order(whole):
    folder, counts, manifest = whole
    source = shards.TokenSource(str(folder))
    documents = [document for unit in UNITS for document in unit]
    assert source.ids() == [key for key, *_ in documents]
    assert source.text_bytes.tolist() == [size for _, size, *_ in documents]
    assert counts[1] == 1 and counts[0] > 1 and len(manifest["shards"]) == sum(counts)
    for i, (_, _, tokens, loss) in enumerate(documents):
        assert source[i].tolist() == tokens.tolist()
        expected = np.ones(len(tokens)) if loss is None else loss
        assert source.loss(i).tolist() == expected.tolist()
    masked = sum(int((~loss).sum()) for *_, loss in documents if loss is not None)
    assert manifest["tokens"] - manifest["loss_tokens"] == masked > 0
    left = {p.name for p in folder.iterdir()} - set(parts.shard_files(manifest))
    assert left == {"manifest.json", "lengths.npy", "text_bytes.npy", "offsets.npy", "ids.jsonl"}


@pytest.mark.parametrize("kill_at", [0, 1, 7, 8, 9, 19])
def test_a_killed_unit_goes_on_after_its_finished_parts(whole, tmp_path, kill_at):
    folder, counts, _ = whole
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(Killed):
        write_unit(again, 0, kill_at=kill_at)
    assert parts.unit_record(str(again), 0, lambda: "k") is None
    assert not (again / "manifest.json").exists()
    finished = [json.loads(p.read_text()) for p in again.glob("part-*.json")]
    _, kept = write_unit(again, 0)
    assert kept == sum(record["documents"] for record in finished) <= kill_at
    assert parts.unit_record(str(again), 0, lambda: "k")["unit"] == 0
    for unit in (1, 2):
        write_unit(again, unit)
    assert len(list(parts.part_records(str(again), counts))) == sum(counts)
    parts.finish(str(again), counts, FACTS)
    assert content(again) == content(folder)


def test_parts_of_another_key_and_damaged_ones_are_written_anew(tmp_path):
    write_unit(tmp_path, 0)
    assert write_unit(tmp_path, 0)[1] == len(UNITS[0])
    assert parts.unit_record(str(tmp_path), 0, lambda: "other") is None
    assert write_unit(tmp_path, 0, key="other")[1] == 0
    second = tmp_path / "tokens-00000-00001.bin"
    first_documents = json.loads((tmp_path / "part-00000-00000.json").read_text())["documents"]
    second.write_bytes(second.read_bytes()[:-1])
    assert write_unit(tmp_path, 0, key="other")[1] == first_documents


def test_a_unit_without_documents_has_no_part(tmp_path):
    assert write_unit(tmp_path, 0, documents=[()][:0] or iter(()))[0] == 0
    write_unit(tmp_path, 1)
    parts.finish(str(tmp_path), [0, 1], FACTS)
    assert len(shards.TokenSource(str(tmp_path))) == 1


def test_clear_leaves_nothing_but_what_is_not_its_own(whole):
    folder, *_ = whole
    write_unit(folder, 0)
    (folder / ".tokens-00000-00000.bin.1f.tmp").write_text("x")
    others = ("notes.md", "part-00000.jsonl", "part-00000-c000.parquet", "model.bin", "unit-1.json")
    for name in (*others, ".mine.tmp"):
        (folder / name).write_text("mine")
    (folder / "sub").mkdir()
    parts.tidy(str(folder), whole[2]["shards"])
    parts.clear(str(folder))
    assert sorted(p.name for p in folder.iterdir()) == sorted([*others, ".mine.tmp", "sub"])
