# SPDX-License-Identifier: Apache-2.0
"""BFCL's own records: what they say is right scores, and every change of it does not."""

import json
import pathlib
from collections.abc import Iterator

import pytest

from midjax.evals.calls import match, parse

SAMPLE = pathlib.Path(__file__).parents[2] / "data/bfcl/sample.jsonl"
RECORDS = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
ANSWERED = [record for record in RECORDS if "ground_truth" in record]
Written = list[tuple[str, dict]]


def plain(value):
    """An answer's value as a model would write it: objects hold lists of alternatives."""
    if isinstance(value, dict):
        real = {key: [x for x in some if x != ""] for key, some in value.items()}
        return {key: plain(some[0]) for key, some in real.items() if some}
    if isinstance(value, list):
        return [plain(item) if isinstance(item, dict) else item for item in value]
    return value


def gold(record: dict, which: int = 0) -> Written:
    """The calls that a record's answers describe, with the first (0) or last (-1) of the values."""
    calls = []
    for answer in record["ground_truth"]:
        [(name, values)] = answer.items()
        real = {key: [x for x in some if x != ""] for key, some in values.items()}
        calls.append((name, {key: plain(some[which]) for key, some in real.items() if some}))
    return calls


def python(calls: Written) -> str:
    texts = [f"{name}({', '.join(f'{k}={v!r}' for k, v in args.items())})" for name, args in calls]
    return f"[{', '.join(texts)}]"


def as_json(calls: Written) -> str:
    return json.dumps([{"name": name, "arguments": args} for name, args in calls])


def other(value):
    """A value of the same type that no answer has."""
    if isinstance(value, (int, float)):
        return value + 917
    if isinstance(value, str):
        return value + "qqq"
    if isinstance(value, list):
        return value + (["qqq"] if not value or isinstance(value[0], str) else value[:1] * 7)
    return {**value, "qqq": 1}


def perturbed(record: dict) -> Iterator[tuple[str, Written]]:
    calls = gold(record)
    (name, arguments), rest = calls[0], calls[1:]
    described = {function["name"]: function for function in record["function"]}[name]
    yield "no call", []
    yield "one call less", rest
    yield "one call more", [*calls, calls[0]]
    yield "another name", [(name + "_x", arguments), *rest]
    yield "unknown parameter", [(name, {**arguments, "unknown": 1}), *rest]
    for key in described["parameters"]["required"]:
        yield "missing", [(name, {k: v for k, v in arguments.items() if k != key}), *rest]
    for key, value in arguments.items():
        if isinstance(value, bool):
            if len([x for x in record["ground_truth"][0][name][key] if x != ""]) == 1:
                yield "value", [(name, {**arguments, key: not value}), *rest]
            yield "type", [(name, {**arguments, key: int(value)}), *rest]
            continue
        yield "value", [(name, {**arguments, key: other(value)}), *rest]
        yield "nested", [(name, {**arguments, key: [value]}), *rest]
        if not isinstance(value, str):
            yield "as text", [(name, {**arguments, key: str(value)}), *rest]
        else:
            yield "as number", [(name, {**arguments, key: 31337}), *rest]


def judged(record: dict, text: str) -> str:
    return match.judge(text, record["function"], record.get("ground_truth"))


@pytest.mark.parametrize("record", ANSWERED, ids=lambda record: record["id"])
def test_gold_answers_score_in_any_form_and_order(record):
    for calls in (gold(record), gold(record, -1), gold(record)[::-1]):
        assert judged(record, python(calls)) == ""
        assert judged(record, as_json(calls)) == ""


@pytest.mark.parametrize("record", ANSWERED, ids=lambda record: record["id"])
def test_perturbed_answers_do_not_score_and_say_why(record):
    changes = list(perturbed(record))
    assert len(changes) >= 6
    for kind, calls in changes:
        assert judged(record, python(calls)), (kind, calls)


def test_irrelevance_is_right_when_nothing_is_called():
    for record in RECORDS:
        if "ground_truth" not in record:
            assert judged(record, "None of these functions helps.") == ""
            assert judged(record, "[]") == ""
            called = f"[{record['function'][0]['name']}(x=1)]"
            assert judged(record, called) == "1 calls where none helps"


FUNCTION = {
    "name": "m.f",
    "parameters": {
        "required": [],
        "properties": {
            "rate": {"type": "float"},
            "count": {"type": "integer"},
            "city": {"type": "string"},
            "flag": {"type": "boolean"},
            "point": {"type": "tuple", "items": {"type": "float"}},
            "names": {"type": "array", "items": {"type": "string"}},
            "where": {"type": "dict"},
        },
    },
}


@pytest.mark.parametrize(
    ("arguments", "allowed", "right"),
    [
        ("rate=5", {"rate": [5.0]}, True),  # an integer for a float
        ("count=5.0", {"count": [5]}, False),  # and not the other way
        ("count=True", {"count": [1]}, False),
        ("flag=1", {"flag": [True]}, False),
        ("city='new york, n.y.'", {"city": ["New York NY"]}, True),
        ("city='New York'", {"city": ["York"]}, False),
        ("point=(1.5, 2.0)", {"point": [[1.5, 2.0]]}, True),
        ("point=[1.5, 2.0]", {"point": [[1.5, 2.0]]}, True),
        ("names=['A b']", {"names": [["a-B"]]}, True),
        ("names=['b', 'a']", {"names": [["a", "b"]]}, False),  # lists have an order
        ("where={'k': 'V.'}", {"where": [{"k": ["v"], "o": ["", 1]}]}, True),
        ("where={'o': 1}", {"where": [{"k": ["v"], "o": ["", 1]}]}, False),
        ("count=n", {"count": ["n"]}, True),  # a variable, by its exact name
        ("count=N", {"count": ["n"]}, False),
        ("", {"city": ["x", ""]}, True),  # may be left out
        ("", {"city": ["x"]}, False),
    ],
)
def test_types_and_values(arguments, allowed, right):
    reason = match.judge(f"m.f({arguments})", [FUNCTION], [{"m.f": allowed}])
    assert (reason == "") is right, reason


def test_a_call_that_fits_two_answers_costs_nothing():
    answers = [{"m.f": {"city": ["a", "b"]}}, {"m.f": {"city": ["a"]}}]
    for text in ("[m.f(city='a'), m.f(city='b')]", "[m.f(city='b'), m.f(city='a')]"):
        assert match.judge(text, [FUNCTION], answers) == ""
    assert match.judge("[m.f(city='b'), m.f(city='b')]", [FUNCTION], answers)


def test_names_without_dots_only_on_request():
    calls = parse.parse("m_f(count=1)")
    answers = [{"m.f": {"count": [1]}}]
    assert match.mismatch(calls, [FUNCTION], answers) != ""
    assert match.mismatch(calls, [FUNCTION], answers, underscores=True) == ""


def test_a_broken_record_is_an_error_not_a_score():
    with pytest.raises(ValueError, match="calls g, described"):
        match.judge("g()", [FUNCTION], [{"g": {}}])
