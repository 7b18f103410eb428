# SPDX-License-Identifier: Apache-2.0
"""Do calls match the answers that a BFCL record allows? Its rules for Python, by their outcome.

- As many calls as answers. Each answer `{name: {parameter: [values it may have]}}` takes another
  call; their order is free.
- The name is equal. Required parameters are there, unknown ones are not, and one that is left out
  must have "" among its values.
- Types: the declared one, exactly (True is no integer), but an integer may stand for a float, and a
  tuple for a tuple's list. A value of the type of the answers passes too: so BFCL writes the name
  of a variable where a number was declared.
- Text is compared without its case, blanks and `,./-_*^`, and with one sort of quotes: also inside
  lists and objects, one level deep. All other values are equal or not.
- Irrelevance: right is no call at all.

Source of the rules: the leaderboard's `ast_checker.py` (gorilla, Apache-2.0). It takes calls for
answers greedily; here any assignment counts, so that a call which fits two answers costs nothing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from midjax.evals.calls import parse

_TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")
Answer = Mapping[str, Mapping[str, Sequence[Any]]]


def judge(text: str, functions: Sequence[Mapping], answers: Sequence[Answer] | None) -> str:
    """Why the model's text does not answer the question; empty when it does.

    Args:
      functions: the record's descriptions, `{"name", "parameters": {"properties", "required"}}`.
      answers: `ground_truth` of the record's possible answers; None for irrelevance.
    """
    try:
        calls = parse.parse(text)
    except parse.NotCalls as error:
        return "" if answers is None else f"no calls: {error}"
    if answers is None:
        return f"{len(calls)} calls where none helps" if calls else ""
    return mismatch(calls, functions, answers)


def mismatch(
    calls: Sequence[parse.Call],
    functions: Sequence[Mapping],
    answers: Sequence[Answer],
    *,
    underscores: bool = False,
) -> str:
    """The first thing that is wrong with `calls`, empty if nothing is.

    Args:
      underscores: the model could not write dots in names, and wrote `_`.

    Raises:
      ValueError: an answer names a function that is not described: the record is broken.
    """
    if len(calls) != len(answers):
        return f"{len(calls)} calls, {len(answers)} expected"
    described = {function["name"]: function for function in functions}
    why: list[list[str]] = []  # [answer][call]
    for answer in answers:
        [(name, values)] = answer.items()
        if name not in described:
            raise ValueError(f"An answer calls {name}, described are {sorted(described)}.")
        written = name.replace(".", "_") if underscores else name
        parameters = described[name]["parameters"]
        why.append([_one(call, written, parameters, values) for call in calls])
    taken: dict[int, int] = {}  # call -> answer

    def assign(answer: int, tried: set[int]) -> bool:
        """Kuhn's augmenting path: moves earlier answers to other calls where that helps."""
        for call in range(len(calls)):
            if not why[answer][call] and call not in tried:
                tried.add(call)
                if call not in taken or assign(taken[call], tried):
                    taken[call] = answer
                    return True
        return False

    for index, reasons in enumerate(why):
        if not assign(index, set()):
            name = next(iter(answers[index]))
            return f"no call for answer {index} ({name}): " + "; ".join(filter(None, reasons))
    return ""


def _one(call: parse.Call, name: str, parameters: Mapping, values: Mapping) -> str:
    if call.name != name:
        return f"{call.name} is called, not {name}"
    properties = parameters["properties"]
    for parameter in parameters.get("required", ()):
        if parameter not in call.arguments:
            return f"{name} lacks the required {parameter!r}"
    for parameter, value in call.arguments.items():
        if parameter not in properties or parameter not in values:
            return f"{name} has no {parameter!r} here"
        if not _fits(value, properties[parameter], values[parameter]):
            return f"{name}({parameter}={value!r:.80}) is not among {values[parameter]!r:.200}"
    for parameter, allowed in values.items():
        if parameter not in call.arguments and "" not in allowed:
            return f"{name} lacks {parameter!r}"
    return ""


def _fits(value: Any, described: Mapping, allowed: Sequence) -> bool:
    declared = described["type"]
    kind: Any = _TYPES[declared]
    if declared == "tuple" and isinstance(value, tuple):
        value = list(value)
    if declared == "float" and type(value) is int:
        value = float(value)
    inner = _TYPES.get(described.get("items", {}).get("type")) if kind is list else None
    answered = _type_of(allowed)
    if type(value) is kind and (inner is None or _items_fit(value, inner, allowed)):
        variable = answered not in (None, kind)
    elif answered is not None and type(value) is answered:
        variable = True
    else:
        return False
    if variable:
        return value in allowed
    if kind is dict:
        return any(_object(value, one) for one in allowed if one != "")
    if inner is dict:
        return any(_objects(value, one) for one in allowed)
    if kind is str:
        return _plain(value) in [_plain(one) for one in allowed if isinstance(one, str)]
    if kind is list:
        # "" stands for a parameter left out, and for BFCL an empty list is as good.
        return [_plain(item) for item in value] in [
            [_plain(item) for item in one] for one in allowed
        ]
    return value in allowed


def _type_of(allowed: Sequence) -> type | None:
    """The type of the first answer that is a value."""
    return next((type(one) for one in allowed if one != ""), None)


def _items_fit(value: list, inner: type, allowed: Sequence) -> bool:
    """Each item is of the declared type, or of that of one answer's items."""
    for one in allowed:
        if not isinstance(one, list):
            return True
        if all(type(item) in (inner, _type_of(one)) for item in value):
            return True
    return False


def _plain(value: Any) -> Any:
    """Text in the form that is compared; anything else as it is."""
    if not isinstance(value, str):
        return value
    return _IGNORED.sub("", value).lower().replace("'", '"')


def _object(value: Mapping, allowed: Mapping[str, Sequence]) -> bool:
    for key, item in value.items():
        if key not in allowed or _plain(item) not in [_plain(one) for one in allowed[key]]:
            return False
    return all(key in value or "" in items for key, items in allowed.items())


def _objects(value: list, allowed: Sequence) -> bool:
    pairs = zip(value, allowed, strict=False)
    return len(value) == len(allowed) and all(
        isinstance(item, Mapping) and isinstance(one, Mapping) and _object(item, one)
        for item, one in pairs
    )
