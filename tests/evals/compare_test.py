# SPDX-License-Identifier: Apache-2.0
"""Deltas, retention and gates on results whose numbers are known."""

import dataclasses
import math

import numpy as np
import pytest

from midjax.evals import compare, pairing


def measured(run, factors, *, answers=None, blocks=32, primary=None):
    """Blocks whose nats are a base text's times each domain's factor, with a little noise."""
    rng = np.random.default_rng(5)
    domains = {}
    for name, factor in factors.items():
        size = rng.integers(500, 1500, blocks)
        base, noise = 0.7 * size * rng.normal(1, 0.1, blocks), rng.normal(1, 0.01, blocks)
        nats = base * factor * (noise if run == "now" else 1)
        domains[name] = {
            "documents": 2 * blocks,
            "content_hash": name,
            "blocks": [
                {"nats": float(n), "bytes": int(b)} for n, b in zip(nats, size, strict=True)
            ],
        }
    result = {"name": "n", "run": run, "step": 3, "tokenizer_hash": "t", "domains": domains}
    result["compute_dtype"] = "float32"
    documents = {}
    if answers is not None:
        result["tasks"] = {"quiz": {"metrics": {"acc": 0.0, "acc_norm": 0.0}}}
        if primary:
            result["tasks"]["quiz"]["primary"] = primary
        documents["quiz"] = [
            {"subset": "", "id": i, "scores": {"acc": a, "acc_norm": 0.0}}
            for i, a in enumerate(answers)
        ]
    return pairing.Measured(result=result, documents=documents, path=run)


def settings(**changes):
    return compare.Comparison(**{"resamples": 500, **changes})


def gate(scores, largest_loss, **kwargs):
    return compare.Gate(scores=scores, largest_loss=largest_loss, **kwargs)


@pytest.fixture(scope="module")
def models():
    right = [1.0] * 50 + [0.0] * 50
    worse = [1.0] * 40 + [0.0] * 60
    parent = measured("parent", {"old": 1.0, "new": 1.0}, answers=right, primary="acc")
    now = measured("now", {"old": 1.08, "new": 0.9}, answers=worse, primary="acc")
    return parent, now


def test_rows_say_what_moved_and_how_surely(models):
    found = compare.compare(*models, settings())
    rows = {row["score"]: row for row in found["rows"]}
    old, acc = rows["domain/old/bits_per_byte"], rows["task/quiz/acc"]
    assert old["relative"] == pytest.approx(0.08, abs=0.01) and old["verdict"] == "worse"
    assert rows["domain/new/bits_per_byte"]["verdict"] == "better"
    low, high = old["relative_interval"]
    assert low < old["relative"] < high and high - low < 0.02
    assert old["delta"] == pytest.approx(old["now"] - old["parent"])
    assert (acc["parent"], acc["now"]) == pytest.approx((0.5, 0.4))
    assert acc["delta"] == pytest.approx(-0.1) and acc["verdict"] == "worse"
    # 10 of 100 answers became wrong: the standard error of that share is 0.03.
    assert acc["interval"] == pytest.approx([-0.1 - 1.98 * 0.03, -0.1 + 1.98 * 0.03], abs=0.012)
    assert found["passed"] and (found["run"], found["parent"]["run"]) == ("now", "parent")


def test_retention_is_the_geometric_mean_of_what_is_left(models):
    found = compare.compare(*models, settings())
    rows = {row["score"]: row for row in found["rows"]}
    kept = found["retention"]
    # acc_norm is not the task's primary metric, so its zeros count for nothing.
    assert kept["scores"] == [
        "domain/old/bits_per_byte", "domain/new/bits_per_byte", "task/quiz/acc"
    ] and not kept["left_out"]  # fmt: skip
    ratios = [rows[s]["parent"] / rows[s]["now"] for s in kept["scores"][:2]] + [0.8]
    assert kept["value"] == pytest.approx(math.prod(ratios) ** (1 / 3))
    low, high = kept["interval"]
    assert low < kept["value"] < high < 1
    one = compare.compare(*models, settings(general=("domain/old/*",)))["retention"]
    assert one["value"] == pytest.approx(ratios[0]) and one["method"] == "bootstrap-t"
    assert one["interval"][1] < 1


