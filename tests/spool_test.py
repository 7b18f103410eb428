# SPDX-License-Identifier: Apache-2.0
import pathlib
import threading

import gcs_bucket
import pytest

from midjax import files, spool

RUN = "gs://bucket/run"


class Written:
    """Stands for the bucket: can fail, or hold an upload for as long as a test likes."""

    def __init__(self, monkeypatch):
        self.objects, self.failures_to_come, self.free = {}, 0, threading.Event()
        self.begun = threading.Semaphore(0)
        self.free.set()
        monkeypatch.setattr(files, "write_bytes", self.write)

    def write(self, name, data):
        self.begun.release()
        self.free.wait()
        if self.failures_to_come:
            self.failures_to_come -= 1
            raise OSError("Forbidden")
        self.objects[str(name)] = data


@pytest.fixture
def said():
    return []


@pytest.fixture
def made(monkeypatch, said):
    gcs_bucket.install(monkeypatch)
    monkeypatch.setattr(spool, "_RETRY_SECONDS", (0.001, 0.001))
    made = spool.Spool(RUN, ("rows", "events"), said.append)
    yield made
    made.close(5.0)


def append(made, name, text, *, soon=False):
    with (made.folder / name).open("a") as file:
        file.write(text)
    made.added(name, len(text), soon=soon)


def test_files_begin_as_they_are_in_the_bucket_and_end_there(monkeypatch, said):
    bucket = gcs_bucket.install(monkeypatch)
    bucket.put("run/rows", b"1\n")
    made = spool.Spool(RUN, ("rows", "events"), said.append)
    assert (made.folder / "rows").read_text() == "1\n" and not (made.folder / "events").exists()
    made.start()
    append(made, "rows", "2\n")
    append(made, "events", "e\n", soon=True)
    made.close(30.0)
    assert (bucket.text("run/rows"), bucket.text("run/events")) == ("1\n2\n", "e\n")
    assert not made.folder.exists() and not said


def test_what_was_cut_off_before_the_start_is_cut_off_in_the_bucket(monkeypatch, said):
    bucket = gcs_bucket.install(monkeypatch)
    bucket.put("run/rows", b"1\n2\n")
    bucket.put("run/events", b"e\n")
    made = spool.Spool(RUN, ("rows", "events"), said.append)
    (made.folder / "rows").write_text("1\n")
    made.start()
    assert made.wait(30.0)
    assert bucket.text("run/rows") == "1\n" and bucket.writes["run/events"] == 1  # the put above
    made.close(5.0)


def test_a_bucket_that_cannot_be_read_is_not_taken_for_an_empty_one(monkeypatch, said):
    bucket = gcs_bucket.install(monkeypatch)
    bucket.put("run/rows", b"1\n")
    bucket.fails = lambda method, name: name == "run/rows"
    with pytest.raises(files.OutageError, match=r"gs://bucket/run/rows cannot be read") as error:
        spool.Spool(RUN, ("rows",), said.append)
    assert error.value.exit_code == 171


def test_an_outage_is_said_once_and_loses_nothing(made, monkeypatch, said):
    written = Written(monkeypatch)
    written.failures_to_come = 3
    made.start()
    append(made, "rows", "1\n", soon=True)
    assert made.wait(30.0) and made.failures == 3
    assert written.objects == {f"{RUN}/rows": b"1\n"}
    made.close(5.0)
    assert len(said) == 2 and "tried again: OSError: Forbidden" in said[0]
    assert said[1].endswith("is written again, after 3 failures")


def test_a_stuck_upload_stops_nobody_and_what_was_not_uploaded_stays(made, monkeypatch, said):
    written = Written(monkeypatch)
    written.free.clear()
    made.start()
    append(made, "rows", "1\n", soon=True)
    waiting = threading.Thread(target=made.wait, args=(30.0,))  # in haste, as a checkpoint is
    waiting.start()
    assert written.begun.acquire(timeout=30.0)
    append(made, "rows", "2\n")  # returns, though an upload is under way
    assert not made.wait(0.0)
    made.close(0.0)
    assert pathlib.Path(made.folder, "rows").read_text() == "1\n2\n"
    assert "could not be uploaded" in said[-1] and str(made.folder) in said[-1]
    written.free.set()
    waiting.join()


def test_rows_that_come_one_by_one_are_uploaded_together(made, monkeypatch):
    written = Written(monkeypatch)
    made.start()
    for step in range(100):
        append(made, "rows", f"{step}\n")
    assert not written.objects and made.wait(30.0)
    assert written.objects[f"{RUN}/rows"].decode().split() == [str(n) for n in range(100)]
