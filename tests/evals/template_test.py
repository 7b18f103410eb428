# SPDX-License-Identifier: Apache-2.0
"""Templates are strict about names, plain about values, and get at nothing else."""

import pytest

from midjax.evals import template


def test_text_and_values():
    text = template.Text(
        "{{a}}\n{% for b in bs %} {{letters[loop.index0]}}. {{b}}\n{% endfor %}", "t"
    )
    assert text({"a": "<x> & y", "bs": ["p", "q"]}) == "<x> & y\n A. p\n B. q\n"
    assert text.names == {"a", "bs"}
    assert (
        template.Expression("choices.label.index(key)", "e")(
            {"choices": {"label": ["A", "B"]}, "key": "B"}
        )
        == 1
    )


def test_filters():
    def value(source, **fields):
        return template.Expression(source, "e")(fields)

    assert value(r"x|regex_replace('\\d+', '#')", x="a12b3") == "a#b#"
    assert value(r"x|regex_findall('\\d')", x="a1b2") == ["1", "2"]
    assert value("x|tojson", x={"é": "<"}) == '{"é": "<"}'
    empty = {"day": "", "month": "", "year": ""}
    answer = {"number": "3", "date": empty, "spans": []}
    assert value("a|drop_answers(v)", a=answer, v={"number": [], "date": [], "spans": []}) == [
        ["3"]
    ]


def test_names_that_are_not_there_are_errors_that_tell_which_are():
    with pytest.raises(template.TemplateError, match=r"prompt: 'b' is undefined. .* fields a, c"):
        template.Text("{{b}}", "prompt")({"a": 1, "c": 2})
    with pytest.raises(template.TemplateError, match="gold: .*undefined"):
        template.Expression("a.b", "gold")({"a": {}})


@pytest.mark.parametrize(
    "source",
    [
        "a.__class__",
        "a.__class__.__mro__[1].__subclasses__()",
        "letters.__init__.__globals__",
        "a.append(1)",
        "''.format.__self__.__class__",
        "range(100000000)|list",
    ],
)
def test_the_sandbox_holds(source):
    with pytest.raises(template.TemplateError):
        template.Expression(source, "e")({"a": [1]})


def test_no_file_is_read():
    with pytest.raises(template.TemplateError):
        template.Text("{% include '/etc/passwd' %}", "t")({})