def test_nothing_lost_is_one_and_zeros_are_left_out_and_said():
    answers = [0.0] * 10
    model = measured("parent", {"old": 1.0}, answers=answers)
    found = compare.compare(model, model, settings(gates=(gate("retention", 0.0),)))
    kept = found["retention"]
    assert kept["value"] == 1 and kept["interval"] == [1, 1] and found["passed"]
    why = "the parent has 0, or no finite number, and no ratio"
    assert kept["left_out"] == {"task/quiz/acc": why, "task/quiz/acc_norm": why}
    assert all(row["verdict"] == "no clear change" for row in found["rows"])


@pytest.mark.parametrize(
    ("asked", "passes"),
    [
        (gate("domain/old/bits_per_byte", 0.05), False),
        (gate("domain/old/bits_per_byte", 0.10), True),
        (gate("domain/new/bits_per_byte", 0.0, must_hold_for="worst_case"), True),  # a gain
        (gate("domain/old/bits_per_byte", 0.05, of="absolute"), False),  # about 0.08 bits
        (gate("task/quiz/acc", 0.12, of="absolute"), True),
        (gate("task/quiz/acc", 0.12, of="absolute", must_hold_for="worst_case"), False),
        (gate("task/quiz/acc", 0.08, of="absolute"), False),
        (gate("task/quiz/acc", 0.08, of="absolute", must_hold_for="best_case"), True),
        (gate("task/quiz/acc", 0.12), False),  # a fifth of 0.5 was lost
        (gate("retention", 0.2), True),
        (gate("retention", 0.01), False),
        (gate("domain/*", 0.05), False),
    ],
)
def test_gates(models, asked, passes):
    found = compare.compare(*models, settings(gates=(asked,)))
    assert found["passed"] is passes
    said = compare.failures(found)
    assert len(said) == (not passes)
    if not passes:
        assert asked.scores in said[0] and "95 % interval" in said[0]
        assert "GATE FAILED" in compare.table(found)


def test_a_loss_that_is_not_finite_fails_its_gate():
    broken = measured("now", {"old": math.nan, "new": 1.0})
    for block in broken.result["domains"]["old"]["blocks"]:
        block["nats"] = None
    asked = settings(gates=(gate("domain/old/*", 9.0),))
    found = compare.compare(measured("parent", {"old": 1.0, "new": 1.0}), broken, asked)
    assert not found["passed"] and found["rows"][0]["verdict"] == "not finite"
    assert "it is not known" in compare.failures(found)[0]
    kept = found["retention"]
    assert kept["lost"] == {"domain/old/bits_per_byte": "not finite now, which counts as all lost"}
    assert kept["value"] is None and not kept["left_out"]


def test_an_ability_that_is_lost_completely_fails_gates_on_retention():
    parent = measured("parent", {"old": 1.0}, answers=[1.0] * 30 + [0.0] * 10, primary="acc")
    now = measured("now", {"old": 1.0}, answers=[0.0] * 40, primary="acc")
    gates = (gate("retention", 0.9), gate("task/quiz/acc", 0.9))
    found = compare.compare(parent, now, settings(gates=gates))
    kept = found["retention"]
    assert kept["lost"] == {"task/quiz/acc": "now it is 0, all of it is lost"}
    assert (kept["value"], kept["interval"], kept["left_out"]) == (None, None, {})
    assert [g["loss"] for g in found["gates"]] == [None, 1.0]
    assert [g["passed"] for g in found["gates"]] == [False, False]
    said = compare.failures(found)
    assert "it is not known; task/quiz/acc: now it is 0, all of it is lost" in said[0]


