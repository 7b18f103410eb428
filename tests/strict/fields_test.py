# SPDX-License-Identifier: Apache-2.0
"""Annotations: what fits, what does not, and trees as plain JSON."""

import dataclasses
import json
from typing import Annotated, Any, Literal, Optional

import pytest

from midjax.strict import fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    rate: float
    name: str = "leaf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    rate: float

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"Other.rate must not be negative, got {self.rate}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    count: int
    part: Leaf | Other | None
    parts: tuple[Leaf | Other, ...]
    table: dict[str, Leaf]
    pair: tuple[int, str] = (1, "a")
    grid: list[tuple[float, ...]] = dataclasses.field(default_factory=list)
    mode: Literal["fast", 2] = "fast"


TREE = Tree(
    count=3,
    part=Other(rate=1e-5),
    parts=(Leaf(rate=0.1), Other(rate=2.0)),
    table={"b": Leaf(rate=1.0, name="x"), "a": Leaf(rate=2.0)},
    grid=[(1.0, 2.0), ()],
    mode=2,
)


@pytest.mark.parametrize(
    ("value", "annotation", "fitted"),
    [
        (1, float, 1.0),
        (1, int | float, 1),
        (1, float | int, 1),
        (1.5, int | float, 1.5),
        (1, float | None, 1.0),
        (True, bool | int, True),
        (None, Optional[int], None),  # noqa: UP045
        ("a", Annotated[str, "note"], "a"),
        ((1, 2), tuple[float, ...], (1.0, 2.0)),
        ({"a": [1]}, dict[str, list[float]], {"a": [1.0]}),
        (2, Literal["fast", 2], 2),
    ],
)
def test_fits(value, annotation, fitted):
    got = fields.fit(value, annotation, "x")
    assert got == fitted and type(got) is type(fitted)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (True, int, "x must be int, got True. True and False are not numbers here."),
        (True, float, "x must be float, got True"),
        (True, Literal[1, 2], "x must be 1 or 2, got True"),
        (1.0, int, "x must be int, got 1.0. Write 1."),
        (1e3, int | None, "x must be int | None, got 1000.0. Write 1000."),
        (float("nan"), float, "x must be float, got nan"),
        (
            "1",
            float,
            "x must be float, got '1'. Numbers, True and False are written without quotes.",
        ),
        (1, str, "x must be str, got 1. Quote it to make it a string: '\"1\"'."),
        (1, tuple[int, ...], "x must be tuple[int, ...], got 1. A tuple of one element needs its"),
        ([1], tuple[int, ...], "got [1]. A tuple is written (a, b)."),
        ((1, "a"), tuple[int, ...], "x[1] must be int, got 'a'"),
        ((1,), tuple[int, int], "x must have 2 elements (tuple[int, int]), got 1: (1,)."),
        ({"a": "b"}, dict[str, int] | None, "x['a'] must be int, got 'b'"),
        ({1: 2}, dict[str, int], "x must be dict[str, int], got {1: 2}"),
        ("fats", Literal["fast"], "x must be 'fast', got 'fats'. Did you mean 'fast'?"),
        (Leaf(rate=1.0), Other, "x must be Other, got @Leaf()."),
        (Leaf(rate=1.0), int | None, "x must be int | None, got @Leaf()."),
    ],
)
def test_does_not_fit(value, annotation, message):
    with pytest.raises(fields.ConfigError) as caught:
        fields.fit(value, annotation, "x")
    assert message in str(caught.value)


def test_components_are_found_through_unions_tuples_and_dicts():
    assert fields.components(Tree) == {"Tree": Tree, "Leaf": Leaf, "Other": Other}
    assert fields.holders(Other, fields.components(Tree)) == ["Tree.part", "Tree.parts"]


def test_two_classes_of_one_name_are_refused():
    twin = dataclasses.make_dataclass("Leaf", [("x", int)])
    root = dataclasses.make_dataclass("Root", [("a", Leaf), ("b", twin | None)])
    with pytest.raises(fields.ConfigError, match="Two classes are called Leaf"):
        fields.components(root)


@pytest.mark.parametrize(
    "annotation", [Any, object, dict, tuple, dict[int, str], set[int], bytes, "Nowhere"]
)
def test_annotations_that_cannot_be_checked_are_refused(annotation):
    root = dataclasses.make_dataclass("Root", [("a", annotation)])
    with pytest.raises(fields.ConfigError, match="Root"):
        fields.components(root)


