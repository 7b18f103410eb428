# SPDX-License-Identifier: Apache-2.0
import json

import corpora_reading as reader
import grain
import pytest
from array_record.python import array_record_module

from midjax.corpora import array_record, reading

OPTIONS = pytest.mark.parametrize("options", ["group_size:1", "group_size:16,zstd:3", ""])


def write(path, entries, options="group_size:1"):
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for entry in entries:
        writer.write(entry)
    writer.close()


def config(path, payload, *, id_field=None, bad=0):
    return array_record.ArrayRecord(
        path=str(path), format=reader.TEXT, payload=payload, id_field=id_field, max_bad_records=bad
    )


TEXTS = [f"document {i} " + "ü" * (i * 13 % 31) for i in range(300)]


@OPTIONS
def test_texts_are_those_that_grain_reads(tmp_path, options):
    write(tmp_path / "b.array_record", [t.encode() for t in TEXTS[200:]], options)
    write(tmp_path / "a.array_record", [t.encode() for t in TEXTS[:200]], options)
    documents, tally = reader.read(config(tmp_path / "*.array_record", "text"))
    source = grain.sources.ArrayRecordDataSource(
        [str(tmp_path / "a.array_record"), str(tmp_path / "b.array_record")]
    )
    assert [d.text for d in documents] == [source[i].decode() for i in range(len(source))] == TEXTS
    assert documents[0].id == "a.array_record:1" and documents[-1].id == "b.array_record:100"
    assert tally.read_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_json_entries_and_bad_ones(tmp_path):
    good = json.dumps({"id": "x", "text": "y", "lang": "en"}).encode()
    write(tmp_path / "a.array_record", [good, b"{", b'"\xff"', b"[]", b'{"id": "z"}', b""])
    documents, tally = reader.read(
        config(tmp_path / "a.array_record", "json", id_field="id", bad=5)
    )
    assert reader.pairs(documents) == [("x", "y")] and documents[0].meta == {"lang": "en"}
    assert tally.dropped == {
        "not JSON": 1, "invalid UTF-8": 1, "not an object": 1, "no string field 'text'": 1,
        "empty line": 1,
    }  # fmt: skip
    assert tally.examples["not JSON"].endswith("a.array_record, record 2")


def test_units_are_ranges_of_entries(tmp_path, monkeypatch):
    write(tmp_path / "a.array_record", [t.encode() for t in TEXTS])
    whole, _ = reader.read(config(tmp_path / "a.array_record", "text"))
    size = (tmp_path / "a.array_record").stat().st_size
    monkeypatch.setattr(reading, "CUT_BYTES", size // 4)
    units = config(tmp_path / "a.array_record", "text").units()
    assert len(units) == 4 and len({unit.key for unit in units}) == 4
    assert reader.read(config(tmp_path / "a.array_record", "text"))[0] == whole
    alone = config(tmp_path / "a.array_record", "text").documents(
        "s", units[3], reading.Tally(), reader.FACTS
    )
    assert list(alone) == whole[units[3].payload["begin"] : units[3].payload["end"]]
    before = [unit.fingerprint() for unit in units]
    write(tmp_path / "a.array_record", [t.encode() for t in [*TEXTS[:-1], "other"]])
    after = [
        unit.fingerprint() for unit in config(tmp_path / "a.array_record", "text").units()
    ]  # fmt: skip
    assert not set(before) & set(after)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_off(tmp_path, share):
    path = tmp_path / "a.array_record"
    write(path, [t.encode() for t in TEXTS])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="a.array_record is not a whole ArrayRecord file"):
        reader.read(config(path, "text"))


def test_a_damaged_entry(tmp_path):
    path = tmp_path / "a.array_record"
    write(path, [t.encode() for t in TEXTS], "group_size:1,uncompressed")
    data = bytearray(path.read_bytes())
    middle = data.index(TEXTS[150].encode())
    data[middle : middle + 10] = b"\x00" * 10
    path.write_bytes(bytes(data))
    tally, (unit,) = reading.Tally(), config(path, "text").units()
    with pytest.raises(ValueError, match=r"a.array_record is not a whole ArrayRecord file: .*hash"):
        list(config(path, "text").documents("s", unit, tally, reader.FACTS))
    assert 64 < tally.documents <= 150


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="No file matches"):
        config(tmp_path / "a", "text").units()
