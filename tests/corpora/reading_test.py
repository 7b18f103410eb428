# SPDX-License-Identifier: Apache-2.0
import datetime
import json

import numpy as np
import pytest

from midjax import files
from midjax.corpora import reading


def test_tallies_add_up_in_order_and_survive_json():
    first, second = reading.Tally(), reading.Tally()
    first.documents, second.documents = 3, 4
    first.reading()(10)
    second.reading()(7)
    first.drop("not JSON", "a:1")
    second.drop("not JSON", "b:1")
    second.drop("no id", "b:2")
    total = reading.Tally()
    for tally in (first, second):
        total.add(reading.Tally.from_json(json.loads(json.dumps(tally.to_json()))))
    assert total.documents == 7 and total.read_bytes == 17
    assert total.dropped == {"not JSON": 2, "no id": 1}
    assert total.examples == {"not JSON": "a:1", "no id": "b:2"}
    assert len(first.dropped) == 1  # adding changes the sum alone


def test_the_budget_is_of_the_sum():
    tally = reading.Tally()
    for number in range(3):
        tally.drop("not JSON", f"a:{number}")
    reading.check_budget("web", tally, 3)
    with pytest.raises(ValueError, match=r"'web': 3 bad records.* allows 2: 3 x not JSON \(first"):
        reading.check_budget("web", tally, 2)


def test_a_fingerprint_is_of_content_not_of_names(tmp_path):
    def unit(name, begin=0, end=None):
        return reading.Unit(
            key="k", size_bytes=1, payload={}, pieces=[(str(tmp_path / name), begin, end)]
        )

    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").write_bytes(b"0123456789")
    (tmp_path / "c").write_bytes(b"0123x56789")
    assert unit("a").fingerprint() == unit("b").fingerprint() != unit("c").fingerprint()
    assert unit("a", 5, 10).fingerprint() == unit("c", 5, 10).fingerprint()
    assert unit("a", 4, 9).fingerprint() != unit("c", 4, 9).fingerprint()
    with pytest.raises(FileNotFoundError):
        unit("gone").fingerprint()


def test_a_large_file_is_hashed_once_for_all_its_units(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CUT_BYTES", 5)
    path = tmp_path / "large"
    path.write_bytes(b"0123456789")
    hashed = []
    real = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda name: (hashed.append(name), real(name))[1])
    unit = reading.Unit(key="k", size_bytes=1, payload={}, pieces=[(str(path), 0, None)])
    first = unit.fingerprint()
    assert unit.fingerprint() == first and len(hashed) == 1
    path.write_bytes(b"0123456789x")
    assert unit.fingerprint() != first


@pytest.mark.parametrize(("count", "size"), [(10, 0), (10, 64), (3, 1000), (1000, 999), (7, 300)])
def test_cuts_cover_every_index_once(monkeypatch, count, size):
    monkeypatch.setattr(reading, "CUT_BYTES", 100)
    ranges = list(reading.cut(count, size))
    assert [i for begin, end in ranges for i in range(begin, end)] == list(range(count))
    assert len(ranges) == max(1, min(count, -(-size // 100)))


def test_plain_values():
    value = {
        "bytes": b"a\xff", "array": np.arange(3), "scalar": np.float32(0.5), "tuple": (1, None),
        "date": datetime.date(2026, 1, 2), "deep": [{"x": np.array([b"y"], object)}],
    }  # fmt: skip
    expected = {
        "bytes": "a\ufffd", "array": [0, 1, 2], "scalar": 0.5, "tuple": [1, None],
        "date": "2026-01-02", "deep": [{"x": ["y"]}],
    }  # fmt: skip
    assert reading.plain(value) == expected
    json.dumps(reading.plain(value))
