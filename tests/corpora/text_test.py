# SPDX-License-Identifier: Apache-2.0
import gzip
import json

import pytest

from midjax.corpora import text


def lines(path, *rows):
    path.write_bytes(
        b"".join(
            row if isinstance(row, bytes) else json.dumps(row).encode()
            for row in [part for row in rows for part in (row, b"\n")]
        )
    )
    return str(path)


def source(path, *, bad=0, id_field="id"):
    return text.JsonLines(path=path, text_field="text", id_field=id_field, max_bad_lines=bad)


def read(config, name="s"):
    tally = text.Tally()
    return list(config.documents(name, tally)), tally


def test_json_lines_in_file_order_with_provenance(tmp_path):
    lines(tmp_path / "b.jsonl", {"id": "3", "text": "drei", "year": 1900})
    lines(tmp_path / "a.jsonl", {"id": 1, "text": "one"}, {"id": "2", "text": "zwei\n"})
    documents, tally = read(source(str(tmp_path / "*.jsonl")))
    assert [(d.id, d.text, d.source) for d in documents] == [
        ("1", "one", "s"), ("2", "zwei\n", "s"), ("3", "drei", "s")
    ]  # fmt: skip
    assert documents[2].meta == {"year": 1900}
    assert tally.documents == 3 and not tally.dropped


def test_gzip_and_numbered_ids(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}\r\n{"text": "y"}'))
    documents, _ = read(source(str(path), id_field=None))
    assert [(d.id, d.text) for d in documents] == [("a.jsonl.gz:1", "x"), ("a.jsonl.gz:2", "y")]


BAD = [
    (b"", "empty line"),
    (b"   ", "empty line"),
    (b"{", "not JSON"),
    (b"\xff\xfe{}", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"[1]", "not an object"),
    (b"{}", "no string field 'text'"),
    (b'{"text": 3, "id": 1}', "no string field 'text'"),
    (b'{"text": " ", "id": 1}', "empty text"),
    (b'{"text": "x"}', "no id"),
    (b'{"text": "\\ud800", "id": 1}', "lone surrogate"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_counted_with_its_reason_and_skipped(tmp_path, line, reason):
    path = lines(tmp_path / "a.jsonl", {"id": 1, "text": "good"}, line, {"id": 2, "text": "fine"})
    documents, tally = read(source(path, bad=1))
    assert [d.text for d in documents] == ["good", "fine"]
    assert tally.dropped == {reason: 1} and tally.examples[reason].endswith("a.jsonl:2")


def test_one_bad_line_more_than_the_budget_is_an_error(tmp_path):
    path = lines(tmp_path / "a.jsonl", b"{", b"", {"id": 1, "text": "good"}, b"{")
    with pytest.raises(
        ValueError,
        match=r"'web': 3 bad lines, and max_bad_lines allows 2: 2 x not "
        r"JSON \(first at .*a.jsonl:1\); 1 x empty line",
    ):
        read(source(path, bad=2), "web")


def test_a_truncated_gzip_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    data = b"".join(b'{"id": %d, "text": "%d"}\n' % (i, i * i) for i in range(9999))
    path.write_bytes(gzip.compress(data)[:-999])
    with pytest.raises(ValueError, match="is damaged after line"):
        read(source(str(path)))


def test_nothing_matches(tmp_path):
    with pytest.raises(FileNotFoundError, match="No file matches"):
        read(source(str(tmp_path / "no*.jsonl")))


def test_plain_text_split_at_a_separator(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\nline\n<|endoftext|>\n\n<|endoftext|>\ntwo\n")
    documents, tally = read(text.PlainText(path=str(path), separator="<|endoftext|>"))
    assert [(d.id, d.text) for d in documents] == [("a.txt:1", "one\nline"), ("a.txt:3", "two")]
    assert tally.dropped == {"empty text": 1}


def test_plain_text_whole_files(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n{name}")
    documents, _ = read(text.PlainText(path=str(tmp_path / "*.txt"), separator=None))
    assert [d.text for d in documents] == ["a\na", "b\nb"]


def test_plain_text_that_is_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\n")
    with pytest.raises(ValueError, match=r"a.txt:2 is not UTF-8"):
        read(text.PlainText(path=str(tmp_path / "a.txt"), separator=None))
