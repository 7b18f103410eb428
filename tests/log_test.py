# SPDX-License-Identifier: Apache-2.0
import json

import gcs_bucket
import pytest

from midjax import files, log


def read(path):
    return [json.loads(line) for line in path.open()]


def test_rows_after_the_step_are_removed_and_counted(tmp_path):
    first = log.Journal(str(tmp_path), step=0, is_writer=True)
    for step in (1, 2, 3, 4):
        first.metrics({"step": step, "loss": 0.5 * step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # torn by a kill
    log.Journal(str(tmp_path), step=2, is_writer=True).metrics({"step": 3, "loss": 9.0})
    assert [(r["step"], r["loss"]) for r in read(tmp_path / "metrics.jsonl")] == [
        (1, 0.5), (2, 1.0), (3, 9.0)
    ]  # fmt: skip
    (event,) = read(tmp_path / "events.jsonl")
    assert (event["event"], event["step"], event["rows"]) == ("rows_redone", 2, 3)


def test_numbers_that_json_has_not_are_null(tmp_path):
    log.Journal(str(tmp_path), step=0, is_writer=True).metrics(
        {"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1}
    )
    assert read(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": None, "grad_norm": None, "lr": 0.1}
    ]


def test_only_the_writer_writes(tmp_path):
    journal = log.Journal(str(tmp_path / "run"), step=0, is_writer=False)
    journal.metrics({"step": 1})
    journal.event("start")
    assert not (tmp_path / "run").exists()


def test_progress_without_a_terminal_prints_lines(capsys):
    with log.Progress("train", 1000, every_seconds=0.0) as progress:
        progress.advance(250, "loss 2.5")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("train  25%") and "tokens/s" in first and first.endswith("loss 2.5")
    assert last.startswith("train  25%")


def test_progress_with_nothing_done_says_no_time(capsys):
    with log.Progress("train", 1000):
        pass
    assert "? left" in capsys.readouterr().out


def test_progress_of_an_unknown_total_is_told_its_share(capsys):
    with log.Progress("tokenize", None, every_seconds=0.0) as progress:
        progress.advance(1000, share=0.5)
        progress.advance(10, share=0.6)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["50%", "60%", "60%"]
    assert all("tokens/s" in line and "? left" not in line for line in lines)


@pytest.mark.parametrize(
    ("tail", "kept"),
    [(b'{"step": 2}', [1, 2]), ('{"step": 2, "loss/\u00e9'.encode()[:-1], [1])],
)
def test_a_row_torn_by_a_kill_stops_no_restart(tmp_path, tail, kept):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + tail)
    journal = log.Journal(str(tmp_path), step=2, is_writer=True)
    journal.metrics({"step": 3})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [*kept, 3]


def test_an_event_torn_by_a_kill_is_cut_off_and_said(tmp_path):
    log.Journal(str(tmp_path), step=0, is_writer=True).event("start")
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write('{"event": "caf\u00e9'.encode()[:-1])
    log.Journal(str(tmp_path), step=0, is_writer=True).event("end")
    events = read(tmp_path / "events.jsonl")
    assert [e["event"] for e in events] == ["start", "event_torn", "end"]
    assert events[1]["was"].startswith('{"event": "caf')


def test_text_that_is_no_unicode_is_written_as_json_escapes_it(tmp_path):
    """Ids of documents are what their corpora say."""
    log.Journal(str(tmp_path), step=0, is_writer=True).event("skipped", document="\ud800 ü")
    (event,) = read(tmp_path / "events.jsonl")
    assert event["document"] == "\ud800 ü"
    assert "ü" in (tmp_path / "events.jsonl").read_text()


def test_rows_of_layer_norms_are_removed_as_those_of_metrics(tmp_path):
    first = log.Journal(str(tmp_path), step=0, is_writer=True)
    for step in (2, 4):
        first.layer_norms({"step": step, "grad_norm/embed": float("nan")})
    log.Journal(str(tmp_path), step=3, is_writer=True)
    assert read(tmp_path / "layer_norms.jsonl") == [{"step": 2, "grad_norm/embed": None}]


def test_a_journal_in_a_bucket_goes_on_as_on_a_disk(monkeypatch):
    bucket = gcs_bucket.install(monkeypatch)
    run = "gs://bucket/run"
    with log.Journal(run, step=0, is_writer=True) as journal:
        for step in (1, 2, 3):
            journal.metrics({"step": step})
        journal.event("start")
        journal.settle()
        assert bucket.text("run/metrics.jsonl") == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    bucket.put("run/events.jsonl", bucket.stored["run/events.jsonl"][1] + b'{"event": "to')
    with log.Journal(run, step=2, is_writer=True) as journal:
        assert journal.newest_step == 3
        journal.metrics({"step": 3, "loss": 0.5})
    rows = [json.loads(line) for line in bucket.text("run/metrics.jsonl").splitlines()]
    assert rows == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]
    events = [json.loads(line)["event"] for line in bucket.text("run/events.jsonl").splitlines()]
    assert events == ["start", "event_torn", "rows_redone"]
    assert bucket.names() == ["run/events.jsonl", "run/metrics.jsonl"]


def test_rows_that_do_not_come_into_the_bucket_hold_a_checkpoint_back(monkeypatch):
    bucket = gcs_bucket.install(monkeypatch)
    monkeypatch.setattr(log, "_BEHIND_SECONDS", 0.1)
    monkeypatch.setattr(log, "_CLOSE_SECONDS", 0.1)
    with log.Journal("gs://bucket/run", step=0, is_writer=True) as journal:
        bucket.fails = lambda method, name: method == "POST"
        journal.metrics({"step": 1})
        with pytest.raises(files.OutageError, match="no checkpoint counts without"):
            journal.settle()
