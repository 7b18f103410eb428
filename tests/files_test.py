# SPDX-License-Identifier: Apache-2.0
import gzip
import hashlib
import pathlib

import pytest

import midjax
from midjax import files


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a" / "b.json"
    files.write_json(target, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(target, {"x": float("nan")})
    assert files.read_json(target) == {"x": 1}
    assert [p.name for p in target.parent.iterdir()] == ["b.json"]


def test_a_write_that_dies_halfway_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "b.txt"
    files.write_text(target, "old")
    monkeypatch.setattr(
        type(files.path(target)), "replace", lambda *_: (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError):
        files.write_text(target, "new")
    assert target.read_text() == "old"


def test_read_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x.json is not JSON"):
        files.read_json(tmp_path / "x.json")


def test_match_sorts_and_skips_folders(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).write_text("")
    (tmp_path / "c").mkdir()
    assert [pathlib.Path(n).name for n in files.match(str(tmp_path / "*"))] == ["a", "b"]


def test_package_files_are_found_from_anywhere():
    here = pathlib.Path(midjax.__file__).parent
    assert str(files.path("package:demo_data/README.md")) == str(here / "demo_data" / "README.md")
    assert len(files.match("package:demo_data/*.train.jsonl.gz")) == 3


def test_sha256(tmp_path):
    data = bytes(range(256)) * 9999
    (tmp_path / "x").write_bytes(data)
    assert files.sha256_of(tmp_path / "x") == files.sha256(data) == hashlib.sha256(data).hexdigest()


def test_lines_of_plain_and_gzip_files_are_the_same(tmp_path):
    data = "one\r\nzwei ü\n\nlast".encode()
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(data))
    expected = [b"one", "zwei ü".encode(), b"", b"last"]
    for name in ("a.txt", "a.txt.gz"):
        assert list(files.lines(str(tmp_path / name))) == expected


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"x" * 10_000_000))
    with pytest.raises(ValueError, match=r"bomb.gz:1 is longer than 1000 bytes"):
        list(files.lines(str(tmp_path / "bomb.gz")))
