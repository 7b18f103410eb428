# SPDX-License-Identifier: Apache-2.0
"""Building from bindings, with a dict in the place of gin."""

import dataclasses

import pytest

from midjax.strict import build, fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Root:
    inner: Inner
    inners: dict[str, Inner] = dataclasses.field(default_factory=dict)


def construct(*bindings):
    classes = fields.components(Root)

    def lookup(cls, scope):
        found = {b.field: b for b in bindings if b.name == cls.__name__ and not b.scope}
        scoped = {b.field: b for b in bindings if b.name == cls.__name__ and b.scope == scope}
        return found | scoped

    return build.Build(Root, classes, list(bindings), lookup).root()


def bind(key, value, where="here"):
    scoped, _, field = key.partition(".")
    scope, _, name = scoped.rpartition("/")
    return build.Binding(scope, name, field, value, where)


def ref(scoped):
    scope, _, name = scoped.rpartition("/")
    return build.Reference(scope, name, True)


def test_scopes_fall_back_and_macros_may_hold_references():
    root = construct(
        bind("Root.inner", build.Macro("PART")),
        bind("PART", ref("Inner")),
        bind("Root.inners", {"a": ref("a/Inner"), "b": ref("b/Inner")}),
        bind("Inner.rate", 1),
        bind("b/Inner.rate", 2),
    )
    assert root == Root(inner=Inner(rate=1.0), inners={"a": Inner(rate=1.0), "b": Inner(rate=2.0)})


def test_dead_and_missing_are_reported_together():
    with pytest.raises(fields.ConfigError) as caught:
        construct(bind("Root.inner", ref("Inner")), bind("x/Inner.rate", 1, "a.gin:3"))
    assert str(caught.value).splitlines() == [
        "Bound without effect on Root:",
        "  a.gin:3: x/Inner.rate: scopes of Inner in use: none.",
        "  Required but not bound:",
        "  Inner.rate (float)",
    ]


def test_text_of_bindings_and_references():
    assert str(bind("a/Inner.rate", 1)) == "a/Inner.rate"
    assert str(bind("MACRO", 1)) == "MACRO"
    assert str(ref("a/Inner")) == "@a/Inner()"
    assert bind("Inner.rate", 1, "f.gin:2").at == "f.gin:2: Inner.rate"