def test_json_round_trip():
    data = json.loads(json.dumps(fields.to_json(TREE)))
    assert data["parts"] == [
        {"class": "Leaf", "rate": 0.1, "name": "leaf"},
        {"class": "Other", "rate": 2.0},
    ]
    again = fields.from_json(Tree, data)
    assert again == TREE
    assert list(again.table) == ["b", "a"]
    assert type(again.grid[0]) is tuple and type(again.grid) is list


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("cuont",), 3, "Tree has no field 'cuont'. Did you mean 'count'?"),
        (("count",), "3", "Tree.count must be int, got '3'"),
        (("part",), {"class": "Tree"}, "Tree.part must be Leaf | Other | None"),
        (("part", "rte"), 1.0, "Tree.part has no field 'rte'"),
        (("part", "rate"), -1.0, "Tree.part: Other.rate must not be negative"),
        (("parts",), [{"class": "Leaf"}], "Tree.parts[0] lacks rate"),
        (("table",), {"a": {"class": "Other", "rate": 1}}, "Tree.table['a'] must be a Leaf, got"),
        (("class",), "Leaf", "Tree must be a Tree, got class 'Leaf'"),
    ],
)
def test_json_is_read_strictly(path, value, message):
    data = fields.to_json(TREE)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(fields.ConfigError) as caught:
        fields.from_json(Tree, data)
    assert message in str(caught.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    leaf: Leaf
    other: Leaf | None = None
    pair: tuple[str, ...] = ()


def test_what_asdict_made_is_read_without_the_names_of_classes():
    whole = Holder(leaf=Leaf(rate=0.5), other=Leaf(rate=2.0, name="x"), pair=("a", "b"))
    for holder in (whole, Holder(leaf=Leaf(rate=0.5))):
        plain = json.loads(json.dumps(dataclasses.asdict(holder)))
        assert fields.from_plain(Holder, plain) == holder
    with pytest.raises(fields.ConfigError, match="Holder.leaf has no field 'size'"):
        fields.from_plain(Holder, {"leaf": {"rate": 1.0, "size": 3}})
    with pytest.raises(fields.ConfigError, match="Holder must be a JSON object"):
        fields.from_plain(Holder, None)


def test_json_of_an_older_version_takes_defaults_but_not_requirements():
    data = fields.to_json(dataclasses.replace(TREE, mode="fast"))
    del data["mode"]
    assert fields.from_json(Tree, data).mode == "fast"
    del data["count"]
    with pytest.raises(fields.ConfigError, match="Tree lacks count"):
        fields.from_json(Tree, data)


def test_changes():
    new = dataclasses.replace(
        TREE,
        part=Leaf(rate=1e-5),
        parts=(Leaf(rate=0.2), Other(rate=2.0)),
        table={"a": Leaf(rate=2.0)},
        grid=[],
    )
    assert fields.changes(fields.to_json(TREE), fields.to_json(TREE)) == []
    assert fields.changes(fields.to_json(TREE), fields.to_json(new)) == [
        ("part.class", "Other", "Leaf"),
        ("part.name", fields.ABSENT, "leaf"),
        ("parts[0].rate", 0.1, 0.2),
        ("table.b", {"class": "Leaf", "rate": 1.0, "name": "x"}, fields.ABSENT),
        ("grid", [[1.0, 2.0], []], []),
    ]
    assert fields.changes({"a": 1}, {"a": True}) == [("a", 1, True)]


def test_leaves_and_defaults():
    leaves = {leaf.path: (leaf.text, leaf.is_default) for leaf in fields.leaves(TREE)}
    assert leaves["count"] == ("3", False)
    assert leaves["pair"] == ("(1, 'a')", True)
    assert leaves["parts[0]"] == ("@Leaf()", False)
    assert leaves["parts[0].name"] == ("'leaf'", True)
    assert leaves["table['b'].name"] == ("'x'", False)
    assert leaves["grid"] == ("[(1.0, 2.0), ()]", False)


def test_leaves_compare_with_the_default_of_the_whole_part():
    part = dataclasses.field(default_factory=lambda: Leaf(rate=1.0, name="x"))
    root = dataclasses.make_dataclass("Root", [("part", Leaf, part)])
    assert all(leaf.is_default for leaf in fields.leaves(root()))
    changed = list(fields.leaves(root(Leaf(rate=1.0))))
    assert [leaf.is_default for leaf in changed] == [True, True, False]
