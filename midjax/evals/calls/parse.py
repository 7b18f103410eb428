# SPDX-License-Identifier: Apache-2.0
"""A model's text -> function calls, by reading it as Python or JSON. Nothing of it is executed.

    [f(a=1, b="x"), g.h(c=[2, 3])]            Python, with or without the brackets
    [{"name": "f", "arguments": {"a": 1}}]    JSON; also "parameters", and {"f": {"a": 1}}
    <tool_call>{"name": ...}</tool_call>      Hermes' tags, one for each call

A fence in ``` around it is taken off.
"""

import ast
import dataclasses
import json
import re
from typing import Any

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.S)
_FENCED = re.compile(r"\A```[\w+-]*[ \t]*\n(.*?)\n?```\Z", re.S)


class NotCalls(ValueError):
    """The text is no list of calls; the message says where reading stopped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One call. Values are of builtin types; a name or a call among them is its text."""

    name: str
    arguments: dict[str, Any]


def parse(text: str) -> list[Call]:
    """The calls in `text`, in their order; an empty list is one that says `[]`.

    Raises:
      NotCalls: prose, broken syntax, or a call with arguments that have no names.
    """
    text = text.strip()
    tagged = _TAGGED.findall(text)
    if tagged:
        return [call for part in tagged for call in _from_json(_json(part.strip()))]
    if fenced := _FENCED.match(text):
        text = fenced[1].strip()
    if text[:1] in ("{", "["):
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            pass  # a list of Python calls starts alike
        else:
            return _from_json(data)
    return _from_python(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotCalls(f"It is not JSON: {error}.") from None


def _from_json(data: Any) -> list[Call]:
    if isinstance(data, list):
        return [call for item in data for call in _from_json(item)]
    if not isinstance(data, dict):
        raise NotCalls(f"A call must be a JSON object, got {data!r:.80}.")
    if isinstance(data.get("function"), dict):  # the form of chat APIs
        data = data["function"]
    if isinstance(data.get("name"), str):
        arguments = data.get("arguments", data.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _json(arguments)
        pairs = [(data["name"], arguments)]
    else:
        pairs = list(data.items())
    for name, arguments in pairs:
        if not isinstance(arguments, dict):
            raise NotCalls(f"The arguments of {name} must be an object, got {arguments!r:.80}.")
    return [Call(name=name, arguments=arguments) for name, arguments in pairs]


def _from_python(text: str) -> list[Call]:
    # As BFCL does, an absent bracket is put there: models leave out one of the two.
    opened = text if text.startswith("[") else "[" + text
    closed = opened if opened.endswith("]") else opened + "]"
    try:
        body = ast.parse(closed, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotCalls(f"It is neither Python calls nor JSON: {error}.") from None
    if not isinstance(body, ast.List):
        raise NotCalls("It is not one list of calls.")
    return [_call(item) for item in body.elts]


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise NotCalls(f"{ast.unparse(node)[:80]!r} is not a call.")
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise NotCalls(f"{ast.unparse(node)[:80]!r} has arguments without names.")
    function: ast.expr = node.func
    while isinstance(function, ast.Attribute):
        function = function.value
    if not isinstance(function, ast.Name):
        raise NotCalls(f"{ast.unparse(node.func)[:80]!r} is not the name of a function.")
    arguments = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    return Call(name=ast.unparse(node.func), arguments=arguments)


def _value(node: ast.expr) -> Any:
    """A literal's value; arithmetic of numbers is done, as BFCL's; all else is its text."""
    if isinstance(node, ast.Constant):
        return "..." if node.value is Ellipsis else node.value
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_value(key) for key in node.keys if key is not None]
        if all(isinstance(key, (str, int, float, bool)) for key in keys):
            return dict(zip(keys, map(_value, node.values), strict=True))
    number = _number(node)
    return ast.unparse(node) if number is None else number


def _number(node: ast.expr) -> int | float | None:
    """The value of an expression of + - * / over numbers."""
    if isinstance(node, ast.Constant):
        plain = isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
        return node.value if plain else None  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _number(node.operand)
        if inner is None:
            return None
        return -inner if isinstance(node.op, ast.USub) else inner
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _number(node.left), _number(node.right)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div) and right:
        return left / right
    return None
