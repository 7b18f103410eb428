# SPDX-License-Identifier: Apache-2.0
"""The values that cross; the two processes themselves are run_test's."""

import collections
import enum
import json
import math

import pytest

from midjax.evals.sandbox import inside


def refuse(*unknown):
    raise TypeError(unknown)


def crossed(value):
    return inside.decode(json.loads(json.dumps(inside.encode(value, refuse))), refuse)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(10**400),
        1.5,
        float("inf"),
        2.0**-1074,
        3 + 4j,
        "a\n\udc80",
        b"\x00\xff",
        [1, [2, (3,)]],
        (),
        {1, 2},
        frozenset({(1, 2)}),
        {(1, "a"): {"b": None}, 2: []},
        range(2, 9, 3),
    ],
)
def test_builtin_values_cross_unchanged(value):
    back = crossed(value)
    assert back == value and type(back) is type(value)


def test_nan_and_the_sign_of_zero_cross():
    assert math.isnan(crossed(float("nan")))
    assert math.copysign(1, crossed(-0.0)) == -1


class Flattering(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


def test_subclasses_cross_as_their_base():
    assert type(crossed(Flattering(7))) is int and crossed(Flattering(7)) != 8
    assert crossed(collections.Counter("aab")) == {"a": 2, "b": 1}
    assert crossed(enum.IntEnum("Colour", "RED").RED) == 1
    assert type(crossed(collections.namedtuple("P", "x y")(1, 2))) is tuple


def test_what_is_no_value_is_left_to_the_caller():
    with pytest.raises(TypeError):
        crossed([object()])


def test_exceptions_of_the_solution_are_rebuilt_by_name_only():
    error = inside.raised("ValueError", "bad")
    assert type(error) is ValueError and error.of_the_solution
    assert type(inside.raised("SystemExit", "0")).__mro__[1] is Exception
    assert type(inside.raised("open", "x")).__mro__[1] is Exception
    assert type(inside.raised("UnicodeDecodeError", "x")) is Exception
