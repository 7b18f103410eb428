# SPDX-License-Identifier: Apache-2.0
import hypothesis
import pytest
import yaml
from hypothesis import strategies

from midjax.launch import emit

KEYS = strategies.text(max_size=12)
TEXTS = strategies.one_of(
    strategies.text(max_size=40),
    strategies.sampled_from(
        [
            "yes",
            "null",
            "~",
            "1e3",
            "0x1",
            "1_000",
            "2026-11-29",
            "12:30:00",
            "a: b",
            "#",
            "-",
            "",
            ".5",
        ]
    ),
    strategies.lists(strategies.text("ab \t#:-'\"\\", max_size=9), max_size=5).map("\n".join),
)
VALUES = strategies.recursive(
    TEXTS | strategies.integers() | strategies.booleans(),
    lambda inner: (
        strategies.lists(inner, max_size=3) | strategies.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


def nested_lists(value) -> bool:
    if isinstance(value, list):
        return any(isinstance(one, list) and one for one in value) or any(map(nested_lists, value))
    return isinstance(value, dict) and any(map(nested_lists, value.values()))


@hypothesis.given(strategies.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
@hypothesis.settings(max_examples=150, deadline=None)
def test_what_pyyaml_reads_back_is_what_was_given(document):
    hypothesis.assume(not nested_lists(document))
    assert yaml.safe_load(emit.text(document)) == document


def test_people_can_read_it():
    document = {"a": {"b": [{"c": 1, "d": "x y"}, {"c": 2}], "e": [1, 2]}, "f": "one\ntwo\n"}
    assert emit.text(document) == (
        'a:\n  b:\n  - c: 1\n    d: "x y"\n  - c: 2\n  e: [1, 2]\nf: |\n  one\n  two\n'
    )
    assert list(yaml.safe_load_all(emit.texts([{"a": 1}, {"b": 2}]))) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("value", [1.5, None, {1, 2}, [["a"]]])
def test_other_values_are_refused(value):
    with pytest.raises(TypeError):
        emit.text({"a": value})
