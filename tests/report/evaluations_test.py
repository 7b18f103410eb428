# SPDX-License-Identifier: Apache-2.0
"""Lines over a run whose numbers are known; the table against a parent; what is left out."""

import re

from midjax.report import evaluations, records


def line(step, name="held_out", **scores):
    named = {f"domain/{key}/bits_per_byte": value for key, value in scores.items()}
    return {"name": name, "step": step, "weights": "params", "scores": named}


def run(evals, against=()):
    metrics = [{"step": step, "tokens": 100 * step} for step in range(1, 21)]
    return records.Run(
        label="anneal", folder="r", metrics=metrics, events=[], config="",
        evals=evals, against=list(against),
    )  # fmt: skip


def test_each_score_is_a_line_over_the_run_and_later_lines_count():
    found = run([line(5, "once", code=1.0),
                 line(0, code=3.0, prose=2.0), line(20, code=9.0, prose=2.5),
                 line(10, code=2.0, prose=None), line(20, code=1.5, prose=2.5)])  # fmt: skip
    assert evaluations.series(found) == {
        "domain/code/bits_per_byte": [(0, 3.0), (10, 2.0), (20, 1.5)],
        "domain/prose/bits_per_byte": [(0, 2.0), (20, 2.5)],
    }
    plot = evaluations.plot(found, "evals0")
    assert "domain/code/bits_per_byte from 3.0000 to 1.5000" in plot.alt
    texts = set(re.findall(r">([^<>]+)</text>", plot.svg))
    assert {"0", "10", "20"} <= texts  # steps, above
    assert any("2K" in text for text in texts)  # tokens, below
    assert {"domain/code/bits_per_byte", "domain/prose/bits_per_byte"} <= texts


def test_what_was_measured_once_has_no_line_and_many_scores_are_cut_and_counted():
    assert evaluations.plot(run([line(5, code=1.0)]), "x") is None
    assert evaluations.plot(run([]), "x") is None
    many = {f"d{i}": 1.0 for i in range(evaluations.MAX_SCORES + 3)}
    assert (
        "3 more scores are in r/evals.jsonl"
        in evaluations.plot(run([line(1, **many), line(2, **many)]), "x").caption
    )
    names = evaluations.series(run([line(s, n, a=1.0) for s in (1, 2) for n in ("x", "y")]))
    assert list(names) == ["x: domain/a/bits_per_byte", "y: domain/a/bits_per_byte"]


AGAINST = {
    "name": "held_out", "run": "r", "step": 20, "parent": {"run": "p", "step": 5}, "level": 0.95,
    "rows": [
        {"score": "domain/code/bits_per_byte", "parent": 2.0, "now": 2.5, "delta": 0.5,
         "interval": [0.25, 0.75], "verdict": "worse"},
        {"score": "task/quiz/acc", "parent": None, "now": None, "delta": None, "interval": None,
         "verdict": "not finite"},
    ],
    "retention": {"value": 0.8, "interval": [0.75, 0.875], "left_out": {"task/quiz/acc": "why"},
                  "lost": {"task/exam/acc": "now it is 0"}},
    "gates": [
        {"score": "domain/code/bits_per_byte", "of": "relative", "largest_loss": 0.05,
         "must_hold_for": "best_case", "loss": 0.25, "passed": False},
        {"score": "retention", "of": "absolute", "largest_loss": 0.5,
         "must_hold_for": "estimate", "loss": -0.2, "passed": True},
    ],
}  # fmt: skip


def test_the_table_against_the_parent():
    (table,) = evaluations.tables(run([], [AGAINST]))
    assert table.title == "held_out: step 20 of r against step 5 of p" and table.level == "95 %"
    assert table.rows == [
        ("domain/code/bits_per_byte", "2.0000", "2.5000", "+0.5000", "+0.2500 to +0.7500",
         "worse, gate failed"),
        ("task/quiz/acc", "–", "–", "–", "–", "not finite"),
    ]  # fmt: skip
    assert table.retention == (
        "retention", "1", "0.8000", "", "0.7500 to 0.8750", "1 is nothing lost"
    )  # fmt: skip
    assert table.notes == ["task/quiz/acc: why", "task/exam/acc: now it is 0"]
    assert table.gates == [
        ("domain/code/bits_per_byte: lost 25.00 %; at most 5.00 % may be lost at best. It failed.",
         False),
        ("retention: gained 0.2000; at most 0.5000 may be lost. It holds.", True),
    ]  # fmt: skip