@pytest.mark.parametrize("case", ["estimate", "best_case", "worst_case"])
@pytest.mark.parametrize("now", [0.0, 1.0])
def test_where_the_parent_has_nothing_nothing_is_lost(now, case):
    parent = measured("parent", {"old": 1.0}, answers=[0.0] * 10, primary="acc")
    child = measured("now", {"old": 1.0}, answers=[now] * 10, primary="acc")
    asked = settings(gates=(gate("task/quiz/*", 0.0, must_hold_for=case),))
    found = compare.compare(parent, child, asked)
    assert found["passed"] and [g["loss"] for g in found["gates"]] == [0.0, 0.0]
    found = compare.compare(parent, _unknown(child), asked)
    assert [g["passed"] for g in found["gates"]] == [False, True]


@pytest.mark.parametrize(("right", "passed"), [(5, True), (1, False)])
def test_a_gain_without_bounds_is_no_loss_at_best(right, passed):
    """Of three right answers a resample may have none, and the ratio to it no end."""
    parent = measured("parent", {"old": 1.0}, answers=[1.0] * 3 + [0.0] * 9, primary="acc")
    answers = [0.0] * (12 - right) + [1.0] * right
    now = measured("now", {"old": 1.0}, answers=answers, primary="acc")
    asked = settings(gates=(gate("task/quiz/acc", 0.1, must_hold_for="best_case"),))
    (found,) = compare.compare(parent, now, asked)["gates"]
    assert found["interval"][0] is None and found["passed"] == passed
    assert found["loss"] == pytest.approx(1 - right / 3)


def _unknown(model):
    """The same, whose first right or wrong answer is not finite."""
    first, *rest = model.documents["quiz"]
    first = first | {"scores": first["scores"] | {"acc": None}}
    return dataclasses.replace(model, documents={"quiz": [first, *rest]})


@pytest.mark.parametrize("blocks", [2, 3, 4, 8])
def test_few_blocks_have_an_interval_of_a_named_method(blocks):
    """Of 3 and 4 blocks a relative interval was a traceback, or had no ends."""
    parent = measured("parent", {"old": 1.0}, blocks=blocks)
    found = compare.compare(parent, measured("now", {"old": 1.05}, blocks=blocks), settings())
    (row,), kept = found["rows"], found["retention"]
    for ends in (row["interval"], row["relative_interval"], kept["interval"]):
        assert None not in ends and ends[0] < ends[1]
    wanted = "bootstrap-t" if blocks >= 8 else "expanded percentile"
    assert row["method"] == kept["method"] == wanted
    lone = compare.compare(*[measured("parent", {"old": 1.0}, blocks=1)] * 2, settings())
    assert (lone["rows"][0]["method"], lone["rows"][0]["interval"]) == (None, None)


def test_the_table_has_a_line_per_score_and_one_of_retention(models):
    lines = compare.table(compare.compare(*models, settings())).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "domain/old/bits_per_byte", "domain/new/bits_per_byte", "task/quiz/acc",
        "task/quiz/acc_norm", "retention",
    ]  # fmt: skip
    assert "95 % interval" in lines[0] and "-0.1000" in lines[3] and lines[3].endswith("worse")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gate("", 0.1), "scores is empty"),
        (lambda: gate("x", -0.1), "largest_loss must be 0 or more"),
        (lambda: compare.Comparison(level=1.0), "level must be from 0.5"),
        (lambda: compare.Comparison(resamples=100), "Take 400 or more"),
        (lambda: compare.Comparison(seed=-1), "seed must be 0"),
        (lambda: compare.Comparison(general=()), "general is empty"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_names_of_no_score_are_refused(models):
    with pytest.raises(ValueError, match=r"Gate.scores = 'domain/law\*' is no score; .*retention"):
        compare.compare(*models, settings(gates=(gate("domain/law*", 0.1),)))
    with pytest.raises(ValueError, match=r"Comparison.general = \('x',\) names no score"):
        compare.compare(*models, settings(general=("x",)))
