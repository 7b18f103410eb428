# SPDX-License-Identifier: Apache-2.0
import gzip
import json
import tracemalloc

import corpora_reading as reader
import pytest
import zstandard

from midjax import files
from midjax.corpora import reading, text


def lines(path, *rows):
    path.write_bytes(
        b"".join(row if isinstance(row, bytes) else json.dumps(row).encode()
                 for row in [part for row in rows for part in (row, b"\n")])
    )  # fmt: skip
    return str(path)


def json_lines(path, *, bad=0, id_field="id"):
    return text.JsonLines(
        path=str(path), format=reader.TEXT, id_field=id_field, max_bad_records=bad
    )


def plain(path, separator, bad=0):
    return text.PlainText(
        path=str(path), format=reader.TEXT, separator=separator, max_bad_records=bad
    )


def test_json_lines_in_file_order_with_provenance(tmp_path):
    lines(tmp_path / "b.jsonl", {"id": "3", "text": "drei", "year": 1900})
    lines(tmp_path / "a.jsonl", {"id": 1, "text": "one"}, {"id": "2", "text": "zwei\n"})
    documents, tally = reader.read(json_lines(tmp_path / "*.jsonl"))
    assert [(d.id, d.text, d.source) for d in documents] == [
        ("1", "one", "s"), ("2", "zwei\n", "s"), ("3", "drei", "s")
    ]  # fmt: skip
    assert documents[2].meta == {"year": 1900} and documents[2].loss is None
    assert tally.documents == 3 and not tally.dropped


