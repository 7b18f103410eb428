# SPDX-License-Identifier: Apache-2.0
"""evals.jsonl: a line per evaluation, the last of its kind counts, torn lines are told of."""

import json
import math

import fake_bucket
import pytest

from midjax.evals import record


def add(folder, step=10, name="core", **scores):
    record.append(str(folder), step=step, name=name, weights="params", scores=scores)


def test_a_line_per_evaluation(tmp_path):
    add(tmp_path / "run", **{"domain/prose/bits_per_byte": 1.5, "task/x/acc": math.nan})
    add(tmp_path / "run", step=20, **{"task/x/acc": None})
    lines = [json.loads(t) for t in (tmp_path / "run" / "evals.jsonl").read_text().splitlines()]
    assert [line.pop("time") > 1.6e9 for line in lines] == [True, True]
    assert lines == [
        {
            "step": 10,
            "name": "core",
            "weights": "params",
            "scores": {"domain/prose/bits_per_byte": 1.5, "task/x/acc": None},
        },
        {"step": 20, "name": "core", "weights": "params", "scores": {"task/x/acc": None}},
    ]
    found = record.read(str(tmp_path / "run"))
    assert [line["step"] for line in found] == [10, 20]
    assert record.read(str(tmp_path / "none")) == []


def test_the_last_line_of_a_kind_counts(tmp_path):
    for step, name, value in ((20, "core", 1), (10, "core", 2), (10, "core", 3), (10, "a", 4)):
        add(tmp_path, step, name, x=value)
    found = record.latest(record.read(str(tmp_path)))
    assert [(one["step"], one["name"], one["scores"]["x"]) for one in found] == [
        (10, "a", 4),
        (10, "core", 3),
        (20, "core", 1),
    ]


@pytest.mark.parametrize("torn", ['{"step": 10, "na', "7", '{"step": 1, "name": "a"}'])
def test_what_a_kill_tore_costs_no_other_line(tmp_path, capsys, torn):
    add(tmp_path, step=10)
    with (tmp_path / "evals.jsonl").open("a") as file:
        file.write(torn)
    add(tmp_path, step=20)
    assert [line["step"] for line in record.read(str(tmp_path))] == [10, 20]
    assert "1 lines are not whole" in capsys.readouterr().out


def test_lines_of_updates_that_are_done_again_are_taken_away(tmp_path):
    for step, name in ((10, "core"), (20, "core"), (20, "after"), (10, "other"), (30, "core")):
        add(tmp_path, step, name, x=1.0)
    kept = record.read(str(tmp_path))
    record.remove_after(str(tmp_path), ["core", "other"], 10)
    left = record.read(str(tmp_path))
    assert [(one["step"], one["name"]) for one in left] == [
        (10, "core"), (20, "after"), (10, "other")
    ]  # fmt: skip
    assert left == [kept[0], kept[2], kept[3]]
    record.remove_after(str(tmp_path / "none"), ["core"], 0)


def test_in_a_bucket(monkeypatch):
    fake_bucket.install(monkeypatch)
    add("gs://b/run", step=10)
    add("gs://b/run", step=20)
    assert [line["step"] for line in record.read("gs://b/run")] == [10, 20]


def test_flat_names_of_a_result():
    result = {
        "domains": {"prose": {"bits_per_byte": 1.25, "tokens": 3}},
        "tasks": {
            "plain": {"metrics": {"acc": 0.5, "bits_per_byte": 2.0}},
            "parts": {"metrics": {"acc": 0.5}, "macro": {"acc": 0.75}},
        },
        "groups": {"core": {"macro": {"acc": 0.6}, "micro": {"acc": 0.1}}},
        "needle": None,
    }
    assert record.scores(result) == {
        "domain/prose/bits_per_byte": 1.25,
        "task/plain/acc": 0.5,
        "task/plain/bits_per_byte": 2.0,
        "task/parts/acc": 0.75,
        "group/core/macro/acc": 0.6,
    }
    assert record.scores({"domains": {}}) == {}


def test_figures_of_long_tasks():
    cells = [{"task": "vt", "row_tokens": 512, "score": 0.5, "chance": 0.1, "first": None}]
    means = [{"row_tokens": 512, "first": 0.25, "first_chance": 0.1}]
    assert record.scores({"long_tasks": {"cells": cells, "means": means}}) == {
        "long/vt/512/score": 0.5,
        "long/vt/512/first": None,
        "long/mean/512/first": 0.25,
    }
    assert record.scores({"long_tasks": None}) == {}
