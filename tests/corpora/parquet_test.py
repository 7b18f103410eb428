# SPDX-License-Identifier: Apache-2.0
import datetime
import subprocess
import sys

import corpora_reading as reader
import fake_bucket
import pyarrow
import pyarrow.parquet
import pytest

from midjax import files
from midjax.corpora import formats, parquet, reading


def rows(count, start=0):
    return [
        {"id": f"d{i}", "text": f"document {i} " + "ü" * (i * 13 % 31), "meta": {"year": 1900 + i},
         "tags": ["a", str(i)], "when": datetime.date(2026, 1, 1 + i % 28)}
        for i in range(start, start + count)
    ]  # fmt: skip


def write(path, records, **options):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, **options)


def config(path, *, columns=None, id_field="id", bad=0, form=reader.TEXT):
    return parquet.Parquet(
        path=str(path), format=form, id_field=id_field, max_bad_records=bad, columns=columns
    )


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
def test_rows_are_those_that_pyarrow_reads(tmp_path, compression):
    write(tmp_path / "b.parquet", rows(50, 100), compression=compression, row_group_size=7)
    write(tmp_path / "a.parquet", rows(100), compression=compression, use_dictionary=False)
    documents, tally = reader.read(config(tmp_path / "*.parquet"))
    expected = [
        row for name in "ab" for row in pyarrow.parquet.read_table(
            tmp_path / f"{name}.parquet").to_pylist()
    ]  # fmt: skip
    assert reader.pairs(documents) == [(row["id"], row["text"]) for row in expected]
    assert documents[3].meta == {
        "meta": {"year": 1903}, "tags": ["a", "3"], "when": "2026-01-04"
    }  # fmt: skip
    assert tally.documents == 150 and not tally.dropped
    assert tally.read_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_units_are_ranges_of_row_groups(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write(path, rows(200), row_group_size=10, compression="none")
    whole, _ = reader.read(config(path))
    numbered, _ = reader.read(config(path, id_field=None))
    monkeypatch.setattr(reading, "CUT_BYTES", 1500)
    units = config(path).units()
    assert len(units) > 3 and len({unit.key for unit in units}) == len(units)
    assert reader.read(config(path))[0] == whole
    assert reader.read(config(path, id_field=None))[0] == numbered
    assert [d.id for d in numbered] == [f"a.parquet:{i}" for i in range(1, 201)]
    tally = reading.Tally()
    alone = list(config(path).documents("s", units[1], tally, reader.FACTS))
    assert alone == whole[units[1].payload["row"] :][: len(alone)] and len(alone) < 100
    assert tally.read_bytes == units[1].size_bytes

    before = [unit.fingerprint() for unit in units]
    changed = rows(200)
    changed[int(alone[0].id[1:])]["text"] = changed[int(alone[0].id[1:])]["text"][::-1]
    write(path, changed, row_group_size=10, compression="none")
    after = [unit.fingerprint() for unit in config(path).units()]
    assert before[1] != after[1]
    # A new name of a column changes the footer alone, and all units.
    write(path, [{"other" if k == "meta" else k: v for k, v in row.items()} for row in changed],
          row_group_size=10, compression="none")  # fmt: skip
    renamed = [unit.fingerprint() for unit in config(path).units()]
    assert not set(renamed) & set(after)


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    write(tmp_path / "a.parquet", rows(3))
    documents, _ = reader.read(config(tmp_path / "a.parquet", columns=("tags",)))
    assert documents[1].meta == {"tags": ["a", "1"]} and documents[1].id == "d1"
    joined = formats.Template(template="{{ meta.year }}: {{ text }}")
    documents, _ = reader.read(config(tmp_path / "a.parquet", columns=(), form=joined))
    assert documents[1].meta == {} and documents[1].text.startswith("1901: document 1")


def test_another_schema(tmp_path):
    write(tmp_path / "a.parquet", rows(3))
    write(tmp_path / "b.parquet", [{"id": "x", "body": "y"}])
    with pytest.raises(
        ValueError, match=r"b.parquet has no column 'text'; it has \['id', 'body'\]"
    ):
        reader.read(config(tmp_path / "*.parquet"))
    with pytest.raises(ValueError, match="has no column 'key'; it has"):
        reader.read(config(tmp_path / "a.parquet", id_field="key"))
    with pytest.raises(ValueError, match="has no column 'lang'; it has"):
        reader.read(config(tmp_path / "a.parquet", columns=("lang",)))
    write(tmp_path / "b.parquet", [{"id": "x", "text": 3}])
    documents, tally = reader.read(config(tmp_path / "*.parquet", bad=1))
    assert len(documents) == 3 and tally.dropped == {"no string field 'text'": 1}
    with pytest.raises(
        ValueError, match=r"1 x no string field 'text' \(first at .*b.parquet, row 1"
    ):
        reader.read(config(tmp_path / "*.parquet"))


def test_null_and_binary_texts(tmp_path):
    table = pyarrow.table({
        "id": ["a", "b", "c", None],
        "text": pyarrow.array([None, "ü".encode(), b"\xff", b"x"], pyarrow.binary()),
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    documents, tally = reader.read(config(tmp_path / "a.parquet", bad=3))
    assert reader.pairs(documents) == [("b", "ü")]
    assert tally.dropped == {"no string field 'text'": 1, "invalid UTF-8": 1, "no id": 1}


def test_a_decompression_bomb(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write(path, [{"id": "x", "text": "y" * 3_000_000}], use_dictionary=False, compression="zstd")
    assert len(reader.read(config(path))[0]) == 1
    monkeypatch.setattr(files, "BOMB_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="a.parquet: .* of the column 'text' expand to 3.*bomb"):
        reader.read(config(path))


def test_files_in_a_bucket(tmp_path, monkeypatch):
    bucket = fake_bucket.install(monkeypatch)
    for name in "ab":
        write(tmp_path / f"{name}.parquet", rows(20), row_group_size=5)
        bucket.pipe_file(f"/b/dir/{name}.parquet", (tmp_path / f"{name}.parquet").read_bytes())
    there = config("gs://b/dir/*.parquet")
    here = config(tmp_path / "*.parquet")
    assert reader.read(there)[0] == reader.read(here)[0]
    assert [u.fingerprint() for u in there.units()] == [u.fingerprint() for u in here.units()]


@pytest.mark.parametrize("cut", [lambda data: data[:-100], lambda data: b"", lambda data: b"PAR1x"])
def test_a_file_that_is_cut_off(tmp_path, cut):
    path = tmp_path / "a.parquet"
    write(path, rows(100))
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(ValueError, match="a.parquet is not a whole Parquet file"):
        reader.read(config(path))


def test_a_damaged_page(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, rows(1000), compression="zstd")
    data = bytearray(path.read_bytes())
    data[100:2000] = b"\xff" * 1900
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="a.parquet is not a whole Parquet file"):
        reader.read(config(path))


def test_one_huge_row_group_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "a.parquet"
    writer = pyarrow.parquet.ParquetWriter(
        path, pyarrow.schema({"text": pyarrow.string()}), use_dictionary=False, compression="snappy"
    )
    # 400 MB of text that compresses well, in one row group.
    table = pyarrow.table({"text": [f"{i} " + "x" * 4000 for i in range(100_000)]})
    writer.write_table(table, row_group_size=100_000)
    writer.close()
    code = (
        "import resource, sys; sys.path.insert(0, 'tests')\n"
        "import corpora_reading as reader; from midjax.corpora import parquet, reading\n"
        "config = parquet.Parquet(path=sys.argv[1], format=reader.TEXT, id_field=None,\n"
        "                         max_bad_records=0, columns=None)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "(unit,) = config.units()\n"
        "print(sum(1 for _ in config.documents('s', unit, reading.Tally(), reader.FACTS)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    count, grown_kb = map(int, done.stdout.split())
    assert count == 100_000 and grown_kb < 150_000
