# SPDX-License-Identifier: Apache-2.0
import importlib.util

import gcs_bucket
import pytest

from midjax import files, storage

FOLDER = "gs://bucket/run/checkpoints"


def test_a_moved_folder_is_whole_and_one_whose_move_was_interrupted_does_not_count(monkeypatch):
    bucket = gcs_bucket.install(monkeypatch)
    for name in ("a", "params/b", storage.COMMIT):
        bucket.put(f"run/checkpoints/4/{name}", name.encode())
    source, target = files.path(f"{FOLDER}/4"), files.path(f"{FOLDER}/4.damaged-0")
    bucket.fails = lambda method, name: method == "POST"
    with pytest.raises(OSError, match="Forbidden"):
        storage.move(source, target, "damaged")
    assert bucket.names() == ["run/checkpoints/4/a", "run/checkpoints/4/params/b"]
    bucket.fails = lambda method, name: False
    storage.move(source, target, "damaged")
    moved = [f"run/checkpoints/4.damaged-0/{name}" for name in ("a", storage.COMMIT, "params/b")]
    assert bucket.names() == moved and bucket.text(moved[2]) == "params/b"
    assert "damaged" in bucket.text(moved[1])


def test_a_bucket_needs_the_library_that_checkpoints_are_written_with(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    storage.check("/disk/run")
    with pytest.raises(ValueError, match=r"google.cloud.storage, .*pip install 'midjax\[gcs\]'"):
        storage.check("gs://bucket/run")


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (OSError(28, "No space left on device"), True),
        (ValueError("UNAVAILABLE: Error writing gs://bucket/x"), True),
        (ValueError("shapes differ"), False),
        (TypeError("a bug"), False),
        (type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})("Internal Error"), True),
    ],
)
def test_errors_of_the_storage_are_told_from_others(error, is_one):
    assert storage.is_of_storage(error) is is_one