@pytest.mark.parametrize(("ending", "compress"), [
    (".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)
])  # fmt: skip
def test_compressed_files_and_numbered_ids(tmp_path, ending, compress):
    path = tmp_path / f"a.jsonl{ending}"
    # Two streams in one file, as `cat` and parallel compressors make them.
    path.write_bytes(compress(b'{"text": "x"}\r\n{"te') + compress(b'xt": "y"}'))
    documents, tally = reader.read(json_lines(path, id_field=None))
    assert reader.pairs(documents) == [(f"a.jsonl{ending}:1", "x"), (f"a.jsonl{ending}:2", "y")]
    assert tally.read_bytes == path.stat().st_size


def test_files_of_one_name_in_several_folders_have_different_ids(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        lines(tmp_path / folder / "part.jsonl", {"text": folder})
    for pattern in ("*/part.jsonl", "**/*.jsonl"):
        documents, _ = reader.read(json_lines(tmp_path / pattern, id_field=None))
        assert reader.pairs(documents) == [("a/part.jsonl:1", "a"), ("b/part.jsonl:1", "b")]


BAD = [
    (b"", "empty line"),
    (b"   ", "empty line"),
    (b"{", "not JSON"),
    (b"\xff\xfe{}", "invalid UTF-8"),
    (b'{"text": "\xe4", "id": 1}', "invalid UTF-8"),
    (b"[" * 100_000, "not JSON"),
    (b'{"text": "x", "id": 1' + b"1" * 5000 + b"}", "not JSON"),
    (b"[1]", "not an object"),
    (b"{}", "no id"),
    (b'{"text": 3, "id": 1}', "no string field 'text'"),
    (b'{"text": " ", "id": 1}', "empty text"),
    (b'{"text": "x"}', "no id"),
    (b'{"text": "x", "id": true}', "no id"),
    (b'{"text": "\\ud800", "id": 1}', "lone surrogate"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_counted_with_its_reason_and_skipped(tmp_path, line, reason):
    path = lines(tmp_path / "a.jsonl", {"id": 1, "text": "good"}, line, {"id": 2, "text": "fine"})
    documents, tally = reader.read(json_lines(path, bad=1))
    assert [d.text for d in documents] == ["good", "fine"]
    assert tally.dropped == {reason: 1} and tally.examples[reason].endswith("a.jsonl, line 2")


def test_one_bad_line_more_than_the_budget_is_an_error(tmp_path):
    path = lines(tmp_path / "a.jsonl", b"{", b"", {"id": 1, "text": "good"}, b"{")
    with pytest.raises(
        ValueError,
        match=r"'web': 3 bad records, and max_bad_records allows 2: 2 x not "
        r"JSON \(first at .*a.jsonl, line 1\); 1 x empty line",
    ):
        reader.read(json_lines(path, bad=2), "web")


def test_a_line_of_200_mb_is_skipped_in_bounded_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"id": 1, "text": "before"}\n{"id": 2, "text": "')
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"id": 3, "text": "after"}\n')
    config = json_lines(path, bad=1)
    tracemalloc.start()
    documents, tally = reader.read(config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [d.id for d in documents] == ["1", "3"]
    assert tally.dropped == {"longer than 67108864 bytes": 1}
    assert peak < 80e6  # the limit of a line, not the line
    with pytest.raises(ValueError, match="1 x longer than 67108864 bytes .*a.jsonl, line 2"):
        reader.read(json_lines(path))


def test_a_large_file_is_cut_at_line_ends(tmp_path, monkeypatch):
    rows = [{"id": f"{i}", "text": "ü" * (i * 37 % 101) + "."} for i in range(300)]
    path = lines(tmp_path / "a.jsonl", *rows)
    whole, _ = reader.read(json_lines(path))
    for cut in (1, 100, 101, 5000, 10**6):
        monkeypatch.setattr(reading, "CUT_BYTES", cut)
        config = json_lines(path)
        units = config.units()
        assert (len(units) == 1) == (cut == 10**6) and len({u.key for u in units}) == len(units)
        assert sum(u.size_bytes for u in units) == (tmp_path / "a.jsonl").stat().st_size
        parts, tally = reader.read(config)
        assert parts == whole and tally.read_bytes == sum(u.size_bytes for u in units)
        ids = [d.id for d in reader.read(json_lines(path, id_field=None))[0]]
        assert len(set(ids)) == 300 and ids[0] == "a.jsonl:1"


def test_a_unit_is_read_alone_and_knows_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CUT_BYTES", 1000)
    rows = [{"id": f"{i}", "text": f"number {i:04d}"} for i in range(200)]
    path = lines(tmp_path / "a.jsonl", *rows)
    config = json_lines(path)
    units = config.units()
    before = [unit.fingerprint() for unit in units]
    assert len(set(before)) == len(units) > 3
    alone = list(config.documents("s", units[2], reading.Tally(), reader.FACTS))
    assert alone and alone[0].text == f"number {int(alone[0].id):04d}"
    rows[int(alone[0].id)]["text"] = "NUMBER 0000"
    lines(tmp_path / "a.jsonl", *rows)
    after = [unit.fingerprint() for unit in config.units()]
    assert [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [2]


@pytest.mark.parametrize(("ending", "compress"), [
    (".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)
])  # fmt: skip
def test_a_truncated_stream_is_an_error_that_names_file_and_line(tmp_path, ending, compress):
    path = tmp_path / f"a.jsonl{ending}"
    data = b"".join(b'{"id": %d, "text": "%d"}\n' % (i, i * i) for i in range(99999))
    path.write_bytes(compress(data)[:-9])
    with pytest.raises(
        ValueError, match=rf"a.jsonl{ending} is damaged or was cut off, in line \d+"
    ):
        reader.read(json_lines(path))


def test_nothing_matches(tmp_path):
    with pytest.raises(FileNotFoundError, match="No file matches"):
        reader.read(json_lines(tmp_path / "no*.jsonl"))


def test_negative_budget():
    with pytest.raises(ValueError, match="JsonLines.max_bad_records must be 0 or more, got -1"):
        json_lines("a", bad=-1)


def test_plain_text_split_at_a_separator(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\nline\n<|endoftext|>\n\n<|endoftext|>\ntwo\n")
    documents, tally = reader.read(plain(path, "<|endoftext|>", bad=1))
    assert reader.pairs(documents) == [("a.txt:1", "one\nline"), ("a.txt:3", "two")]
    assert tally.dropped == {"empty text": 1}


def test_plain_text_whole_files(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CUT_BYTES", 1)  # is for lines, not for these
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n{name}")
    documents, _ = reader.read(plain(tmp_path / "*.txt", None))
    assert [d.text for d in documents] == ["a\na", "b\nb"]


@pytest.mark.parametrize("separator", [None, "---"])
def test_an_empty_file_is_counted(tmp_path, separator):
    for name, content in (("a", ""), ("b", "text\n"), ("c", "\n")):
        (tmp_path / f"{name}.txt").write_text(content)
    documents, tally = reader.read(plain(tmp_path / "*.txt", separator, bad=2))
    assert [d.text for d in documents] == ["text"] and tally.dropped == {"empty text": 2}


def test_a_document_that_is_not_utf8_or_too_long_is_dropped_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    path = tmp_path / "a.txt"
    long = b"\n".join([b"0123456789"] * 20)
    path.write_bytes(b"fine\n---\nbad \xff\nmore\n---\n" + long + b"\n---\nlast\n")
    documents, tally = reader.read(plain(path, "---", bad=2))
    assert reader.pairs(documents) == [("a.txt:1", "fine"), ("a.txt:4", "last")]
    assert tally.dropped == {"invalid UTF-8": 1, "longer than 100 bytes": 1}
    with pytest.raises(ValueError, match="1 x invalid UTF-8 .*a.txt, document 2"):
        reader.read(plain(path, "---"))
