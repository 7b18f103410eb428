# SPDX-License-Identifier: Apache-2.0
import gzip
import hashlib
import importlib.util
import pathlib
import random
import subprocess
import sys

import fake_bucket
import pytest
import zstandard

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
    (tmp_path / "a.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(data))
    for name in ("a.txt", "a.txt.gz", "a.txt.zst"):
        found = list(files.lines(str(tmp_path / name)))
        assert [line.data for line in found] == expected
        assert [line.number for line in found] == [1, 2, 3, 4]


def test_lines_across_the_borders_of_what_is_read_at_once(tmp_path):
    rng = random.Random(0)
    data = b"".join(b"x" * rng.choice((0, 1, 5000, 700_000)) + b"\n" for _ in range(40))
    (tmp_path / "a").write_bytes(data)
    assert [line.data for line in files.lines(str(tmp_path / "a"))] == data.split(b"\n")[:-1]


COMPRESS = pytest.mark.parametrize(("ending", "compress"), [
    ("gz", gzip.compress), ("zst", zstandard.ZstdCompressor().compress)
])  # fmt: skip


@COMPRESS
def test_a_line_without_end_does_not_fill_the_memory(tmp_path, ending, compress):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(compress(b"first\n" + b"x" * 300_000_000 + b"\nlast\n"))
    code = (
        "import resource, sys; from midjax import files; import pyarrow\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print([(line.data, line.reason) for line in files.lines(sys.argv[1])])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    found, grown_kb = done.stdout.splitlines()
    assert found == "[(b'first', ''), (None, 'longer than 67108864 bytes'), (b'last', '')]"
    assert int(grown_kb) < 100_000  # of 300 MB


@COMPRESS
def test_a_decompression_bomb_is_an_error(tmp_path, monkeypatch, ending, compress):
    monkeypatch.setattr(files, "BOMB_BYTES", 5_000_000)
    path = tmp_path / f"bomb.{ending}"
    path.write_bytes(compress(b"{}\n" * 4_000_000))
    with pytest.raises(ValueError, match=rf"bomb.{ending} expands to more than 5000000 bytes"):
        for _ in files.lines(str(path)):
            pass
    # What compresses as text does may be as large as it likes.
    rng = random.Random(0)
    data = b"".join(b"%d " % rng.randrange(99999) for _ in range(1_000_000))
    path.write_bytes(compress(data))
    assert len(data) > files.BOMB_BYTES and len(list(files.lines(str(path)))) == 1


@COMPRESS
def test_a_damaged_stream_names_file_and_line(tmp_path, ending, compress):
    data = compress(b"".join(b"%d\n" % (i * i) for i in range(300_000)))
    broken = bytearray(data)
    broken[len(data) // 2] ^= 255
    for name, content in (("cut", data[: len(data) // 2]), ("broken", bytes(broken))):
        path = tmp_path / f"{name}.{ending}"
        path.write_bytes(content)
        seen = 0
        with pytest.raises(ValueError, match=rf"{name}.{ending} is damaged or was cut off, in li"):
            for line in files.lines(str(path)):
                seen = line.number
        assert seen > 1000  # what comes before is given


@COMPRESS
def test_a_stream_that_is_cut_anywhere_is_an_error(tmp_path, ending, compress):
    path = tmp_path / f"a.{ending}"
    data = compress(b"some text\n" * 30)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"is damaged or was cut off, in line 1"):
            list(files.lines(str(path)))
    path.write_bytes(data)
    assert len(list(files.lines(str(path)))) == 30


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    found = [line.data for line in files.lines(str(tmp_path / "a"))]
    assert found == [b"one", b"\xef\xbb\xbftwo"]


def test_other_compressions_are_told_apart(tmp_path):
    (tmp_path / "a.jsonl.xz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a.jsonl.xz: .xz is not read; .gz, .zst and plain text"):
        list(files.lines(str(tmp_path / "a.jsonl.xz")))


def test_ranges_at_line_ends_give_every_line_once(tmp_path):
    rng = random.Random(0)
    data = b"".join(b"x" * rng.randrange(300) + b"\n" for _ in range(500)) + b"no end"
    (tmp_path / "a").write_bytes(data)
    name = str(tmp_path / "a")
    whole = [line.data for line in files.lines(name)]
    for size in (1, 7, 300, 301, 10_000, len(data), 10**9):
        ranges = list(files.cut_at_lines(name, size))
        assert [line.data for r in ranges for line in files.lines(name, begin=r[0], end=r[1])] == (
            whole
        )
        assert sum(end - begin for begin, end in ranges) == len(data)


def test_names_below_the_fixed_part_of_a_pattern(tmp_path):
    for name in ("a/x/1.txt", "a/y/1.txt", "b/x/1.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    def names(pattern):
        return [short for _, short in files.match_with_names(f"{tmp_path}/{pattern}")]

    assert names("a/x/1.txt") == ["1.txt"] and names("a/*/1.txt") == ["x/1.txt", "y/1.txt"]
    assert names("*/x/*") == ["a/x/1.txt", "b/x/1.txt"]
    assert names("**/*.txt") == ["a/x/1.txt", "a/y/1.txt", "b/x/1.txt"]


def test_buckets_are_read_through_the_same_functions(monkeypatch):
    bucket = fake_bucket.install(monkeypatch)
    bucket.pipe_file("/b/dir/2.txt.gz", gzip.compress(b"x\ny\n"))
    bucket.pipe_file("/b/dir/1.txt", b"one\ntwo\n")
    found = files.match_with_names("gs://b/dir/*")
    assert found == [("gs://b/dir/1.txt", "1.txt"), ("gs://b/dir/2.txt.gz", "2.txt.gz")]
    assert [line.data for line in files.lines("gs://b/dir/2.txt.gz")] == [b"x", b"y"]
    assert list(files.cut_at_lines("gs://b/dir/1.txt", 2)) == [(0, 4), (4, 8)]
    assert files.size("gs://b/dir/1.txt") == 8
    assert files.sha256_of("gs://b/dir/1.txt") == files.sha256(b"one\ntwo\n")
    with pytest.raises(ValueError, match="ArrayRecord reads local files only, got gs://b"):
        files.require_local("gs://b/x", "ArrayRecord")


def test_a_bucket_without_a_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gs://b/x .*gcsfs is not installed: pip install 'midjax"):
        files.path("gs://b/x")
