# SPDX-License-Identifier: Apache-2.0
import pytest

from midjax.evals.calls import parse

ONE = [parse.Call(name="a.f", arguments={"x": 1, "y": ["b", 2.5], "z": {"k": True}})]


@pytest.mark.parametrize(
    "text",
    [
        "[a.f(x=1, y=['b', 2.5], z={'k': True})]",
        "a.f(x=1, y=['b', 2.5], z={'k': True})",
        "  ```python\n[a.f(x=1, y=['b', 2.5], z={'k': True})]\n```\n",
        '[{"name": "a.f", "arguments": {"x": 1, "y": ["b", 2.5], "z": {"k": true}}}]',
        '{"name": "a.f", "parameters": {"x": 1, "y": ["b", 2.5], "z": {"k": true}}}',
        '{"a.f": {"x": 1, "y": ["b", 2.5], "z": {"k": true}}}',
        '{"type": "function", "function": {"name": "a.f", "arguments": '
        '"{\\"x\\": 1, \\"y\\": [\\"b\\", 2.5], \\"z\\": {\\"k\\": true}}"}}',
        'Well: <tool_call>\n{"name": "a.f", "arguments": {"x": 1, "y": ["b", 2.5], '
        '"z": {"k": true}}}\n</tool_call>',
    ],
)
def test_all_forms_say_the_same(text):
    assert parse.parse(text) == ONE


def test_several_calls_keep_their_order():
    names = ["f", "g", "f"]
    tagged = "".join(f'<tool_call>{{"name": "{name}"}}</tool_call>' for name in names)
    for text in ("[f(), g(), f()]", "f(), g(), f()", tagged):
        assert [call.name for call in parse.parse(text)] == names
    assert parse.parse("[]") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("-5", -5),
        ("(1, 2)", (1, 2)),
        ("None", None),
        ("2 * 3 + 1", 7),
        ("1 / 4", 0.25),
        ("1 / 0", "1 / 0"),
        ("10 ** 9 ** 9", "10 ** 9 ** 9"),  # not computed
        ("start_date", "start_date"),
        ("datetime.now(tz=0)", "datetime.now(tz=0)"),
        ("__import__('os').system('false')", "__import__('os').system('false')"),
        ("{**x}", "{**x}"),
        ("...", "..."),
    ],
)
def test_values_are_read_and_never_executed(value, expected):
    [call] = parse.parse(f"[f(x={value})]")
    assert call.arguments == {"x": expected} and type(call.arguments["x"]) is type(expected)


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that.",
        "f",
        "[f(1)]",
        "[f(**x)]",
        "[f(x=)]",
        "f()()",
        "[1, 2]",
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "{"}',
        "<tool_call>f()</tool_call>",
        "[" * 5000,
    ],
)
def test_everything_else_is_no_call(text):
    with pytest.raises(parse.NotCalls):
        parse.parse(text)


def test_an_absent_bracket_is_put_there_as_bfcl_does():
    assert parse.parse("[f()") == parse.parse("f()]") == [parse.Call(name="f", arguments={})]
    assert parse.parse("") == []
