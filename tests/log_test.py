# SPDX-License-Identifier: Apache-2.0
import json

from midjax import log


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
