# SPDX-License-Identifier: Apache-2.0
"""Reading: missing and damaged inputs are one clear error each."""

import json
import math

import pytest

from midjax.report import records


@pytest.fixture
def run_dir(tmp_path):
    rows = [
        {"step": s, "tokens": 10 * s, "loss/a": None, "tokens/a": 0, "perf/step_seconds": 0.1}
        for s in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n')
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_reads_a_run(run_dir):
    run = records.read_run("anneal", str(run_dir))
    assert run.sources == ["a"] and run.column("tokens") == [10, 20, 30]
    assert all(math.isnan(x) for x in run.column("loss/a"))
    assert run.start_tokens == 0 and run.config == "{}"
    (run_dir / "config.gin").write_text("Train.seed = 1")
    assert records.read_run("anneal", str(run_dir)).config == "Train.seed = 1"


def test_a_kept_step_starts_later(run_dir):
    rows = [{"step": s, "tokens": 10 * s, "tokens/a": 0} for s in (5, 6)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert records.read_run("r", str(run_dir)).start_tokens == pytest.approx(40)


def test_the_newest_row_of_a_step_counts_and_a_torn_line_does_not(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "tokens": 21}\n{"step": 4, "tok')
    assert records.read_run("r", str(run_dir)).column("tokens") == [10, 21, 30]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "config.json"])
def test_a_missing_file_names_path_and_command(run_dir, name):
    (run_dir / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        records.read_run("anneal", str(run_dir))
    for word in (f"{run_dir}/{name}", "'anneal'", "midjax train"):
        assert word in str(error.value)


def test_damage_and_emptiness_are_refused(run_dir):
    (run_dir / "metrics.jsonl").write_text('{"step": 1\n{"step": 2, "tokens": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1, is not JSON"):
        records.read_run("r", str(run_dir))
    (run_dir / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="no completed update"):
        records.read_run("r", str(run_dir))


def test_columns_and_exports(tmp_path):
    path = tmp_path / "after.json"
    with pytest.raises(FileNotFoundError, match=r"after.json.*midjax eval"):
        records.read_column("after", str(path))
    with pytest.raises(FileNotFoundError, match=r"after.json.*midjax export"):
        records.read_export(str(path))
    path.write_text("[1]")
    with pytest.raises(ValueError, match="not the result of `midjax eval`"):
        records.read_column("after", str(path))
    with pytest.raises(ValueError, match="not the result of `midjax export`"):
        records.read_export(str(path))
    path.write_text('{"domains": {"a": {"bits_per_byte": null, "bytes": 3}}}')
    column = records.read_column("after", str(path))
    assert column.value("a", "bytes") == 3
    assert math.isnan(column.value("a", "bits_per_byte")) and math.isnan(column.value("b", "bytes"))
