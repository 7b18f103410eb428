# SPDX-License-Identifier: Apache-2.0
import datetime

import jinja2
import pytest

from midjax.corpora import templates


def render(source, context, **options):
    return templates.Script(source, "it", **({"strict": True} | options)).render(context)


def test_generation_blocks_say_where_their_text_is():
    block = "{% generation %}{{ a }};{% endgeneration %}"
    source = "Q: {{ q }}\n{% for a in answers %}" + block + " - {% endfor %}"
    text, spans = render(source, {"q": "ü?", "answers": ["one", "", "two"]})
    assert text == "Q: ü?\none; - ; - two; - "
    assert [text[begin:end] for begin, end in spans] == ["one;", ";", "two;"]


def test_empty_blocks_mark_nothing():
    assert render("x{% generation %}{% endgeneration %}y", {}) == ("xy", ())


def test_a_block_in_a_macro_has_no_place_and_is_refused():
    # transformers marks other characters here: the block's text is made before it is written.
    source = (
        "{% macro turn(a) %}header {% generation %}{{ a }}{% endgeneration %}{% endmacro %}"
        "start {{ turn('answer') }}"
    )
    with pytest.raises(jinja2.TemplateError, match="inside a macro"):
        render(source, {})


def test_a_marked_variable_counts_where_there_are_no_blocks():
    source = "{{ answer }} is {{ answer|upper }}, {{ other }}"
    text, spans = render(source, {"answer": "yes", "other": "no"}, mark="answer")
    assert text == "yes is YES, no"
    assert [text[begin:end] for begin, end in spans] == ["yes", "YES"]
    blocks = "{{ answer }}, {% generation %}{{ other }}{% endgeneration %}"
    text, spans = render(blocks, {"answer": "yes", "other": "no"}, mark="answer")
    assert [text[begin:end] for begin, end in spans] == ["no"]
    text, spans = render(
        "{% for w in answer %}{{ loop.index }}{{ answer }}{% endfor %}", {"answer": "ab"},
        mark="answer",
    )  # fmt: skip
    assert text == "1ab2ab" and spans == ((1, 3), (4, 6))


def test_the_environment_of_chat_templates():
    text, _ = render(
        "  {% if true %}\n"
        "{{ {'a': '<é>', 'b': none} | tojson }}\n"
        "  {% endif %}\n"
        "{% set n = namespace(x=1) %}{% for i in [1, 2, 3] %}"
        "{% if i == 3 %}{% break %}{% endif %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}\n"
        "{{ [1] | tojson(indent=2) }}{{ strftime_now('%d %b %Y') }}",
        {},
        date=datetime.date(2024, 7, 26),
    )
    assert text == '{"a": "<é>", "b": null}\n4\n[\n  1\n]26 Jul 2024'


def test_names_are_what_it_needs_from_outside():
    script = templates.Script(
        "{% for x in xs %}{{ x }}{{ y }}{{ namespace() }}{% endfor %}", "it", strict=True
    )
    assert script.names == {"xs", "y"} and not script.marks


def test_strict_or_not():
    with pytest.raises(jinja2.UndefinedError, match="'x' is undefined"):
        render("{{ x }}", {})
    assert render("a{{ x }}", {}, strict=False) == ("a", ())


@pytest.mark.parametrize("source", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ x.__init__.__globals__ }}",
    "{{ items.append(1) }}",
    "{% set n = namespace(_x=1) %}",
])  # fmt: skip
def test_the_sandbox_holds(source):
    with pytest.raises(templates.RENDER_ERRORS):
        render(source, {"x": object(), "items": []})


def test_messages():
    with pytest.raises(ValueError, match="Chat template is not a Jinja template, line 2: "):
        templates.Script("\n{% generation %}", "Chat template", strict=True)
    with pytest.raises(ValueError, match="it writes the current date"):
        templates.Script("{{ strftime_now('%Y') }}", "it", strict=True)
    with pytest.raises(jinja2.TemplateError, match="no such role"):
        render("{{ raise_exception('no such role') }}", {})
